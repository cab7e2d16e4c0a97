"""An adapter reaches the language model and nothing else, and opens where this package is not installed."""

import json
import warnings

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from test_remote_code import run
from tiny import EEG, EEG_TOKEN_ID, SEP, language_model, lm_batch
from transformers import pipeline

from neurolm_hf import EEGFeatureExtractor, NeuroLMConfig, NeuroLMForCausalLM, NeuroLMProcessor
from neurolm_hf.lora import add_adapter, lora_config, save_beside_adapter
from neurolm_hf.tasks import load_task


ROWS = [[EEG((3, 7), 2, seed=1), SEP, 11, 12], [EEG((0, 3, 5), 2, seed=2), SEP, 13, 14]]


def adapted(backbone="gpt2", width=32, base="somewhere", **options):
    """A tiny model with an adapter whose matrices are not zero."""
    torch.manual_seed(0)
    model = language_model(backbone, width)
    adapter = add_adapter(model, base, lora_config(model, **options))
    return stir(adapter)


def stir(model):
    """Moves every trained weight off its first value: a new adapter does nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def trained_modules(model):
    """Names, without PEFT's own parts, of what an optimiser would move."""
    names = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for part in (".lora_A", ".lora_B", ".modules_to_save", ".token_adapter"):
                name = name.partition(part)[0]
            names.add(name.removeprefix("base_model.model."))
    return names


@pytest.mark.parametrize(
    ("backbone", "layers"),
    [
        ("gpt2", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
        *(
            (
                kind,
                (
                    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
                    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
                ),
            )
            for kind in ("llama", "qwen3")
        ),
    ],
)
def test_only_the_blocks_of_the_language_model_are_adapted(backbone, layers):
    blocks = "h" if backbone == "gpt2" else "layers"
    with warnings.catch_warnings():
        warnings.simplefilter(
            "error", UserWarning
        )  # PEFT warns where a layer is stored the other way round than it was told
        model = adapted(backbone)
    assert trained_modules(model) == {
        f"model.language_model.{blocks}.{index}.{layer}" for index in range(2) for layer in layers
    }


@pytest.mark.parametrize(
    ("backbone", "targets", "layers"),
    [
        ("gpt2", ["attn.c_proj"], {f"model.language_model.h.{index}.attn.c_proj" for index in range(2)}),
        (
            "gpt2",
            ["c_proj"],
            {f"model.language_model.h.{index}.{part}.c_proj" for index in range(2) for part in ("attn", "mlp")},
        ),
        (
            "llama",
            ["q_proj", "lm_head"],
            {"lm_head", *(f"model.language_model.layers.{index}.self_attn.q_proj" for index in range(2))},
        ),
        ("qwen3", ["lm_head"], {"lm_head"}),
    ],
)
def test_targets_are_names_of_layers(backbone, targets, layers):
    assert trained_modules(adapted(backbone, targets=targets)) == layers


@pytest.mark.parametrize("target", ["qkv", "proj", "_proj", "c_pro.", "eeg_projector", "code_head"])
def test_a_target_outside_of_the_language_model_is_refused(target):
    with pytest.raises(
        ValueError, match=r"no linear layer of the language model; its layers are c_attn, c_fc, c_proj"
    ):
        lora_config(language_model(), targets=[target])


def test_rank_and_scale():
    model = language_model()
    config = lora_config(model, rank=4)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.fan_in_fan_out) == (4, 8, 0.0, True)
    config = lora_config(language_model("llama"), rank=4, alpha=3, dropout=0.2)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.fan_in_fan_out) == (4, 3, 0.2, False)
    with pytest.raises(ValueError, match="rank of LoRA is 1 or more, not 0"):
        lora_config(model, rank=0)


@pytest.mark.parametrize(
    ("width", "modules"), [(32, {"channel_embedding"}), (64, {"eeg_projector", "channel_embedding"})]
)
def test_what_reads_eeg_may_be_trained_along(width, modules):
    """Where both widths are equal there is no projector. The encoder's own channel embedding stays."""
    model = adapted(width=width, targets=["lm_head"], eeg_projector=True)
    assert {name.removeprefix("model.").partition(".")[0] for name in trained_modules(model)} == {"lm_head", *modules}


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_rows_of_new_tokens_may_be_trained_along(backbone):
    before = language_model(backbone).get_input_embeddings().weight.clone()
    model = adapted(backbone, targets=["lm_head"], new_tokens=[SEP, EEG_TOKEN_ID])
    after = model.merge_and_unload().get_input_embeddings().weight
    changed = (before != after).any(1).nonzero().flatten().tolist()
    assert changed == [SEP, EEG_TOKEN_ID]


def test_a_step_of_training_moves_the_adapter_alone():
    model = adapted(eeg_projector=True, new_tokens=[SEP]).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    batch = lm_batch(ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    model(**batch, labels=labels).loss.backward()
    optimizer.step()
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all("lora_" in name or "modules_to_save" in name or "token_adapter" in name for name in moved)


def test_merging_changes_no_answer():
    model = adapted("llama", 64, eeg_projector=True, new_tokens=[SEP])
    batch = lm_batch(ROWS)
    with torch.no_grad():
        expected = model(**batch).logits
        without = language_model("llama", 64)(**batch).logits
        merged = model.merge_and_unload()(**batch).logits
    assert not torch.allclose(expected, without, atol=1e-2)
    assert torch.allclose(expected, merged, atol=1e-5)


def test_an_adapter_opens_as_a_model_that_knows_its_tasks(tmp_path):
    """As `AutoModelForCausalLM` and as a pipeline, with and without the package."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    text = write_text_model(tmp_path / "text", tokenizer)
    base = write_language_model(tmp_path / "base", write_vq(tmp_path / "vq"), text)
    model = NeuroLMForCausalLM.from_pretrained(base)
    # a filter longer than these recordings would warn
    extractor = EEGFeatureExtractor(do_filter=False, do_notch=False)
    processor = NeuroLMProcessor(extractor, NeuroLMProcessor.from_pretrained(base).tokenizer)
    adapted = stir(add_adapter(model, base, lora_config(model)))
    folder = tmp_path / "adapter"
    adapted.save_pretrained(folder)
    task = load_task("Workload")
    model.config.update({"stage": "instruction-tuned", "tasks": [task.config_entry()]})
    save_beside_adapter(model, processor, folder)

    array = {"eeg": torch.randn(len(task.channels), 4 * 200).numpy(), "ch_names": list(task.channels)}
    array |= {"sampling_rate": 200, "unit": "uV"}
    (expected,) = model.as_pipeline(processor, device="cpu")(array)
    assert expected["probabilities"] != pytest.approx({"No": 0.5, "Yes": 0.5}, abs=1e-3)
    plain = NeuroLMForCausalLM.from_pretrained(base)
    (unadapted,) = plain.as_pipeline(processor, device="cpu")(
        array, question=task.question, candidate_answers=["No", "Yes"]
    )
    assert unadapted["probabilities"] != pytest.approx(expected["probabilities"], abs=1e-3)

    opened = NeuroLMForCausalLM.from_pretrained(folder)
    assert [one["name"] for one in opened.config.tasks] == ["Workload"]
    assert not any(p.requires_grad for p in opened.model.eeg_encoder.parameters())
    # as transformers opens an adapter of the Hub: with the base's config
    options = {"config": NeuroLMConfig.from_pretrained(base), "adapter_kwargs": {"_adapter_model_path": str(folder)}}
    by_base = NeuroLMForCausalLM.from_pretrained(base, **options)
    assert by_base.config.tasks == opened.config.tasks
    assert by_base.config.stage == "instruction-tuned"
    (found,) = pipeline("eeg-question-answering", model=str(folder), trust_remote_code=True, device="cpu")(array)
    assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)

    save_file({"eeg": torch.from_numpy(array["eeg"])}, tmp_path / "eeg.safetensors")
    (tmp_path / "cache").mkdir()
    printed, _ = run(
        """
        from transformers import pipeline
        pipe = pipeline("eeg-question-answering", model=folder, device="cpu", **trust)
        array = {"eeg": inputs["eeg"].numpy(), "ch_names": sys.argv[3].split(), "sampling_rate": 200, "unit": "uV"}
        config = AutoConfig.from_pretrained(folder, **trust)
        print(json.dumps([pipe(array)[0]["probabilities"], [one["name"] for one in config.tasks]]))
        """,
        folder,
        tmp_path / "eeg.safetensors",
        " ".join(task.channels),
        cache=tmp_path / "cache",
    )
    probabilities, tasks = json.loads(printed.splitlines()[-1])
    assert tasks == ["Workload"]
    assert probabilities == pytest.approx(expected["probabilities"], abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_an_adapter_opens_without_the_package(kind, tmp_path, monkeypatch):
    """From another working directory than that in which its base was named."""
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    text = write_text_model(tmp_path / "text", tokenizer, kind, width=64)
    base = write_language_model(tmp_path / "base", write_vq(tmp_path / "vq"), text)
    monkeypatch.chdir(tmp_path)
    model = NeuroLMForCausalLM.from_pretrained("base")
    config = lora_config(model, eeg_projector=True, new_tokens=[SEP])
    model = stir(add_adapter(model, "base", config))
    model.save_pretrained("adapter")
    size = sum(file.stat().st_size for file in (tmp_path / "adapter").iterdir())
    assert size < 0.5 * (base / "model.safetensors").stat().st_size

    token = model.config.eeg_token_id
    batch = lm_batch(ROWS)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == EEG_TOKEN_ID, token)
    with torch.no_grad():
        expected = model(**batch).logits
    save_file(batch, tmp_path / "batch.safetensors")
    out, cache = tmp_path / "logits.safetensors", tmp_path / "cache"
    cache.mkdir()
    run(
        """
        from peft import AutoPeftModelForCausalLM
        model = AutoPeftModelForCausalLM.from_pretrained(folder, **trust).eval()
        with torch.no_grad():
            before = model(**inputs).logits
            merged = model.merge_and_unload()
            after = merged(**inputs).logits
        save_file({"before": before, "after": after}, sys.argv[3])
        """,
        tmp_path / "adapter",
        tmp_path / "batch.safetensors",
        out,
        cache=cache,
    )
    logits = load_file(out)
    assert torch.allclose(logits["before"], expected, atol=1e-5)
    assert torch.allclose(logits["after"], expected, atol=1e-5)
    # and with the package, from the folder's name alone
    again = AutoPeftModelForCausalLM.from_pretrained("adapter").eval()
    with torch.no_grad():
        assert torch.allclose(again(**batch).logits, expected, atol=1e-5)
