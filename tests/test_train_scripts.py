"""The three scripts from prepared folders to models that open anywhere, and their errors."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_folders import (
    TASKS,
    write_language_model,
    write_metaspace_tokenizer,
    write_other_recipe,
    write_sets,
    write_text,
    write_text_model,
    write_tokenizer,
    write_vq,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_recipes import script_module
from test_remote_code import run

from neurolm_hf import EEGFeatureExtractor, NeuroLMConfig, NeuroLMForCausalLM, NeuroLMProcessor, NeuroLMVQModel
from neurolm_hf.collators import EEGCollator
from neurolm_hf.model_card import model_card
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.tasks import load_task


REPOSITORY = Path(__file__).parents[1]
TINY_VQ = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "decoder_num_hidden_layers": 1,
    "codebook_size": 16,
    "codebook_dim": 8,
    "initializer_range": 0.08,
    "embedding_initializer_range": 0.08,
}
# Two steps of two micro-batches, evaluated and saved at the end of the first epoch.
SHORT = [
    *("--use-cpu", "--max-steps", "3", "--per-device-train-batch-size", "4", "--total-train-batch-size", "8"),
    *("--eval-strategy", "steps", "--eval-steps", "2", "--save-steps", "2", "--logging-steps", "1"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings."""
    root = tmp_path_factory.mktemp("stages")
    made = {"tokenizer": write_tokenizer(root / "tokenizer")}
    made |= {name: write_sets(root / name, name) for name in TASKS}
    made["corpus"] = write_sets(root / "corpus", "Corpus")
    made["unvalidated"] = write_sets(root / "unvalidated", splits={"train": 4})
    made["rescaled"] = write_other_recipe(root / "rescaled")
    made["metaspace"] = write_metaspace_tokenizer(root / "metaspace")
    for kind, tokenizer in (("gpt2", "tokenizer"), ("llama", "metaspace"), ("qwen3", "tokenizer")):
        made[kind] = write_text_model(root / kind, made[tokenizer], kind)
    made["wide"] = write_text_model(root / "wide", made["tokenizer"], width=64)
    made["text"] = write_text(root / "text", made["tokenizer"])
    made["long"] = write_text(root / "long", made["tokenizer"], block_length=300)
    made["vq"] = write_vq(root / "vq")
    made["model"] = write_language_model(root / "model", made["vq"], made["gpt2"])
    made["root"] = root
    return {name: str(folder) for name, folder in made.items()}


def here(script, *arguments):
    """Runs a script in this process; returns its exit status."""
    with pytest.raises(SystemExit) as exit_:
        script_module(script).main([str(argument) for argument in arguments])
    return exit_.value.code


def command(script, *arguments):
    """A script as users start it, for `subprocess`. With as many threads each time: their number changes sums."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    return {
        "args": [sys.executable, str(REPOSITORY / "scripts" / f"{script}.py"), *map(str, arguments)],
        "env": environment,
        "text": True,
    }


def started(script, *arguments):
    """Runs a script as users do; returns what it printed."""
    done = subprocess.run(**command(script, *arguments), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(folder):
    return json.loads((Path(folder) / "training.json").read_text())


@pytest.fixture(scope="module")
def vq(folders):
    """The tokenizer of the whole chain: from scratch, against GPT-2's embeddings, features standardised."""
    output = f"{folders['root']}/run-vq"
    started(
        "train_vq",
        *(REPOSITORY / "recipes" / "vq-cpu.yaml", "--from-scratch", "--vq-config", json.dumps(TINY_VQ)),
        *("--text-model", folders["gpt2"], "--text-data", folders["text"], "--text-batch-size", "2"),
        *("--train-data", folders["Workload"], folders["corpus"], "--weights", "2", "1"),
        *("--quantizer-warmup-steps", "1", "--report-to", "tensorboard", "--output-dir", output, *SHORT),
    )
    return output


@pytest.fixture(scope="module")
def pretrained(folders, vq):
    output = f"{folders['root']}/run-pretrained"
    started(
        "pretrain",
        *(REPOSITORY / "recipes" / "pretrain-b.yaml", "--vq", vq, "--text-model", folders["gpt2"]),
        *("--text-data", folders["text"], "--text-batch-size", "2", "--train-data", folders["corpus"]),
        *("--dataloader-num-workers", "0", "--report-to", "tensorboard", "--output-dir", output, *SHORT),
    )
    return output


@pytest.fixture(scope="module")
def tuned(folders, pretrained):
    output = f"{folders['root']}/run-tuned"
    started(
        "instruction_tune",
        *(REPOSITORY / "recipes" / "instruction-b.yaml", "--model", pretrained, "--shuffle-options"),
        *("--train-data", folders["Workload"], folders["HMC"], "--weights", "1", "3", "--channel-dropout", "0.3"),
        *("--text-data", folders["text"], "--text-batch-size", "2", "--dataloader-num-workers", "0"),
        *("--save-strategy", "steps", "--early-stopping-patience", "3", "--output-dir", output, *SHORT),
    )
    return output


@pytest.fixture(scope="module")
def adapter(folders, pretrained):
    output = f"{folders['root']}/run-adapter"
    assert tune_adapter(folders, pretrained, output) == 0
    return output


def tune_adapter(folders, pretrained, output):
    """Exit status of the command."""
    arguments = [
        *(REPOSITORY / "recipes" / "instruction-lora.yaml", "--model", pretrained, "--save-merged"),
        *("--train-data", folders["Workload"], folders["HMC"], "--weights", "1", "3", "--learning-rate", "0.05"),
        *("--save-strategy", "steps", "--output-dir", output, *SHORT),
    ]
    return here("instruction_tune", *arguments)


def test_the_tokenizer_is_trained_and_written(folders, vq):
    made = results(vq)
    assert made["provenance"]["steps"] == 3
    assert [one["folder"] for one in made["provenance"]["data"]] == ["Workload", "corpus"]
    assert made["provenance"]["data"][0]["subjects"] == [f"train{index}" for index in range(8)]
    for name in ("frequency_loss", "raw_loss", "codebook_usage", "perplexity"):
        assert made["validation"][f"eval_{name}"] > 0
    logged = [entry for entry in made["log"] if "text_alignment_loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    model = NeuroLMVQModel.from_pretrained(vq)
    assert model.config.hidden_size == 32
    assert model.config.provenance["recipe"] == "vq-cpu.yaml"
    assert {path.name for path in (Path(vq) / "reconstruction").iterdir()} == {"step-2.png", "step-3.png"}
    # standardised: what a language model reads has mean 0 and variance 1
    collate = EEGCollator(EEGFeatureExtractor(notch_frequency=50))
    rows = [row for folder in ("Workload", "corpus") for row in load_prepared(folders[folder], "train")]
    batch = {name: value for name, value in collate(rows).items() if name != "rows"}
    with torch.no_grad():
        features = model.encode(**batch).features.flatten(0, 1)
    assert features.mean(0).abs().max() < 0.5
    assert 0.5 < features.std(0).mean() < 1.5


def test_tensorboard_follows_both_losses(vq, pretrained):
    for folder, names in (
        (vq, ("train/raw_loss", "eval/perplexity")),
        (pretrained, ("train/eeg_loss", "eval/eeg_accuracy")),
    ):
        run_folder = next((Path(folder) / "runs").iterdir())
        events = EventAccumulator(str(run_folder))
        events.Reload()
        for name in names:
            assert name in events.Tags()["scalars"]
    assert [event.step for event in events.Scalars("train/eeg_loss")] == [1, 2, 3]


def test_the_language_model_is_pretrained_with_text(pretrained, vq):
    model = NeuroLMForCausalLM.from_pretrained(pretrained)
    assert model.config.stage == "pretrained"
    assert model.config.provenance["started_from"]["vq"] == vq
    made = results(pretrained)
    assert all(entry["text_loss"] > 0 and entry["eeg_loss"] > 0 for entry in made["log"] if "eeg_loss" in entry)
    assert 0 <= made["validation"]["eval_eeg_accuracy"] <= 1
    # on blocks of text that were held out
    assert made["validation"]["eval_text_loss"] > 0
    codes = NeuroLMVQModel.from_pretrained(vq).encoder.quantizer.codebook
    assert torch.equal(model.model.eeg_encoder.quantizer.codebook, codes)


def test_two_tasks_are_learnt_at_once(tuned):
    model = NeuroLMForCausalLM.from_pretrained(tuned)
    assert model.config.stage == "instruction-tuned"
    assert [task["name"] for task in model.config.tasks] == list(TASKS)
    made = results(tuned)
    metrics = made["validation"]
    logged = [entry for entry in made["log"] if "answer_loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    for entry in logged:
        # answers and text are means of their own
        assert entry["loss"] == pytest.approx(entry["answer_loss"] + entry["text_loss"], rel=1e-3)
    accuracies = [metrics[f"eval_{task}_balanced_accuracy"] for task in TASKS]
    assert metrics["eval_balanced_accuracy"] == pytest.approx(sum(accuracies) / 2)
    best = max(entry["eval_balanced_accuracy"] for entry in made["log"] if "eval_balanced_accuracy" in entry)
    assert metrics["eval_balanced_accuracy"] == best
    # the best checkpoint is the one that is kept
    kept, chosen = (load_file(Path(folder) / "model.safetensors") for folder in (tuned, made["best_checkpoint"]))
    assert kept.keys() == chosen.keys()
    assert all(torch.equal(value, chosen[name]) for name, value in kept.items())


def test_everything_opens_without_the_package(folders, vq, pretrained, tuned, adapter, tmp_path):
    """Answers of model, adapter and merged model, there and here."""
    rows = load_prepared(folders["Workload"], "validation")
    signals = torch.stack([torch.from_numpy(row_signal(row)) for row in rows])
    save_file({"signals": signals}, tmp_path / "signals.safetensors")
    question = load_task("Workload").prompt()
    recipe = EEGFeatureExtractor(notch_frequency=50).recipe_id
    run(
        """
        from peft import AutoPeftModelForCausalLM
        vq, tuned, base, adapter, merged, question, recipe, out = sys.argv[3:]
        made = {}
        for name, place, kind in (
            ("tuned", tuned, AutoModelForCausalLM),
            ("base", base, AutoModelForCausalLM),
            ("adapter", adapter, AutoPeftModelForCausalLM),
            ("merged", merged, AutoModelForCausalLM),
        ):
            model = kind.from_pretrained(place, **trust).eval()
            processor = AutoProcessor.from_pretrained(place, **trust)
            eeg = [[signal.numpy()] for signal in inputs["signals"]]
            names = [[["FP1", "FP2"]]] * len(eeg)
            texts = [question] * len(eeg)
            batch = processor(eeg=eeg, text=texts, ch_names=names, prepared_by=recipe, return_tensors="pt")
            with torch.no_grad():
                made[name] = model(**batch).logits[:, -1].contiguous()
        # an adapter says what it was taught
        config = AutoConfig.from_pretrained(adapter, **trust)
        assert config.stage == "instruction-tuned"
        assert question in [f"[SEP]{task['question']} Answer:" for task in config.tasks]
        assert AutoModel.from_pretrained(vq, **trust).config.codebook_size == 16
        assert AutoModelForPreTraining.from_pretrained(vq, **trust).text_embedding.weight.shape[1] == 32
        assert AutoFeatureExtractor.from_pretrained(vq, **trust).recipe_id == recipe
        save_file(made, out)
        """,
        folders["vq"],
        tmp_path / "signals.safetensors",
        *(vq, tuned, pretrained, adapter, f"{adapter}/merged", question, recipe, tmp_path / "logits.safetensors"),
        cache=tmp_path,
    )
    logits = load_file(tmp_path / "logits.safetensors")
    assert torch.allclose(logits["adapter"], logits["merged"], atol=1e-5)
    assert not torch.allclose(logits["adapter"], logits["base"], atol=1e-3)
    assert results(adapter)["tasks"] == [load_task(name).config_entry() for name in TASKS]
    merged = NeuroLMForCausalLM.from_pretrained(f"{adapter}/merged")
    assert merged.config.stage == "instruction-tuned"
    assert merged.config.tasks == NeuroLMConfig.from_pretrained(adapter).tasks == results(adapter)["tasks"]
    assert merged.config.provenance == NeuroLMConfig.from_pretrained(adapter).provenance


def test_an_adapter_is_no_model_to_start_from(folders, adapter, tmp_path, capsys):
    start = ["--model", adapter, "--train-data", folders["Workload"], "--use-cpu", "--output-dir", tmp_path / "run"]
    assert here("instruction_tune", *start) == 1
    assert f"{adapter} is an adapter: merge it" in capsys.readouterr().err


def test_feature_noise_belongs_to_the_training_and_not_to_the_model(folders):
    tune = script_module("instruction_tune")
    options = tune.InstructionOptions(train_data=["data"], model=folders["model"], feature_noise=0.5)
    model, _ = tune.starting_model(options)
    assert model.model.feature_noise == 0.5
    assert "feature_noise" not in model.config.to_dict()


def test_a_run_that_has_ended_writes_the_same_model_again(folders, vq, capsys):
    before = (Path(vq) / "model.safetensors").read_bytes()
    again = [
        *(REPOSITORY / "recipes" / "vq-cpu.yaml", "--from-scratch", "--vq-config", json.dumps(TINY_VQ)),
        *("--text-model", folders["gpt2"], "--text-data", folders["text"], "--text-batch-size", "2"),
        *("--train-data", folders["Workload"], folders["corpus"], "--weights", "2", "1"),
        *("--quantizer-warmup-steps", "1", "--output-dir", vq, *SHORT),
    ]
    assert here("train_vq", *again) == 0
    assert "this run has ended, at step 3" in capsys.readouterr().out
    assert (Path(vq) / "model.safetensors").read_bytes() == before
    assert here("train_vq", *again, "--learning-rate", "1e-5") == 1
    assert "learning_rate was 0.0015 and is 1e-05 now" in capsys.readouterr().err


def test_every_training_leaves_its_card(folders, vq, pretrained, tuned, adapter):
    for folder in (vq, pretrained, tuned, adapter, f"{adapter}/merged"):
        assert (Path(folder) / "README.md").read_text() == model_card(folder)
    card = Path(adapter) / "README.md"
    written = card.read_text()
    titles = ["### Neural tokenizer", "### Pre-training", "### Instruction tuning"]
    assert [line for line in written.splitlines() if line.startswith("### ")] == titles
    # 8 subjects of two windows of 4 s and of 30 s, at European mains
    assert "| Workload | Workload | 8 | 0.02 | 16 | 4 | 50 Hz |" in written
    assert "| HMC | HMC | 8 | 0.02 | 16 | 30 | 50 Hz |" in written
    # peft touches the head of every card that it finds
    assert tune_adapter(folders, pretrained, adapter) == 0
    assert card.read_text() == written
    card.write_text(written.replace("## Limits", "## What I know\n\nLittle.\n\n## Limits"))
    assert tune_adapter(folders, pretrained, adapter) == 0
    assert "## What I know\n\nLittle." in card.read_text()
    card.write_text(written)


def long_run(script, folders):
    """Arguments of a run of six steps whose every step is saved."""
    saved = ["--use-cpu", "--max-steps", "6", "--per-device-train-batch-size", "4", "--save-steps", "1"]
    saved += ["--text-data", folders["text"], "--text-batch-size", "2"]
    if script == "train_vq":
        # codes are revived, the quantiser bypassed, the features standardised at the end
        fields = json.dumps({**TINY_VQ, "dead_code_threshold": 0.1})
        start = ["--from-scratch", "--vq-config", fields, "--text-model", folders["gpt2"], "--standardize-features"]
        return [*start, *saved, "--quantizer-warmup-steps", "1", "--train-data", folders["Workload"]]
    if script == "pretrain":
        return ["--vq", folders["vq"], "--text-model", folders["gpt2"], *saved, "--train-data", folders["corpus"]]
    start = ["--model", folders["model"], "--channel-dropout", "0.3", "--shuffle-options", "--lora"]
    sets = [folders["Workload"], folders["HMC"]]
    return [*start, *saved, "--lora-dropout", "0.1", "--train-data", *sets, "--weights", "1", "2"]


def weights(folder):
    """The bytes of a finished run's weights."""
    (file,) = [one for one in Path(folder).glob("*model.safetensors")]
    return file.read_bytes()


def test_sigterm_saves_and_the_same_command_goes_on(folders, tmp_path, capsys, monkeypatch):
    arguments = long_run("train_vq", folders)
    assert here("train_vq", *arguments, "--output-dir", tmp_path / "whole") == 0

    class Preempted(EEGCollator):
        def __call__(self, rows):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(rows)

    with monkeypatch.context() as context:
        context.setattr(script_module("train_vq"), "EEGCollator", Preempted)
        assert here("train_vq", *arguments, "--output-dir", tmp_path / "stopped") == 143
    assert "SIGTERM: saved at step 1; start the same command again" in capsys.readouterr().out
    assert not (tmp_path / "stopped" / "training.json").exists()
    assert here("train_vq", *arguments, "--output-dir", tmp_path / "stopped") == 0
    assert "going on from step 1 of 6" in capsys.readouterr().out
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_vq", "pretrain", "instruction_tune"])
def test_killed_runs_end_with_the_same_weights(folders, tmp_path, script):
    """SIGKILL as soon as the second checkpoint is there; the third may be half-written."""
    arguments = long_run(script, folders)
    started(script, *arguments, "--output-dir", tmp_path / "whole")
    with open(tmp_path / "log", "w") as log:
        again = command(script, *arguments, "--output-dir", tmp_path / "killed")
        killed = subprocess.Popen(**again, stdout=log, stderr=log)
        while not (tmp_path / "killed" / "checkpoint-2" / "complete.json").exists():
            assert killed.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        killed.kill()
        killed.wait()
    assert not (tmp_path / "killed" / "training.json").exists()
    assert "going on from step" in started(script, *arguments, "--output-dir", tmp_path / "killed")
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def figures(folder):
    """Losses and norms of the gradient, step by step."""
    return [
        entry[name] for entry in results(folder)["log"] for name in ("loss", "grad_norm", "eval_loss") if name in entry
    ]


@pytest.mark.parametrize("script", ["train_vq", "pretrain", "instruction_tune"])
@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        (["--activation-checkpointing"], 1e-6),
        (["--torch-compile", "--torch-compile-backend", "eager"], 1e-5),
        pytest.param(["--torch-compile"], 1e-4, marks=pytest.mark.slow),
        (["--bf16"], 0.05),
    ],
    ids=["checkpointing", "compiled", "inductor", "bf16"],
)
def test_what_saves_time_or_memory_changes_no_figure(folders, tmp_path, script, option, tolerance):
    short = [*long_run(script, folders), "--max-steps", "2", "--eval-strategy", "steps", "--eval-steps", "2"]
    # what is dropped at random is not the same when it is compiled
    short += ["--logging-steps", "1", *(["--lora-dropout", "0"] if script == "instruction_tune" else [])]
    torch.compiler.reset()
    assert here(script, *short, "--output-dir", tmp_path / "plain") == 0
    assert here(script, *short, *option, "--output-dir", tmp_path / "given") == 0
    torch.compiler.reset()
    plain, given = figures(tmp_path / "plain"), figures(tmp_path / "given")
    assert len(plain) == 5
    assert given == pytest.approx(plain, rel=tolerance)
    if option == ["--bf16"]:
        assert given != plain


@pytest.mark.parametrize("kind", ["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def test_other_decoders_start_and_are_tuned(folders, kind, tmp_path):
    short = ["--use-cpu", "--max-steps", "2", "--per-device-train-batch-size", "4"]
    start = ["--vq", folders["vq"], "--text-model", folders[kind], "--train-data", folders["corpus"]]
    assert here("pretrain", *start, "--output-dir", tmp_path / "pretrained", *short) == 0
    tune = [
        "--model",
        tmp_path / "pretrained",
        "--train-data",
        folders["Workload"],
        "--lora",
        "--lora-targets",
        "q_proj",
    ]
    assert here("instruction_tune", *tune, "--output-dir", tmp_path / "adapter", *short) == 0
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "pretrained")
    assert here("instruction_tune", *tune[:4], "--tune-eeg-encoder", "--output-dir", tmp_path / "all", *short) == 0
    before, after = (
        NeuroLMForCausalLM.from_pretrained(tmp_path / name).model.eeg_encoder for name in ("pretrained", "all")
    )
    assert not torch.equal(before.transformer.layers[0].mlp_in.weight, after.transformer.layers[0].mlp_in.weight)


@pytest.mark.parametrize("adversary", [False, True])
def test_a_tokenizer_that_is_trained_further_tells_of_both_trainings(folders, tmp_path, adversary):
    start = shutil.copytree(folders["vq"], tmp_path / "vq")
    file = start / "config.json"
    known = {"data": [{"task": "Corpus", "subjects": ["s0"]}]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"provenance": known}))
    short = ["--use-cpu", "--max-steps", "1", "--per-device-train-batch-size", "4", "--train-data", folders["corpus"]]
    text = ["--text-model", folders["gpt2"], "--text-data", folders["text"], "--text-batch-size", "2"]
    given = ["--vq", start, *short, *(text if adversary else []), "--output-dir", tmp_path / "run"]
    assert here("train_vq", *given) == 0
    made = NeuroLMVQModel.from_pretrained(tmp_path / "run").config.provenance
    assert made["started_from"]["provenance"] == known
    assert made["data"][0]["task"] == "Corpus"


def test_a_text_model_from_scratch_and_a_release_to_go_on_from(folders, tmp_path):
    short = ["--use-cpu", "--max-steps", "1", "--per-device-train-batch-size", "4", "--train-data", folders["corpus"]]
    sizes = json.dumps({"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64})
    new = ["--text-from-scratch", "gpt2", "--text-config", sizes, "--text-tokenizer", folders["tokenizer"]]
    assert here("pretrain", "--vq", folders["vq"], *new, "--output-dir", tmp_path / "new", *short) == 0
    assert NeuroLMForCausalLM.from_pretrained(tmp_path / "new").config.get_text_config().n_embd == 16
    assert here("pretrain", "--model", tmp_path / "new", "--output-dir", tmp_path / "on", *short) == 0
    assert results(tmp_path / "on")["provenance"]["started_from"]["provenance"]["steps"] == 1


def test_a_release_without_codes_cannot_be_pretrained(folders, tmp_path, capsys):
    config = NeuroLMConfig.from_pretrained(folders["model"])
    config.eeg_config.has_codebook = False
    NeuroLMForCausalLM(config).save_pretrained(tmp_path / "model")
    NeuroLMProcessor.from_pretrained(folders["model"]).save_pretrained(tmp_path / "model")
    start = ["--model", tmp_path / "model", "--train-data", folders["corpus"], "--use-cpu"]
    assert here("pretrain", *start, "--output-dir", tmp_path / "run") == 1
    assert "has no codes to predict: convert it again, with --vq" in capsys.readouterr().err


def test_without_pretraining_a_tokenizer_and_a_text_model_are_tuned(folders, tmp_path):
    start = ["--vq", folders["vq"], "--text-model", folders["gpt2"], "--train-data", folders["Workload"]]
    short = ["--use-cpu", "--max-steps", "1", "--output-dir", tmp_path]
    assert here("instruction_tune", *start, *short) == 0
    model = NeuroLMForCausalLM.from_pretrained(tmp_path)
    task = load_task("Workload")
    processor = NeuroLMProcessor.from_pretrained(tmp_path)
    rows = load_prepared(folders["Workload"], "validation")
    probabilities = answer_probabilities(
        model,
        processor,
        [row_signal(row) for row in rows],
        task,
        ch_names=[list(row["channels"]) for row in rows],
        prepared_by=rows[0]["recipe_id"],
    )
    assert probabilities.shape == (6, 2)


def test_a_row_that_cannot_be_read_is_named_or_left_out(folders, tmp_path, capsys, monkeypatch):
    """A recording whose channels are none of the vocabulary's, found only when its row is read."""
    import prepared_folders

    monkeypatch.setattr(
        prepared_folders, "encode_row", lambda signal, channels, **fields: spoilt(signal, channels, fields)
    )
    folder = write_sets(tmp_path / "spoilt", splits={"train": 4})
    start = ["--from-scratch", "--vq-config", json.dumps(TINY_VQ), "--train-data", folder, "--use-cpu"]
    short = ["--max-steps", "2", "--per-device-train-batch-size", "8"]
    assert here("train_vq", *start, *short, "--output-dir", tmp_path / "run") == 1
    assert "train-2.edf at 4 s" in capsys.readouterr().err
    assert here("train_vq", *start, *short, "--output-dir", tmp_path / "run", "--skip-bad-rows") == 0
    (skipped,) = results(tmp_path / "run")["skipped_rows"]
    assert "train-2.edf at 4 s" in skipped


def spoilt(signal, channels, fields):
    from neurolm_hf.storage import encode_row

    row = encode_row(signal, channels, **fields)
    if fields["recording"] == "train-2.edf" and fields["start"] == 4.0:
        row["channels"] = ["FP1", "NOWHERE"]
    return row


def filled(text, folders):
    """The text with the folders that it names."""
    for name, folder in folders.items():
        text = text.replace(f"{{{name}}}", folder)
    return text


NEW_VQ = ["--from-scratch", "--vq-config", json.dumps(TINY_VQ)]


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_vq", [*NEW_VQ, "--train-data", "{text}"], "is prepared text: give it as --text-data"),
        ("train_vq", [*NEW_VQ, "--train-data", "{vq}"], "holds no finished prepared set"),
        ("train_vq", [*NEW_VQ, "--train-data", "{Workload}", "{rescaled}"], "scale 10.0 and 100.0"),
        (
            "train_vq",
            [*NEW_VQ, "--train-data", "{unvalidated}", "--eval-strategy", "epoch"],
            "there is no validation split to evaluate on. Prepare with --split subject, or give --eval-strategy no.",
        ),
        (
            "train_vq",
            [*NEW_VQ, "--train-data", "{Workload}", "--text-model", "{wide}", "--text-data", "{text}"],
            "features are 32 wide, the embeddings of {wide} 64",
        ),
        ("train_vq", ["--vq", "{vq}", "--train-data", "{rescaled}"], "by another recipe than that of {vq}"),
        (
            "train_vq",
            ["--vq", "{vq}", "--vq-config", '{"hidden_size": 64}', "--train-data", "{Workload}"],
            "does not fit",
        ),
        ("train_vq", ["--vq", "{model}", "--train-data", "{Workload}"], "is a language model with its EEG encoder"),
        (
            "train_vq",
            [*NEW_VQ, "--train-data", "{Workload}", "--early-stopping-patience", "2"],
            "--early-stopping-patience needs --load-best-model-at-end",
        ),
        (
            "pretrain",
            ["--vq", "{vq}", "--text-model", "{gpt2}", "--train-data", "{rescaled}"],
            "rescaled was prepared by another recipe than that of {vq}: scale 10.0 and 100.0",
        ),
        ("pretrain", ["--model", "{vq}", "--train-data", "{corpus}"], "is a neural tokenizer: give it as --vq"),
        (
            "pretrain",
            ["--vq", "{gpt2}", "--text-model", "{gpt2}", "--train-data", "{corpus}"],
            "is a gpt2, not a neural",
        ),
        ("pretrain", ["--model", "{model}", "--train-data", "{text}"], "is prepared text"),
        (
            "pretrain",
            ["--model", "{model}", "--train-data", "{corpus}", "--text-data", "{long}"],
            "blocks of 300 tokens, but the model has 256 positions",
        ),
        (
            "pretrain",
            ["--model", "{model}", "--train-data", "{corpus}", "--text-data", "{corpus}"],
            "{corpus} is no prepared text",
        ),
        (
            "pretrain",
            ["--model", "{model}", "--train-data", "{corpus}", "{Workload}", "--weights", "1"],
            "weights",
        ),
        (
            "instruction_tune",
            ["--model", "{model}", "--train-data", "{corpus}"],
            "{corpus} is prepared for Corpus, which asks nothing",
        ),
        ("instruction_tune", ["--model", "{model}", "--train-data", "{text}"], "is prepared text"),
        ("instruction_tune", ["--model", "{gpt2}", "--train-data", "{Workload}"], "is a gpt2"),
        (
            "instruction_tune",
            ["--model", "{model}", "--train-data", "{Workload}", "--lora", "--lora-targets", "query"],
            "'query' is no linear layer of the language model; its layers are c_attn, c_fc, c_proj",
        ),
        (
            "instruction_tune",
            [
                *("--model", "{model}", "--train-data", "{unvalidated}", "--load-best-model-at-end"),
                *("--eval-strategy", "epoch", "--save-strategy", "epoch"),
            ],
            "or give --eval-strategy no --load-best-model-at-end false.",
        ),
        (
            "instruction_tune",
            ["--model", "{root}/nowhere", "--train-data", "{Workload}"],
            "{root}/nowhere is no folder here",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_and_status_1(folders, tmp_path, capsys, script, arguments, words):
    arguments = [filled(argument, folders) for argument in arguments]
    output = tmp_path / "run"
    assert here(script, *arguments, "--use-cpu", "--max-steps", "1", "--output-dir", output) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert filled(words, folders) in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("train_vq", [], "give --vq, a trained neural tokenizer, or --from-scratch"),
        ("train_vq", ["--from-scratch", "--text-model", "gpt2"], "needs --text-model and --text-data"),
        ("train_vq", ["--from-scratch", "--vq-config", "{"], "vq_config is not JSON"),
        ("pretrain", [], "give --vq with a language model to start from, or --model"),
        ("pretrain", ["--vq", "vq"], "--vq needs --text-model, or --text-from-scratch"),
        ("pretrain", ["--vq", "vq", "--text-from-scratch", "gpt2"], "--text-from-scratch needs --text-tokenizer"),
        ("pretrain", ["--model", "model", "--text-model", "gpt2"], "--model has a language model already"),
        ("instruction_tune", [], "give --model, a pre-trained NeuroLM"),
        ("instruction_tune", ["--vq", "vq"], "--vq and --text-model belong together"),
        ("instruction_tune", ["--vq", "vq", "--text-model", "gpt2", "--lora"], "--lora needs --model"),
        ("instruction_tune", ["--model", "model", "--save-merged"], "--save-merged is about the adapter"),
        (
            "instruction_tune",
            ["recipes/instruction-lora.yaml", "--model", "model", "--cache-eeg-features"],
            "--channel-dropout does not go with it (a recipe's is cleared by --channel-dropout 0)",
        ),
        (
            "instruction_tune",
            ["--model", "model", "--cache-eeg-features", "--tune-eeg-encoder"],
            "--tune-eeg-encoder does not go with it",
        ),
        ("instruction_tune", ["--model", "model", "--lora", "--tune-eeg-encoder"], "does not go with it"),
        ("instruction_tune", ["--model", "model", "--channel-dropout", "1"], "--channel-dropout is a share from 0"),
        ("instruction_tune", ["--model", "model", "--dropout", "1"], "--dropout is a share from 0 to below 1"),
        ("instruction_tune", ["--model", "model", "--lora", "--lora-dropout", "-0.1"], "--lora-dropout is a share"),
        ("instruction_tune", ["--model", "model", "--feature-noise", "-1"], "--feature-noise is a standard deviation"),
        ("instruction_tune", ["--model", "model", "--lora-rank", "16"], "--lora-rank: only for an adapter"),
        (
            "instruction_tune",
            ["recipes/instruction-lora.yaml", "--model", "model", "--lora", "false"],
            "--lora-rank, --lora-alpha, --lora-dropout, --lora-eeg-projector, --lora-new-tokens: only for an adapter",
        ),
        (
            "pretrain",
            ["--model", "model", "--model-config", '{"channel_initializer_range": 2.0}'],
            "--model has a configuration already: leave --model-config out",
        ),
        (
            "pretrain",
            ["--vq", "vq", "--text-model", "gpt2", "--text-config", '{"n_layer": 1}'],
            "--text-config is for --text-from-scratch: leave it out",
        ),
        (
            "pretrain",
            ["recipes/pretrain-cpu.yaml", "--vq", "vq", "--text-model", "gpt2"],
            "clear the recipe's with --text-config {}",
        ),
        *(
            (script, [recipe, *start], "blocks of text a step are asked for: give --text-data, or --text-batch-size 0")
            for script, recipe, start in (
                ("train_vq", "recipes/vq-paper.yaml", ["--from-scratch"]),
                ("pretrain", "recipes/pretrain-b.yaml", ["--vq", "vq", "--text-model", "gpt2"]),
                ("instruction_tune", "recipes/instruction-b.yaml", ["--model", "model"]),
            )
        ),
        ("pretrain", ["--model", "model", "--text-batch-size", "-3"], "--text-batch-size is 0 or more, not -3"),
    ],
)
def test_options_that_do_not_go_together_are_wrong_usage(capsys, monkeypatch, script, arguments, words):
    monkeypatch.chdir(REPOSITORY)
    assert here(script, *arguments, "--train-data", "data", "--output-dir", "out", "--use-cpu") == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert words in error
