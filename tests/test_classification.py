"""Classifiers: what their heads read, what they lose, what trains, and that they open from other checkpoints."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from small_trainings import ROWS as WINDOWS
from small_trainings import TASK, GradientCallback, arguments, assert_same_steps, fixed, make_processor
from small_trainings import language_model as window_model
from test_lora import stir, trained_modules
from test_remote_code import run
from tiny import (
    EEG,
    EEG_TOKEN_ID,
    ROWS,
    SEP,
    language_model,
    lm_batch,
    lm_config,
    randomize,
    vq_batch,
    vq_config,
    vq_model,
)
from transformers import AutoModelForSequenceClassification, Trainer
from transformers.loss.loss_utils import ForSequenceClassificationLoss

from neurolm_hf import (
    NeuroLMForCausalLM,
    NeuroLMForSequenceClassification,
    NeuroLMVQForPreTraining,
    NeuroLMVQForSequenceClassification,
    NeuroLMVQModel,
)
from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.metrics import balanced_accuracy
from neurolm_hf.training import NeuroLMTrainer


POOLINGS = ("last_token", "mean", "encoder_mean")
# no row without EEG, which `encoder_mean` could not read
WITH_EEG = [row for row in ROWS if any(isinstance(piece, EEG) for piece in row)]
SAMPLES = [EEG((3, 7), 2, seed=1), EEG((1,), 5, seed=2), EEG((0, 3, 5), 1, seed=3)]
LABELS = {
    "single_label_classification": torch.tensor([2, 0, 1]),
    "multi_label_classification": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]),
    "regression": torch.tensor([[0.3, -2.0, 1.0], [0.0, 0.5, 0.1], [1.0, 2.0, -1.0]]),
}
WINDOW_LABELS = [{**row, "label": index % 2} for index, row in enumerate(WINDOWS)]


def classifier(pooling="last_token", backbone="gpt2", width=48, **changes):
    torch.manual_seed(0)
    config = lm_config(backbone, width, classifier_pooling=pooling, **{"num_labels": 3, **changes})
    return randomize(NeuroLMForSequenceClassification(config))


def vq_classifier(**changes):
    torch.manual_seed(0)
    return randomize(NeuroLMVQForSequenceClassification(vq_config(num_labels=3, **changes)))


def gradients(model, batch, **more):
    model.zero_grad()
    model(**batch, **more).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def without(batch, *names):
    return {name: value for name, value in batch.items() if name not in names}


# --- what the head reads ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["gpt2", "qwen3"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_head_reads_what_the_config_says(pooling, backbone):
    model = classifier(pooling, backbone)
    for row in WITH_EEG:
        batch = lm_batch([row])
        output = model(**batch)
        eeg = {name: value for name, value in batch.items() if name.startswith(("input_values", "eeg_"))}
        hidden = model.model(**batch).last_hidden_state[0]
        expected = {
            "last_token": hidden[-1],
            "mean": hidden.mean(0),
            "encoder_mean": model.model.encode_eeg(**eeg).features[0].mean(0),
        }[pooling]
        torch.testing.assert_close(output.features[0], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(output.logits, output.features @ model.score.weight.T + model.score.bias)
        assert output.logits.shape == (1, 3)
        assert output.loss is None


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_and_batch_mates_change_nothing(pooling):
    model = classifier(pooling)
    rows = WITH_EEG if pooling == "encoder_mean" else ROWS
    expected = torch.cat([model(**lm_batch([row])).logits for row in rows])
    assert (expected[0] - expected[1]).abs().max() > 1e-2
    for side in ("left", "right"):
        for eeg_side in ("left", "right"):
            batch = lm_batch(rows, side, eeg_side, extra_padding=3)
            torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=1e-4)
            # as it is while training
            torch.testing.assert_close(model.train()(**batch).logits, expected, atol=1e-5, rtol=1e-4)
            model.eval()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_eeg_alone_needs_no_tokens(pooling):
    model = classifier(pooling)
    batch = lm_batch([[sample] for sample in SAMPLES])
    expected = model(**batch).logits
    alone = without(batch, "input_ids", "attention_mask", "mm_token_type_ids")
    torch.testing.assert_close(model(**alone).logits, expected, atol=1e-5, rtol=1e-4)
    one = {name: value[:1, : SAMPLES[0].patches] for name, value in alone.items()}
    torch.testing.assert_close(model(**without(one, "eeg_attention_mask")).logits, expected[:1], atol=1e-5, rtol=1e-4)
    # a vocabulary that begins with the placeholder
    other = classifier(pooling, eeg_token_id=0)
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == EEG_TOKEN_ID, 0)
    torch.testing.assert_close(other(**alone).logits, other(**batch).logits, atol=1e-5, rtol=1e-4)


def test_the_mean_of_the_encoder_needs_no_language_model():
    model, batch = classifier("encoder_mean"), lm_batch(WITH_EEG)
    expected = model(**batch).logits
    features = model.model.encode_eeg(
        **{name: value for name, value in batch.items() if name.startswith(("input_values", "eeg_"))}
    ).features
    model.model.language_model.forward = None
    torch.testing.assert_close(model(**batch).logits, expected)
    kept = model(**without(batch, "input_values"), eeg_features=features)
    torch.testing.assert_close(kept.logits, expected)


def test_features_that_were_computed_before_and_embeddings():
    model, batch = classifier("mean"), lm_batch(WITH_EEG)
    expected = model(**batch).logits
    eeg = {name: value for name, value in batch.items() if name.startswith(("input_values", "eeg_"))}
    kept = model(**without(batch, "input_values"), eeg_features=model.model.encode_eeg(**eeg).features)
    torch.testing.assert_close(kept.logits, expected)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    torch.testing.assert_close(model(**without(batch, "input_ids"), inputs_embeds=embeds).logits, expected)


def test_hidden_states_attentions_and_tuples():
    model = classifier()
    model.set_attn_implementation("eager")
    batch = lm_batch(ROWS)
    output = model(**batch, output_hidden_states=True, output_attentions=True)
    rows, tokens = batch["input_ids"].shape
    assert [state.shape for state in output.hidden_states] == [(rows, tokens, 48)] * 3
    assert [weights.shape for weights in output.attentions] == [(rows, 4, tokens, tokens)] * 2
    torch.testing.assert_close(output.features, output.hidden_states[-1][:, -1])
    assert model(**batch).hidden_states is None
    loss, logits, *_ = model(**batch, labels=torch.tensor([0, 1, 2, 0]), return_dict=False)
    torch.testing.assert_close(logits, output.logits, atol=1e-5, rtol=1e-4)
    assert loss.ndim == 0


def test_wrong_inputs_are_refused():
    model, batch = classifier(), lm_batch(ROWS)
    with pytest.raises(ValueError, match="There is nothing to classify"):
        model(attention_mask=batch["attention_mask"])
    with pytest.raises(ValueError, match=r"`attention_mask` as \(batch, tokens\)"):
        model(**{**batch, "attention_mask": torch.ones(4, 1, 2, 2)})
    encoder = classifier("encoder_mean")
    with pytest.raises(ValueError, match="reads EEG alone: give `input_values`"):
        encoder(input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="Sample 1 has no EEG"):
        encoder(**batch)
    with pytest.raises(StrictDataclassFieldValidationError, match="classifier_pooling"):
        lm_config(classifier_pooling="cls")


# --- labels and losses -----------------------------------------------------------------------------------------------


def losses_of(model, batch, labels, problem_type):
    """(ours, torch's own, transformers')."""
    output = model(**batch, labels=labels)
    assert model.config.problem_type == problem_type
    own = {
        "single_label_classification": F.cross_entropy,
        "multi_label_classification": F.binary_cross_entropy_with_logits,
        "regression": F.mse_loss,
    }[problem_type](output.logits, labels.view_as(output.logits) if labels.is_floating_point() else labels)
    theirs = ForSequenceClassificationLoss(labels, output.logits, model.config)
    torch.testing.assert_close(output.sample_losses.mean(), output.loss)
    return output.loss, own, theirs


@pytest.mark.parametrize("problem_type", LABELS)
@pytest.mark.parametrize("make", [classifier, vq_classifier])
def test_losses_are_torchs_own(make, problem_type):
    model = make(problem_type=problem_type)
    of_tokenizer = make is vq_classifier
    batch = vq_batch(*SAMPLES) if of_tokenizer else lm_batch(WITH_EEG)
    ours, own, theirs = losses_of(model, batch, LABELS[problem_type], problem_type)
    torch.testing.assert_close(ours, own)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("labels", "num_labels", "problem_type"),
    [
        (torch.tensor([1, 0, 1]), 2, "single_label_classification"),
        (torch.eye(3)[:, :2], 2, "multi_label_classification"),
        (torch.tensor([0.2, -1.0, 3.0]), 1, "regression"),
    ],
)
def test_the_problem_is_told_from_the_labels(labels, num_labels, problem_type):
    model = vq_classifier()
    model.config.num_labels = num_labels
    model.score = torch.nn.Linear(32, num_labels)
    ours, own, theirs = losses_of(model, vq_batch(*SAMPLES), labels, problem_type)
    torch.testing.assert_close(ours, own)
    torch.testing.assert_close(ours, theirs)


def test_labels_that_do_not_fit_are_refused():
    model, batch = vq_classifier(problem_type="single_label_classification"), vq_batch(*SAMPLES)
    with pytest.raises(ValueError, match="label of sample 1 is 3, but the head has 3 classes, 0 to 2"):
        model(**batch, labels=torch.tensor([0, 3, 1]))
    with pytest.raises(ValueError, match=r"must have the shape \(3,\), got \(3, 3\)"):
        model(**batch, labels=LABELS["multi_label_classification"])
    with pytest.raises(ValueError, match=r"must be integers, got torch.float32"):
        model(**batch, labels=torch.tensor([0.0, 1.0, 2.0]))
    model.config.problem_type = "regression"
    with pytest.raises(ValueError, match=r"for regression must have the shape \(3, 3\), got \(3,\)"):
        model(**batch, labels=torch.tensor([0, 2, 1]))


def test_ignored_labels_enter_nothing():
    model, batch = classifier(), lm_batch(WITH_EEG)
    labels = torch.tensor([2, -100, 1])
    output = model(**batch, labels=labels)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
    assert output.sample_losses[1] == 0
    assert model.count_loss_items(labels=labels).tolist() == [2.0]
    assert model(**batch, labels=torch.full((3,), -100)).loss == 0


@pytest.mark.parametrize("problem_type", LABELS)
def test_counts_of_a_step_make_a_batch_s_loss_its_share(problem_type):
    model, labels = classifier(problem_type=problem_type), LABELS[problem_type]
    whole = model(**lm_batch(WITH_EEG), labels=labels).loss
    count = sum(model.count_loss_items(labels=labels[part]) for part in (slice(0, 1), slice(1, 3)))
    shares = [
        model(**lm_batch(WITH_EEG[part]), labels=labels[part], num_items_in_batch=count).loss
        for part in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(shares), whole)


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradients_are_where_they_should_be(pooling, frozen):
    model = classifier(pooling, freeze_eeg_encoder=frozen).train()
    got = gradients(model, lm_batch(WITH_EEG), labels=torch.tensor([0, 1, 2]))
    assert got.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    parts = {"score": {"score"}, "encoder": {"eeg_encoder"}}
    reached = {name.removeprefix("model.").partition(".")[0] for name in got}
    rest = set() if pooling == "encoder_mean" else {"eeg_projector", "channel_embedding", "language_model"}
    assert reached == parts["score"] | rest | (set() if frozen else parts["encoder"])
    assert not any("to_codebook" in name or "quantizer" in name for name in got)
    assert model.model.eeg_encoder.training != frozen
    # a batch of text alone touches the same parameters, so that no process waits for another
    if pooling != "encoder_mean":
        assert gradients(model, lm_batch([[5, 6, 7]]), labels=torch.tensor([1])).keys() == got.keys()


def test_gradients_of_the_tokenizer_s_classifier():
    model = vq_classifier().train()
    got = gradients(model, vq_batch(*SAMPLES), labels=torch.tensor([0, 1, 2]))
    assert got.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.partition(".")[0] for name in got} == {"encoder", "score"}
    assert not any("to_codebook" in name for name in got)
    assert not model.encoder.quantizer._pending_batches


@pytest.mark.parametrize("pooling", POOLINGS)
def test_gradient_checkpointing_gives_the_same_gradients(pooling):
    model = classifier(pooling, freeze_eeg_encoder=False).train()
    batch, labels = lm_batch(WITH_EEG), torch.tensor([0, 1, 2])
    expected = gradients(model, batch, labels=labels)
    for reentrant in (False, True):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        got = gradients(model, batch, labels=labels)
        assert got.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(got[name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_bfloat16(pooling, tmp_path):
    model, batch = classifier(pooling), lm_batch(WITH_EEG)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = NeuroLMForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.model.eeg_encoder.quantizer.codebook.dtype == torch.float32
    for labels in LABELS.values():
        loaded.config.problem_type = None
        output = loaded.train()(**batch, labels=labels)
        assert output.logits.dtype == torch.bfloat16
        assert output.loss.dtype == torch.float32
        output.loss.backward()
    torch.testing.assert_close(output.logits.float(), expected, atol=0.3, rtol=0.1)


def window_classifier(processor, **changes):
    """For the windows of `small_trainings`."""
    config = copy.deepcopy(window_model(processor).config)
    config.update({"num_labels": 2, "classifier_pooling": "mean", **changes})
    torch.manual_seed(0)
    return randomize(NeuroLMForSequenceClassification(config))


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.mark.parametrize("with_question", [False, True])
def test_a_plain_trainer_fine_tunes_and_evaluates(processor, tmp_path, with_question):
    model = window_classifier(processor)
    before = copy.deepcopy(model.state_dict())
    seen = []
    trainer = Trainer(
        model,
        arguments(tmp_path, max_steps=30, learning_rate=3e-3, gradient_accumulation_steps=2),
        train_dataset=WINDOW_LABELS,
        eval_dataset=WINDOW_LABELS,
        data_collator=ClassificationCollator(processor, with_question, TASK),
        compute_metrics=lambda prediction: seen.append(prediction) or {},
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.5 * first
    labels = [row["label"] for row in WINDOW_LABELS]
    assert seen[-1].predictions.shape == (len(labels), 2)
    assert seen[-1].label_ids.tolist() == labels
    assert seen[-1].predictions.argmax(1).tolist() == labels
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {"score.weight", "score.bias"} <= moved
    assert not any("eeg_encoder" in name for name in moved)


@pytest.mark.parametrize("micro", [(7, 1), (2, 4)])
def test_a_step_is_one_large_batch_however_it_is_cut(processor, tmp_path, micro):
    size, accumulation = micro
    model = window_classifier(processor)
    collate = ClassificationCollator(processor)
    batch = collate(WINDOW_LABELS)
    expected = gradients(copy.deepcopy(model).train(), without(batch, "rows"))
    steps = GradientCallback()
    trainer = NeuroLMTrainer(
        model=model,
        args=fixed(
            tmp_path,
            max_steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=3,
        ),
        train_dataset=WINDOW_LABELS,
        eval_dataset=WINDOW_LABELS,
        data_collator=collate,
        callbacks=[steps],
    )
    trainer.train()
    assert_same_steps(steps.steps, [expected])
    metrics = trainer.evaluate()
    with torch.no_grad():
        output = model.eval()(**batch)
    labels = batch["labels"].tolist()
    assert metrics["eval_loss"] == pytest.approx(float(output.loss), rel=1e-5)
    assert metrics["eval_balanced_accuracy"] == balanced_accuracy(labels, output.logits.argmax(1))


def test_regression_and_several_labels_are_judged_by_their_loss(processor, tmp_path):
    for labels in (np.linspace(-1, 1, 7, dtype=np.float32), np.eye(2, dtype=np.float32)[[0, 1, 1, 0, 1, 0, 0]]):
        model = window_classifier(processor, num_labels=1 if labels.ndim == 1 else 2)
        rows = [{**row, "label": label} for row, label in zip(WINDOWS, labels, strict=True)]
        collate = ClassificationCollator(processor)
        trainer = NeuroLMTrainer(model=model, args=arguments(tmp_path), eval_dataset=rows, data_collator=collate)
        metrics = trainer.evaluate()
        with torch.no_grad():
            assert metrics["eval_loss"] == pytest.approx(float(model(**collate(rows)).loss), rel=1e-5)
        assert "eval_balanced_accuracy" not in metrics


# --- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [classifier, vq_classifier])
def test_saved_and_loaded_bit_for_bit(make, tmp_path):
    names = {0: "Wake", 1: "REM", 2: "NREM"}
    model = make(id2label=names, label2id={name: place for place, name in names.items()})
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert loaded.config.id2label == names
    assert type(AutoModelForSequenceClassification.from_pretrained(tmp_path)) is type(model)
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == {
        name for name, p in model.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_language_model_gets_a_new_head_and_loses_nothing_else(pooling, tmp_path):
    whole = language_model("gpt2", 48)
    whole.save_pretrained(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, classifier_pooling=pooling, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"score.weight", "score.bias"}
    # the old heads are known; what is not would be told
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], value), name
    assert model.score.weight.shape == (5, 32 if pooling == "encoder_mean" else 48)
    assert not any(p.requires_grad for p in model.train().model.eeg_encoder.parameters())
    assert not model.model.eeg_encoder.training
    tuned = NeuroLMForSequenceClassification.from_pretrained(tmp_path, freeze_eeg_encoder=False)
    assert tuned.model.eeg_encoder.transformer.norm.weight.requires_grad
    # and back: the language model's heads are new then
    model.save_pretrained(tmp_path / "classifier")
    _, info = NeuroLMForCausalLM.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "code_head.weight"}
    assert set(info["unexpected_keys"]) == {"score.weight", "score.bias"}


@pytest.mark.parametrize("kind", [NeuroLMVQModel, NeuroLMVQForPreTraining])
def test_a_neural_tokenizer_gets_a_head(kind, tmp_path):
    whole = vq_model(kind)
    whole.save_pretrained(tmp_path)
    model, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    tokenizer = getattr(whole, "vq", whole)
    assert set(info["missing_keys"]) == {"score.weight", "score.bias"}
    assert not info["unexpected_keys"]
    for name, value in tokenizer.encoder.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], value), name
    batch = vq_batch(*SAMPLES, extra_padding=2)
    output = model(**batch, output_hidden_states=True)
    for row, sample in enumerate(SAMPLES):
        alone = tokenizer.encode(**vq_batch(sample)).features[0].mean(0)
        torch.testing.assert_close(output.features[row], alone, atol=1e-5, rtol=1e-4)
    assert len(output.hidden_states) == 3
    model.set_attn_implementation("eager")
    assert len(model(**batch, output_attentions=True).attentions) == 2
    assert not any(p.requires_grad for p in model.encoder.to_codebook.parameters())


@pytest.mark.parametrize("make", [classifier, vq_classifier])
def test_a_folder_opens_without_the_package(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "model")
    batch = vq_batch(*SAMPLES) if make is vq_classifier else lm_batch(ROWS)
    save_file(batch, tmp_path / "batch.safetensors")
    cache = tmp_path / "cache"
    cache.mkdir()
    printed, complaints = run(
        """
        from transformers import AutoModelForSequenceClassification
        model = AutoModelForSequenceClassification.from_pretrained(folder, **trust)
        print(type(model).__name__, type(model).__module__.split(".")[0])
        with torch.no_grad():
            save_file({"logits": model(**inputs).logits}, sys.argv[3])
        """,
        tmp_path / "model",
        tmp_path / "batch.safetensors",
        tmp_path / "logits.safetensors",
        cache=cache,
    )
    assert printed.split() == [type(model).__name__, "transformers_modules"]
    assert "MISSING" not in complaints
    with torch.no_grad():
        assert torch.equal(load_file(tmp_path / "logits.safetensors")["logits"], model(**batch).logits)


@pytest.mark.parametrize("make", [classifier, vq_classifier])
def test_a_key_that_belongs_nowhere_is_reported(make, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "stray.weight": torch.zeros(2)}, file, {"format": "pt"})
    _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert set(info["unexpected_keys"]) == {"stray.weight"}


# --- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["gpt2", "llama"])
def test_an_adapter_brings_its_head(backbone, tmp_path):
    language_model(backbone, 48).save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    base = NeuroLMForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    config = lora_config(base, rank=4, eeg_projector=True)
    assert config.task_type == "SEQ_CLS"
    adapted = stir(add_adapter(base, tmp_path / "base", config))
    modules = trained_modules(adapted)
    assert {"score", "model.channel_embedding"} <= modules
    assert not any("eeg_encoder" in name for name in modules)
    batch = lm_batch([[EEG((3, 7), 2, seed=1), SEP, 11, 12], [EEG((0, 3, 5), 2, seed=2), SEP, 13, 14]])
    labels = torch.tensor([2, 0])
    adapted.train()(**batch, labels=labels).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    assert not adapted.get_base_model().model.eeg_encoder.training
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3).eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again.merge_and_unload()(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="'lm_head' is no linear layer"):
        lora_config(base, targets=["lm_head"])
