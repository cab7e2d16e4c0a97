#!/usr/bin/env python
"""From raw EDF files to answers about people the model has never seen, on two CPU cores in a few minutes.

    recordings -> windows -> neural tokenizer -> autoregressive pre-training -> LoRA instruction tuning -> answers

The task is the paper's Workload: is this segment of EEG of high workload? Without --recordings the demo writes
recordings of its own first; with it, the folder holds files named as in EEGMAT (SubjectNN_1.edf at rest,
SubjectNN_2.edf during mental arithmetic). Everything goes into --output: windows/ (prepared sets), model/ (opens with
AutoModelForCausalLM), adapter/ (LoRA) with the base/ it belongs to, report/index.html, and metrics.json.
"""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs the Hub

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from scipy.signal import welch
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    TrainingArguments,
    set_seed,
)

from neurolm_hf import __version__
from neurolm_hf.baseline import baseline_probabilities
from neurolm_hf.collators import EEGCollator, InstructionCollator, PretrainingCollator
from neurolm_hf.configuration_neurolm import NeuroLMVQConfig
from neurolm_hf.cpu import make_cpu_fast
from neurolm_hf.figures import (
    plot_codebook_usage,
    plot_confusion,
    plot_losses,
    plot_probabilities,
    plot_reconstruction,
    plot_spectra,
)
from neurolm_hf.lora import add_adapter, save_beside_adapter
from neurolm_hf.metrics import auroc, balanced_accuracy, interval_over_subjects
from neurolm_hf.model_card import write_model_card
from neurolm_hf.modeling_neurolm import NeuroLMForCausalLM, NeuroLMVQModel
from neurolm_hf.preparation import prepare_dataset
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, train_text_tokenizer
from neurolm_hf.report import Metrics, results_table, write_report
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.stages import describe_training_set
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.tasks import Task, load_task
from neurolm_hf.training import (
    CodebookCallback,
    NeuroLMTrainer,
    QuantizerScheduleCallback,
    standardize_features,
)


DEMO_TEXT = Path(__file__).with_name("demo_text.txt")
OUTPUTS = ("recordings", "windows", "base", "adapter", "model", "report", "metrics.json")


@dataclasses.dataclass
class DemoArguments:
    """What one may change; the defaults fit a laptop."""

    output: Path = dataclasses.field(
        default=Path("demo-output"), metadata={"help": "Folder for everything the demo makes."}
    )
    recordings: Path | None = dataclasses.field(
        default=None, metadata={"help": "Folder of SubjectNN_1.edf and _2.edf files; without it the demo makes some."}
    )
    subjects: int = dataclasses.field(default=12, metadata={"help": "How many subjects to make recordings of."})
    tokenizer_steps: int = dataclasses.field(default=600, metadata={"help": "Steps of neural tokenizer training."})
    pretraining_steps: int = dataclasses.field(default=120, metadata={"help": "Steps of autoregressive pre-training."})
    instruction_steps: int = dataclasses.field(default=240, metadata={"help": "Steps of LoRA instruction tuning."})
    batch_size: int = dataclasses.field(default=32, metadata={"help": "Windows a step."})
    seed: int = dataclasses.field(default=0, metadata={"help": "Of the split, the weights and the order of windows."})


def main(arguments: DemoArguments) -> None:
    """Run every stage in turn."""
    started = time.monotonic()
    prepare_output(arguments.output)
    make_cpu_fast()
    set_seed(arguments.seed)
    task = load_task("Workload")
    # a gain of ten against the paper's 100: a small model needs an input of about unit size
    feature_extractor = EEGFeatureExtractor(
        scale=10.0, notch_frequency=task.notch_hz, window_seconds=task.windows.seconds
    )

    announce("1/6  Recordings and windows")
    folder = arguments.recordings or make_recordings(arguments)
    data = load_windows(folder, task, feature_extractor, arguments)

    announce("2/6  Neural tokenizer")
    losses: dict[str, Any] = {}
    vq = train_tokenizer(data, feature_extractor, arguments, losses)
    steps = arguments.tokenizer_steps
    vq.config.provenance = provenance("Neural tokenizer", "corpus", steps, arguments, started_from={"model": None})

    announce("3/6  Autoregressive pre-training")
    texts = DEMO_TEXT.read_text(encoding="utf-8").splitlines()
    # the words of the task belong to the language: without EEG beside them they give nothing away
    texts += [task.training_text(answer) for answer in task.classes] * (len(texts) // 2)
    processor = NeuroLMProcessor(feature_extractor, train_text_tokenizer(texts, vocab_size=768))
    model = build_language_model(vq, processor, arguments)
    pretrain(model, processor, data, texts, arguments, losses)
    pretraining = provenance("Pre-training", "corpus", arguments.pretraining_steps, arguments)
    model.config.update({"stage": "pretrained", "provenance": pretraining})
    model.save_pretrained(arguments.output / "base")
    processor.save_pretrained(arguments.output / "base")

    announce("4/6  Instruction tuning with LoRA")
    model = instruction_tune(model, processor, task, data, arguments, losses)
    before = {"model": "base", "provenance": pretraining}
    tuning = provenance("Instruction tuning", "dense", arguments.instruction_steps, arguments, started_from=before)
    model.config.update({"stage": "instruction-tuned", "tasks": [task.config_entry()], "provenance": tuning})
    model.save_pretrained(arguments.output / "model")
    processor.save_pretrained(arguments.output / "model")
    save_beside_adapter(model, processor, arguments.output / "adapter")
    for name in ("base", "model", "adapter"):
        write_model_card(arguments.output / name)

    announce("5/6  Answers about held-out subjects")
    # what is scored is what was saved, opened as a user would
    saved = str(arguments.output / "model")
    reloaded: Any = AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    probabilities = answer_probabilities(
        reloaded,
        processor,
        list(signals(data.test)),
        task,
        ch_names=[list(names) for names in data.test["channels"]],
        prepared_by=data.test[0]["recipe_id"],
    )
    metrics = measure(probabilities, data, task, feature_extractor)

    announce("6/6  Report")
    (arguments.output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    figures = draw(vq, feature_extractor, probabilities, data, task, losses)
    page = write_report(
        arguments.output / "report",
        metrics,
        figures,
        title="NeuroLM demo: mental workload from EEG",
        configuration=dataclasses.asdict(arguments),
        provenance=tuning,
    )
    print(results_table(metrics))
    print(f"model    {saved}\nadapter  {arguments.output / 'adapter'}\nreport   {page}")
    print(f"{(time.monotonic() - started) / 60:.1f} minutes")


@dataclasses.dataclass
class DemoData:
    """Windows of training and of held-out subjects.

    Attributes:
        corpus: windows of the training subjects' whole recordings, for tokenizer and pre-training.
        train: the task's windows of the training subjects, four times as dense as the task asks for.
        train_task, test: the task's windows as the task asks for them.
    """

    corpus: Dataset
    train: Dataset
    train_task: Dataset
    test: Dataset

    @property
    def split(self) -> dict[str, list[str]]:
        """Part -> subjects."""
        parts = {"train": self.train_task, "test": self.test}
        return {part: sorted(set(windows["subject"])) for part, windows in parts.items()}


def prepare_output(output: Path) -> None:
    """Removes what an earlier demo left, and refuses a folder that holds anything else."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file; --output names a folder.")
    present = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if strangers := sorted(present - set(OUTPUTS)):
        raise ValueError(f"{output} holds {', '.join(strangers)}, which no demo has made: choose an empty --output.")
    for name in present:
        path = output / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    output.mkdir(parents=True, exist_ok=True)


def make_recordings(arguments: DemoArguments) -> Path:
    """Simulated EDF recordings, in the output folder."""
    folder = arguments.output / "recordings"
    simulate_recordings(folder, subjects=arguments.subjects, seed=arguments.seed)
    return folder


def load_windows(
    folder: Path, task: Task, feature_extractor: EEGFeatureExtractor, arguments: DemoArguments
) -> DemoData:
    """Prepares the recordings, split by subject, in three ways."""

    def windows(name: str, **changes: Any) -> Path:
        output = arguments.output / "windows" / name
        summary = prepare_dataset(
            dataclasses.replace(task, windows=dataclasses.replace(task.windows, **changes)),
            folder,
            output,
            feature_extractor=feature_extractor,
            split_rule="subject",
            shares={"train": 0.75, "test": 0.25},
            seed=arguments.seed,
            workers=os.cpu_count(),
        )
        if summary.failed:
            raise ValueError(f"{folder}: {summary.failed[0]['recording']}: {summary.failed[0]['error']}")
        return output

    as_asked = windows("task")
    data = DemoData(
        corpus=load_prepared(windows("corpus", last_seconds=None, stride_seconds=None), "train"),
        train=load_prepared(windows("dense", stride_seconds=0.5), "train"),
        train_task=load_prepared(as_asked, "train"),
        test=load_prepared(as_asked, "test"),
    )
    print(f"{len(data.corpus)} windows to learn the signal from, {len(data.train)} with an answer,")
    print(f"{len(data.test)} of held-out subjects {', '.join(data.split['test'])}")
    return data


def provenance(stage: str, windows: str, steps: int, arguments: DemoArguments, **start: Any) -> dict[str, Any]:
    """What a stage was trained on, as a model's config and its card keep it."""
    return {
        "made_by": f"demo.py of neurolm_hf {__version__}",
        "stage": stage,
        "recordings": "simulated" if arguments.recordings is None else arguments.recordings.name,
        "seed": arguments.seed,
        "data": [describe_training_set(arguments.output / "windows" / windows)],
        "steps": steps,
        **start,
    }


def signals(windows: Dataset) -> np.ndarray:
    """float32 (windows, channels, samples)"""
    return np.stack([row_signal(row) for row in windows])


def training_arguments(arguments: DemoArguments, steps: int, **kwargs: Any) -> TrainingArguments:
    """What the three stages share: cosine schedule with warm-up, nothing saved on the way."""
    return TrainingArguments(
        output_dir=str(arguments.output / "base"),
        max_steps=steps,
        per_device_train_batch_size=arguments.batch_size,
        warmup_steps=max(1, steps // 10),
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        logging_steps=max(1, steps // 20),
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),
        seed=arguments.seed,
        **kwargs,
    )


def train_tokenizer(
    data: DemoData, feature_extractor: EEGFeatureExtractor, arguments: DemoArguments, losses: dict[str, Any]
) -> NeuroLMVQModel:
    """A small neural tokenizer, trained on the training subjects' recordings."""
    config = NeuroLMVQConfig(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        decoder_num_hidden_layers=2,
        codebook_size=512,
        codebook_dim=32,
        # at this width the paper's weights are too small, and its embeddings would drown the signal
        initializer_range=0.08,
        embedding_initializer_range=0.08,
        dead_code_threshold=0.1,
    )
    vq = NeuroLMVQModel(config)
    collate = EEGCollator(feature_extractor)
    trainer = NeuroLMTrainer(
        model=vq,
        args=training_arguments(
            arguments, arguments.tokenizer_steps, learning_rate=1.5e-3, weight_decay=1e-4, max_grad_norm=1.0
        ),
        train_dataset=data.corpus,
        data_collator=collate,
        callbacks=[
            CodebookCallback(),
            QuantizerScheduleCallback(warmup_steps=arguments.tokenizer_steps // 5, bypass=0.5),
        ],
    )
    trainer.train()
    losses["Tokenizer"] = curves(trainer, "frequency_loss", "raw_loss")
    vq.eval()
    sample = np.linspace(0, len(data.corpus) - 1, num=min(256, len(data.corpus)), dtype=int)
    batches = (collate([data.corpus[int(i)] for i in part]) for part in np.array_split(sample, len(sample) // 32 + 1))
    standardize_features(vq, (on_device(batch, vq.device) for batch in batches))
    return vq


def build_language_model(
    vq: NeuroLMVQModel, processor: NeuroLMProcessor, arguments: DemoArguments
) -> NeuroLMForCausalLM:
    """A small GPT-2 with random weights behind the trained tokenizer: where there is a Hub, start from a real one."""
    tokenizer = processor.tokenizer
    text_model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=512,
            n_embd=128,
            n_layer=4,
            n_head=8,
            initializer_range=0.08,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(vq, text_model, tokenizer.get_vocab())
    # loud enough that attention can tell the electrodes apart from the first step on
    torch.nn.init.normal_(model.model.channel_embedding.weight, std=2.0)
    return model


def pretrain(
    model: NeuroLMForCausalLM,
    processor: NeuroLMProcessor,
    data: DemoData,
    texts: list[str],
    arguments: DemoArguments,
    losses: dict[str, Any],
) -> None:
    """Every channel's next code, and text beside it."""
    trainer = NeuroLMTrainer(
        model=model,
        args=training_arguments(
            arguments, arguments.pretraining_steps, learning_rate=1e-3, weight_decay=0.1, adam_beta2=0.95
        ),
        train_dataset=data.corpus,
        data_collator=PretrainingCollator(processor, texts, texts_per_row=0.25),
    )
    trainer.train()
    losses["Pre-training"] = curves(trainer, "eeg_loss", "text_loss")


def instruction_tune(
    model: NeuroLMForCausalLM,
    processor: NeuroLMProcessor,
    task: Task,
    data: DemoData,
    arguments: DemoArguments,
    losses: dict[str, Any],
) -> NeuroLMForCausalLM:
    """LoRA on the language model alone; saves the adapter and returns the model with the adapter merged into it."""
    lora = LoraConfig(
        r=16,
        lora_alpha=32,
        # the pattern names the language model: the frozen EEG encoder must not be adapted
        target_modules=r".*\.language_model\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)",
        fan_in_fan_out=True,
        modules_to_save=["lm_head"],
        task_type="CAUSAL_LM",
    )
    adapted: Any = add_adapter(model, arguments.output / "base", lora)
    adapted.print_trainable_parameters()
    trainer = NeuroLMTrainer(
        model=adapted,
        args=training_arguments(
            arguments, arguments.instruction_steps, learning_rate=5e-3, weight_decay=0.1, adam_beta2=0.95
        ),
        train_dataset=data.train,
        data_collator=InstructionCollator(processor, task, channel_dropout=0.4),
    )
    trainer.train()
    losses["Instruction tuning"] = curves(trainer, "answer_loss")
    adapted.save_pretrained(str(arguments.output / "adapter"))
    return adapted.merge_and_unload()


def measure(probabilities: np.ndarray, data: DemoData, task: Task, feature_extractor: EEGFeatureExtractor) -> Metrics:
    """Held-out scores of the model and of the plain baseline on the same windows."""
    labels, subjects = np.asarray(data.test["label"]), list(data.test["subject"])
    baseline = baseline_probabilities(
        signals(data.train_task),
        np.asarray(data.train_task["label"]),
        signals(data.test),
        sampling_rate=feature_extractor.sampling_rate,
    )
    scores: dict[str, float] = {}
    intervals: dict[str, Sequence[float]] = {}
    for prefix, given in (("", probabilities), ("baseline_", baseline)):
        for name, metric, values in (
            ("balanced_accuracy", balanced_accuracy, given.argmax(1)),
            ("auroc", auroc, given[:, 1]),
        ):
            scores[prefix + name] = metric(labels, values)
            if len(set(subjects)) > 1:
                intervals[prefix + name] = list(interval_over_subjects(metric, labels, values, subjects))
    counts = {
        part: {answer: int((np.asarray(windows["label"]) == index).sum()) for answer, index in task.answers.items()}
        for part, windows in (("train", data.train_task), ("test", data.test))
    }
    return Metrics(
        balanced_accuracy=scores["balanced_accuracy"],
        auroc=scores["auroc"],
        baseline_balanced_accuracy=scores["baseline_balanced_accuracy"],
        baseline_auroc=scores["baseline_auroc"],
        chance=1 / len(task.classes),
        split=data.split,
        counts=counts,
        intervals=intervals,
    )


def draw(
    vq: NeuroLMVQModel,
    feature_extractor: EEGFeatureExtractor,
    probabilities: np.ndarray,
    data: DemoData,
    task: Task,
    losses: dict[str, Any],
) -> dict[str, Any]:
    """The report's pictures, all of held-out subjects but the losses."""
    collate = EEGCollator(feature_extractor)
    windows = [
        data.test[index] for index in np.linspace(0, len(data.test) - 1, num=min(64, len(data.test)), dtype=int)
    ]
    with torch.no_grad():
        outputs = vq(**on_device(collate(windows), vq.device))
    channels = list(windows[0]["channels"])

    def traces(patches: torch.Tensor) -> np.ndarray:
        """(seconds x channels, samples of a second) -> (channels, samples)"""
        return patches.view(-1, len(channels), patches.shape[-1]).transpose(0, 1).flatten(1).cpu().numpy()

    labels = np.asarray(data.test["label"])
    confusion = np.zeros((len(task.classes), len(task.classes)), dtype=int)
    np.add.at(confusion, (labels, probabilities.argmax(1)), 1)
    frequencies, power = mean_spectra(signals(data.test) * feature_extractor.scale, feature_extractor.sampling_rate)
    return {
        "reconstruction": plot_reconstruction(traces(outputs.target_raw[0]), traces(outputs.raw[0]), channels),
        "spectra": plot_spectra(
            outputs.target_frequency.flatten(0, 1).cpu().numpy(),
            outputs.frequency.flatten(0, 1).cpu().numpy(),
            {answer: power[labels == index] for answer, index in task.answers.items()},
            frequencies,
        ),
        "codebook_usage": plot_codebook_usage(
            torch.bincount(outputs.codes.flatten(), minlength=vq.config.codebook_size).cpu().numpy()
        ),
        "losses": plot_losses(losses),
        "confusion_matrix": plot_confusion(confusion, task.classes),
        "probabilities": plot_probabilities(probabilities[:, 1], labels == 1, (task.classes[0], task.classes[1])),
    }


def mean_spectra(windows_uv: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Power spectral density of (windows, channels, samples) in microvolts, averaged over channels."""
    frequencies, power = welch(windows_uv, fs=sampling_rate, nperseg=2 * sampling_rate)
    return frequencies, power.mean(axis=1)


def curves(trainer: NeuroLMTrainer, *names: str) -> dict[str, tuple[list[float], list[float]]]:
    """Logged values by step, for the report."""
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        name: ([entry["step"] for entry in history if name in entry], [e[name] for e in history if name in e])
        for name in names
    }


def on_device(batch: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """What a model reads of a batch, where that model is."""
    return {name: value.to(device) for name, value in batch.items() if name != "rows"}


def announce(stage: str) -> None:
    """A heading on the terminal."""
    print(f"\n== {stage}", flush=True)


if __name__ == "__main__":
    parser = HfArgumentParser(DemoArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    try:
        main(*parser.parse_args_into_dataclasses())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
