"""What the tests of training share: seven windows of different montages and lengths, and small trainings on them.

A step of a stage must not depend on how its rows fall into batches. So everything that is drawn is of one kind only:
all texts are the same.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tiny import randomize, text_config, vq_config
from tiny_labram import labram_classifier, labram_vq, masked_model
from transformers import TrainerCallback, TrainingArguments

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQForPreTraining
from neurolm_hf.collators import (
    ClassificationCollator,
    EEGCollator,
    InstructionCollator,
    MaskedCollator,
    PretrainingCollator,
)
from neurolm_hf.processing_neurolm import (
    LABRAM_LAYOUT,
    EEGFeatureExtractor,
    NeuroLMProcessor,
    train_text_tokenizer,
)
from neurolm_hf.tasks import load_task
from neurolm_hf.training_set import TrainingSet


TASK = load_task("Workload")
TEXT = "Alpha fades during work."
LORA = r".*\.language_model\.h\.\d+\.attn\.c_attn"


def row(channels: tuple[str, ...] = ("C3", "C4", "CZ"), seconds: int = 2, answer: str = "Yes", seed: int = 0) -> dict:
    signal = np.random.default_rng(seed).normal(size=(len(channels), 200 * seconds)).astype(np.float32)
    place = {"recording": f"{seed}.edf", "start": 4.0, "subject": f"s{seed}"}
    return {"signal": signal, "channels": list(channels), "answer": answer, **place}


ROWS = [
    row(),
    row(("FP1", "O2"), 3, "No", seed=1),
    row(("PZ",), 2, "Yes", seed=2),
    row(("FP1", "CZ"), 2, "No", seed=3),
    row(("C3",), 4, "Yes", seed=4),
    row(("T3", "T4", "O1", "O2"), 2, "No", seed=5),
    row(("FZ",), 1, "Yes", seed=6),
]


def make_processor() -> NeuroLMProcessor:
    texts = [TEXT, "Theta grows over the midline.", *(TASK.training_text(answer) for answer in TASK.classes)]
    return NeuroLMProcessor(EEGFeatureExtractor(), train_text_tokenizer(texts, vocab_size=320))


def language_model(processor: NeuroLMProcessor, **changes: Any) -> NeuroLMForCausalLM:
    torch.manual_seed(0)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256).to_dict(),
        text_config=text_config("gpt2", vocab_size=len(processor.tokenizer)),
        eeg_token_id=processor.eeg_token_id,
        **changes,
    )
    return randomize(NeuroLMForCausalLM(config))


def adversarial_tokenizer() -> NeuroLMVQForPreTraining:
    torch.manual_seed(0)
    model = randomize(NeuroLMVQForPreTraining(vq_config(num_channel_embeddings=256)))
    model.reversal_strength = 0.4
    return model


def adapted_model(processor: NeuroLMProcessor) -> Any:
    lora = LoraConfig(
        r=4, target_modules=LORA, fan_in_fan_out=True, modules_to_save=["lm_head"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(language_model(processor), lora)  # type: ignore[arg-type]
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start: no gradient would reach lora_A
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    return model


def labelled(rows: list[dict]) -> list[dict]:
    """The rows with their class, and with the draw that decides what is masked."""
    return [
        {**one, "label": TASK.answers[one["answer"]], "draw": (0, 0, int(one["recording"].removesuffix(".edf")))}
        for one in rows
    ]


@dataclass
class Stage:
    """A model in training mode, and the collator whose rows bring so many texts each; LaBraM's bring none."""

    model: Callable[[], Any]
    collator: Callable[[float], Callable]


def stages() -> dict[str, Stage]:
    processor = make_processor()
    extractor = processor.feature_extractor
    of_labram = EEGFeatureExtractor(**LABRAM_LAYOUT)
    classify = ClassificationCollator(NeuroLMProcessor(of_labram))
    block = [{"input_ids": [3, 1, 4, 1, 5, 9, 2, 6]}]
    return {
        "vq": Stage(adversarial_tokenizer, lambda n: EEGCollator(extractor, block, n)),
        "pretraining": Stage(lambda: language_model(processor), lambda n: PretrainingCollator(processor, [TEXT], n)),
        "unfrozen": Stage(
            lambda: language_model(processor, freeze_eeg_encoder=False),
            lambda n: PretrainingCollator(processor, [TEXT], n),
        ),
        "instruction": Stage(
            lambda: language_model(processor),
            lambda n: InstructionCollator(processor, TASK, texts=[TEXT], texts_per_row=n),
        ),
        "lora": Stage(
            lambda: adapted_model(processor),
            lambda n: InstructionCollator(processor, TASK, texts=[TEXT], texts_per_row=n),
        ),
        "labram-vq": Stage(labram_vq, lambda n: EEGCollator(of_labram)),
        "labram-masked": Stage(masked_model, lambda n: lambda rows: MaskedCollator(of_labram)(labelled(rows))),
        "labram-classifier": Stage(labram_classifier, lambda n: lambda rows: classify(labelled(rows))),
    }


def arguments(folder: Any, **changes: Any) -> TrainingArguments:
    given = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**given, **changes})


def fixed(folder: Any, **changes: Any) -> TrainingArguments:
    """Rows in their order, no weight moves."""
    settings = {
        "learning_rate": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "train_sampling_strategy": "sequential",
    }
    return arguments(folder, **{**settings, **changes})


class GradientCallback(TrainerCallback):
    """Keeps the gradient of every step, and the codebook after it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps.append(gradients(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps[-1] |= codebook(kwargs["model"])


class SpoilingCollator:
    """Batches that hold the window of 3.edf are infinite."""

    def __init__(self, texts: int = 0) -> None:
        self.collate = stages()["vq"].collator(texts)

    def __call__(self, rows: Any) -> dict:
        batch = self.collate(rows)
        if "3.edf at 4 s (s3)" in batch["rows"]:
            batch["input_values"] = batch["input_values"] * float("inf")
        return batch


class EpochRecorder(TrainingSet):
    """Remembers the draw of every row that was read."""

    def __init__(self) -> None:
        super().__init__([(ROWS, None)], EEGFeatureExtractor(), seed=3)
        self.draws: list[tuple] = []

    def __getitem__(self, index: int) -> dict:
        read = super().__getitem__(index)
        self.draws.append(read["draw"])
        return read


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def codebook(model: Any) -> dict[str, torch.Tensor]:
    found = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("quantizer.codebook")}
    return found if hasattr(model, "update_codebook") else {}


def large_batches(stage: Stage, steps: list[list[dict]], texts: float = 1) -> list[dict[str, torch.Tensor]]:
    """What a `GradientCallback` keeps, where each step is one batch of these rows, each with so many texts."""
    model, kept = stage.model().train(), []
    for rows in steps:
        batch = stage.collator(texts)(rows)
        batch.pop("rows")
        model.zero_grad()
        model(**batch).loss.backward()
        kept.append(gradients(model))
        if hasattr(model, "update_codebook"):
            model.update_codebook()
            kept[-1] |= codebook(model)
    return kept


def assert_same_steps(given: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    assert len(given) == len(expected)
    for ours, theirs in zip(given, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
