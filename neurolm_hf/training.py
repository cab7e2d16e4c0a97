"""NeuroLM and LaBraM through the HF Trainer: what the Trainer does not know, and nothing it does."""

import inspect
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from accelerate.utils import TorchDynamoPlugin
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.hooks import RemovableHandle
from transformers import (
    DataCollator,
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers import trainer as transformers_trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from transformers.utils import logging

from .checkpoints import WRITE_ERRORS, checkpoint_failed, seal, unseal
from .devices import check_devices, gathered, heads_in_root, local_share, round_weights_alone, transformer_layers
from .metrics import balanced_accuracy
from .modeling_neurolm import NeuroLMVQModel
from .running import SKIPPED_BATCHES
from .storage import Row
from .tasks import Task
from .training_set import StepSampler, TrainingSet
from .validation import answer_counts, predicted_patches, sample_statistics, validation_metrics


logger = logging.get_logger(__name__)

# parts of the loss, and what is worth watching beside it
LOSS_PARTS = (
    "frequency_loss",
    "raw_loss",
    "amplitude_loss",
    "phase_loss",
    "commitment_loss",
    "eeg_alignment_loss",
    "text_alignment_loss",
    "eeg_loss",
    "answer_loss",
    "text_loss",
    "masked_loss",
    "complement_loss",
)
CODEBOOK_STATISTICS = ("codebook_usage", "perplexity")
STATISTICS = (*CODEBOOK_STATISTICS, "masked_accuracy")
# what has no meaning before k-means has placed the codebook
OF_CODEBOOK = ("commitment_loss", *CODEBOOK_STATISTICS)

# as often a layer may be compiled for another kind of input
COMPILED_VARIANTS = 32

# so many rows are named where a batch is at fault
NAMED_ROWS = 8


class NeuroLMTrainer(Trainer):
    """The Trainer with NeuroLM's loss, which has several means at once, and with what it needs to lose nothing.

    A step's loss is the mean over all EEG targets of the step plus the mean over all its answer tokens plus the mean
    over all its other text (tokenizer: over patches), whatever micro-batches and processes they fall into.
    `processing_class`, the processor, is needed for `answer_sets`. Batches may name their samples under `rows` (the
    collators do).

    Args:
        args, kwargs: as the Trainer's, but `compute_metrics`: the metrics are those of `validation`.
        eval_data_collator: makes the batches of evaluation where it is another than `data_collator`, as without
            augmentation.
        answer_sets: name -> task and prepared windows with their `answer`, of `eval_dataset`. Each evaluation of that
            scores them: `eval_NAME_balanced_accuracy`, and the mean of all as `eval_balanced_accuracy`.
        layer_decay: the deepest of the model's depths has the learning rate, each one before it this share of the next
            one's. Needs `parameter_depth` and `depths` of the model. None or 1: one rate for all.
        skip_bad_batches: leave a micro-batch whose loss is not finite out of its step, with a warning, a line in
            `skipped.jsonl` of the output folder and `skipped_batches` in the logs. Otherwise it is an error. The
            rest of the step keeps its weight: the means still divide by the targets of the whole step, so that the
            step is as much smaller. A step of which nothing is left still ends as one: its gradient is zero, but
            momentum and weight decay move the weights, and the schedule goes on.

    Raises:
        ValueError: several GPUs in one process, counts not taken over all processes, what `check_devices` refuses,
            answer sets that cannot be scored, `compute_metrics`, a layer decay or a label smoothing that the model
            does not have; while training, a loss that is not finite.
        OSError: while training, a checkpoint that could not be written.
    """

    model: Any
    processing_class: Any

    def __init__(
        self,
        *args: Any,
        eval_data_collator: DataCollator | None = None,
        answer_sets: Mapping[str, tuple[Task, Sequence[Row]]] | None = None,
        layer_decay: float | None = None,
        skip_bad_batches: bool = False,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        if self.compute_metrics is not None:
            raise ValueError(
                "`compute_metrics` would get no logits here but what `validation.sample_statistics` gives: leave it "
                "out, and score answers with `answer_sets`."
            )
        self.compute_metrics = self._split_metrics
        self.eval_data_collator = eval_data_collator
        self.answer_sets = dict(answer_sets or {})
        self.layer_decay = 1.0 if layer_decay is None else layer_decay
        self.skip_bad_batches = skip_bad_batches
        self._check_arguments()
        # the models smooth by themselves: transformers' own smoother knows neither -100 nor a step's counts
        self.label_smoother = None
        check_devices(self, skips_batches=skip_bad_batches)
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = transformer_layers(self.model)
            round_weights_alone(plugin)
        unset_hf_deepspeed_config()  # the Trainer has set it again
        # of a stream each process reads its own part: batches differ in shape, so none can be cut in parts and sent
        self.accelerator.dataloader_config.dispatch_batches = False
        if self.args.torch_compile:
            compile_layers(self.model, self.args)
        # `compute_loss` divides by counts of the whole step, given by `_get_num_items_in_batch`
        self.model_accepts_loss_kwargs = True
        self._part_sums: dict[str, torch.Tensor] = {}
        self._part_counts: dict[str, int] = {}
        self._steps_to_log: set[int] = set()
        self._skipped = 0
        self._without_gradient: list[RemovableHandle] = []

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's; a batch that is left out sends no gradient to any weight."""
        try:
            return super().training_step(*args, **kwargs)
        finally:
            for hook in self._without_gradient:
                hook.remove()
            self._without_gradient = []

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As the Trainer's; keeps the parts of the loss for the next log entry, and looks at what is not finite."""
        inputs = dict(inputs)
        rows = inputs.pop("rows", [])
        if model.training and self.args.label_smoothing_factor:
            inputs["smoothing"] = self.args.label_smoothing_factor
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            self._steps_to_log.add(self.state.global_step)
            if not torch.isfinite(loss):
                loss = self._leave_out(loss, rows)
            else:
                self._keep_parts(outputs)
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the parts of the loss since the last entry."""
        if "loss" in logs and self._steps_to_log:
            logs |= self._take_parts()
        super().log(logs, start_time)

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Any, Any]:
        """In place of logits, what each sample adds to the metrics of its split: `validation.sample_statistics`."""
        inputs = dict(self._prepare_inputs(inputs))
        samples = len(inputs.pop("rows", next(iter(inputs.values()))))
        # of two vocabularies they are large; a classifier's are what it is judged by
        if "labels" in inputs and hasattr(self.model, "code_head"):
            inputs["return_logits"] = False
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        return (None, *sample_statistics(outputs, samples, inputs.get("labels")))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As the Trainer's; then scores the answer sets, which are of `eval_dataset` and of no other."""
        if hasattr(dataloader, "set_epoch"):
            # a loader that is kept counts its rounds as epochs, but each is to see the same texts
            dataloader.set_epoch(0)
        with self._whole_until_trained():
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        if not self.answer_sets or dataloader.dataset is not self.eval_dataset:
            return output
        accuracies = {f"{name}_": self._balanced_accuracy(*given) for name, given in self.answer_sets.items()}
        accuracies[""] = sum(accuracies.values()) / len(accuracies)
        scores = {f"{metric_key_prefix}_{name}balanced_accuracy": value for name, value in accuracies.items()}
        return output._replace(metrics={**(output.metrics or {}), **scores})

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's, on all processes; a model that no training has shared out yet is saved as it is."""
        with self._whole_until_trained():
            super().save_model(output_dir, _internal_call)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """As the Trainer's, with `eval_data_collator`."""
        with self._evaluation_collator():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """As the Trainer's, with `eval_data_collator`."""
        with self._evaluation_collator():
            return super().get_test_dataloader(test_dataset)

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Weight decay is for matrices, convolutions and embeddings, and for nothing else (the paper's recipe).

        A model may take more out of it, by `no_weight_decay(name)`.
        """
        return _decayed_names(model)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """As the Trainer's; with a layer decay, each depth of the model has its own learning rate."""
        if self.optimizer is None and self.layer_decay != 1:
            model = self.model if model is None else model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = optimizer_groups(model, self.args.learning_rate, self.args.weight_decay, self.layer_decay)
            self.optimizer_cls_and_kwargs = kind, {**options, "params": groups}
        return super().create_optimizer(model)

    def _prepare_input(self, data: Any) -> Any:
        # DeepSpeed's precision is for weights: signals are what targets are made of
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        with heads_in_root(self.model) if self.is_fsdp_enabled else nullcontext():
            prepared = super()._prepare_for_training(*args, **kwargs)
        if self.is_fsdp_enabled and self.answer_sets:
            register_fsdp_forward_method(self.model, "score_answers")
        return prepared

    @contextmanager
    def _whole_until_trained(self) -> Iterator[None]:
        """A model that no training has handed to DeepSpeed is whole on each process, and is treated so."""
        enabled = self.is_deepspeed_enabled
        if enabled and self.deepspeed is None:
            self.is_deepspeed_enabled = False
            self.model.to(self.args.device)
        try:
            yield
        finally:
            self.is_deepspeed_enabled = enabled

    def _build_accelerator_args(self, **kwargs: Any) -> dict[str, Any]:
        # the layers are compiled, see `compile_layers`; the Trainer would have accelerate compile the whole model
        return {**super()._build_accelerator_args(**kwargs), "dynamo_plugin": TorchDynamoPlugin(backend="no")}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not isinstance(dataset, TrainingSet):
            return super()._get_train_sampler(dataset)
        args = self.args
        devices, accumulation = args.world_size, args.gradient_accumulation_steps
        # k-means places the codebook in the first step, or after a warm-up without quantiser
        callbacks = self.callback_handler.callbacks
        first = {one.warmup_steps for one in callbacks if isinstance(one, QuantizerScheduleCallback)} | {0}
        return StepSampler(dataset, args.train_batch_size, devices, accumulation, args.dataloader_drop_last, first)

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        if not isinstance(eval_dataset, TrainingSet):
            return super()._get_eval_sampler(eval_dataset)
        # the order has no meaning, but windows of like length need little padding
        return np.argsort(eval_dataset.lengths(), kind="stable").tolist()

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """The denominators of a step's losses: over all of its micro-batches, and over all processes."""
        if not batch_samples:
            return None
        counts = torch.stack([self.model.count_loss_items(**batch) for batch in batch_samples]).sum(0)
        return self.accelerator.reduce(counts.to(device), reduction="sum")

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """As the Trainer's; a gradient that is not finite never reaches the weights."""
        norm = super()._get_grad_norm(model, grad_norm)
        # the scaler of fp16 leaves such steps out by itself
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            raise ValueError(
                f"The gradient of step {self.state.global_step + 1} is not finite, although its loss is; this step "
                "has moved no weight. Go on from the last checkpoint with a lower learning rate."
            )
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer's; sealed when every process has written, and only then are older ones removed."""
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            if self.args.should_save:
                unseal(folder)
            with _no_rotation():
                super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(folder)
        except WRITE_ERRORS as error:
            raise checkpoint_failed(error, folder, run_folder) from error
        if self.args.should_save:
            rotate_checkpoints(str(run_folder), self.args.save_total_limit, self.state.best_model_checkpoint)

    def _check_arguments(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                f"This process sees {self.args.n_gpu} GPUs, but the codebook's sums and the step's counts are of one "
                f"process each: start one a GPU (torchrun --nproc_per_node {self.args.n_gpu} ...), or show it one "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        if self.args.world_size > 1 and not self.args.average_tokens_across_devices:
            raise ValueError(
                "A step's loss is a mean over the targets of all processes: leave `average_tokens_across_devices` on."
            )
        if self.args.world_size > 1 and getattr(self.train_dataset, "_distributed", None) is not None:
            raise ValueError(
                "This stream is one process's part already, of which each process would read a part again: give the "
                "whole stream, without split_dataset_by_node."
            )
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"`layer_decay` is a share above 0 and up to 1, not {self.layer_decay}.")
        if self.layer_decay != 1 and not hasattr(self.model, "parameter_depth"):
            raise ValueError(
                f"A {type(self.model).__name__} does not say how deep its weights lie (`parameter_depth`, `depths`): "
                "leave `layer_decay` out (--layer-decay of the script)."
            )
        if self.args.label_smoothing_factor and not _smooths_labels(self.model):
            raise ValueError(
                f"label_smoothing_factor is for classifiers of single labels, and this {type(self.model).__name__} is "
                "none: leave it out."
            )
        if self.answer_sets and self.processing_class is None:
            raise ValueError("`answer_sets` are asked by the processor: give it as `processing_class`.")
        if self.answer_sets and isinstance(self.eval_dataset, dict):
            raise ValueError("`answer_sets` are scored once an evaluation: give one `eval_dataset` beside them.")

    @contextmanager
    def _evaluation_collator(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = self.eval_data_collator or collator
        try:
            yield
        finally:
            self.data_collator = collator

    @property
    def _codebook_size(self) -> int:
        config = self.model.config
        return getattr(config, "eeg_config", config).codebook_size

    def _without_meaning(self) -> tuple[str, ...]:
        """Names of figures that say nothing yet: those of a codebook that is still to be placed."""
        encoder = getattr(getattr(self.model, "vq", self.model), "encoder", None)
        quantizer = getattr(encoder, "quantizer", None)
        return () if quantizer is None or bool(quantizer.initialized) else OF_CODEBOOK

    def _split_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        metrics, leave_out = validation_metrics(prediction, self._codebook_size), self._without_meaning()
        return {name: value for name, value in metrics.items() if name not in leave_out}

    def _balanced_accuracy(self, task: Task, rows: Sequence[Row]) -> float:
        """Of the answers about all rows, of which each process asks about its share."""
        share = [rows[index] for index in range(self.args.process_index, len(rows), self.args.world_size)]
        size, world = self.args.eval_batch_size, self.args.world_size
        counts = answer_counts(self.model, self.processing_class, task, share, size)
        # as many passes as the process with the most rows makes: shared weights are gathered together
        if math.ceil(len(share) / size) < math.ceil(math.ceil(len(rows) / world) / size):
            answer_counts(self.model, self.processing_class, task, [rows[0]], size)
        counts = self.accelerator.reduce(counts.to(self.args.device), reduction="sum").cpu()
        truth, answers = np.indices(counts.shape)
        times = counts.long().flatten().numpy()
        return balanced_accuracy(truth.flatten().repeat(times), answers.flatten().repeat(times))

    def _leave_out(self, loss: torch.Tensor, rows: Sequence[str]) -> torch.Tensor:
        """Reports a micro-batch without a loss; returns zero, and keeps its gradient from the weights."""
        step = self.state.global_step + 1
        named = ", ".join(rows[:NAMED_ROWS]) + (f" and {len(rows) - NAMED_ROWS} more" * (len(rows) > NAMED_ROWS))
        what = f"The loss of step {step} is {loss.item()} in the batch of {named or 'rows without a name'}"
        if not self.skip_bad_batches:
            raise ValueError(
                f"{what}; this step has moved no weight. Look at these windows (a dead channel, a wrong unit), try a "
                "lower learning rate or bf16 in place of fp16, or go on without such batches (`skip_bad_batches`; "
                "--skip-bad-batches of the scripts)."
            )
        if not all(local_share(parameter).isfinite().all() for parameter in self.model.parameters()):
            raise ValueError(
                f"{what}, and weights are no longer finite: training has diverged. Go on from an earlier checkpoint "
                "with a lower learning rate."
            )
        logger.warning(f"{what}: it is left out.")
        with open(Path(self._get_output_dir(None)) / SKIPPED_BATCHES, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "loss": str(loss.item()), "rows": list(rows)}) + "\n")
        self._skipped += 1
        if hasattr(self.model, "drop_codebook_step"):
            self.model.drop_codebook_step()
        # through the same passes as a good batch, for other processes wait for every gradient and share of a weight
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._without_gradient = [parameter.register_hook(torch.zeros_like) for parameter in trained]
        return loss.nan_to_num(0.0, 0.0, 0.0)

    def _keep_parts(self, outputs: Any) -> None:
        leave_out = self._without_meaning()
        figures = {name: outputs.get(name) for name in (*LOSS_PARTS, *CODEBOOK_STATISTICS)}
        if outputs.get("patch_hits") is not None:
            figures["masked_accuracy"] = outputs.patch_hits.sum() / predicted_patches(outputs).sum()
        for name, value in figures.items():
            if value is not None and name not in leave_out:
                self._part_sums[name] = self._part_sums.get(name, 0.0) + value.detach().float()
                self._part_counts[name] = self._part_counts.get(name, 0) + 1

    def _take_parts(self) -> dict[str, float]:
        """Since the last call and over all processes: parts of the loss by step, means of the statistics."""
        names = (*LOSS_PARTS, *STATISTICS)
        sums = [float(self._part_sums.get(name, 0.0)) for name in names]
        counts = [self._part_counts.get(name, 0) for name in names]
        own = torch.tensor([*sums, *counts, self._skipped], dtype=torch.float32, device=self.args.device)
        totals = self.accelerator.reduce(own, reduction="sum").tolist()
        steps = len(self._steps_to_log)
        parts = {
            name: total / (steps if name in LOSS_PARTS else count)
            for name, total, count in zip(names, totals, totals[len(names) :], strict=False)
            if count
        }
        if self.skip_bad_batches:
            parts["skipped_batches"] = totals[-1]
        self._part_sums, self._part_counts, self._steps_to_log, self._skipped = {}, {}, set(), 0
        return parts


class CodebookCallback(TrainerCallback):
    """Moves the codebook once an optimiser step, by the sums of all its micro-batches."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].update_codebook()


class AlignmentScheduleCallback(TrainerCallback):
    """Lets the tokenizer's adversary set in gently (paper, section 3.1): 2 / (1 + exp(-10 p)) - 1 at share p."""

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].reversal_strength = 2 / (1 + math.exp(-10 * state.global_step / state.max_steps)) - 1


class QuantizerScheduleCallback(TrainerCallback):
    """Trains a small tokenizer into its codebook: without quantiser first, then with a share of samples around it.

    A small model that must quantise from its first step on tends to collapse to a few codes.

    Args:
        warmup_steps: steps without the quantiser; k-means places the codebook after them.
        bypass: share of samples that go around the quantiser from then on.
        revive_until: share of the training after which dead codes are left alone, so that the codebook settles.
    """

    def __init__(self, warmup_steps: int, bypass: float, revive_until: float = 0.8):
        self.warmup_steps = warmup_steps
        self.bypass = bypass
        self.revive_until = revive_until
        self._own: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].config
        self._own = {name: getattr(config, name) for name in ("quantizer_bypass", "dead_code_threshold")}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].config
        config.quantizer_bypass = 1.0 if state.global_step < self.warmup_steps else self.bypass
        if state.global_step >= self.revive_until * state.max_steps:
            config.dead_code_threshold = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # what is saved between two steps must not carry the schedule's state
        kwargs["model"].config.update(self._own)


def optimizer_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """The trained parameters in groups of equal learning rate (`lr`) and `weight_decay`, each with its `params`.

    Args:
        learning_rate: of the deepest parameters.
        layer_decay: see [`NeuroLMTrainer`]; None or 1: one rate for all.
    """
    asked: Any = model
    decayed = set(_decayed_names(model))
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        below = 0 if layer_decay in (None, 1) else asked.depths - 1 - asked.parameter_depth(name)
        decays = name in decayed
        rate = learning_rate * (layer_decay or 1) ** below
        new = {"params": [], "lr": rate, "weight_decay": weight_decay if decays else 0.0}
        groups.setdefault((below, decays), new)["params"].append(parameter)
    # the full rate first: it is the first group's that the Trainer logs
    return [groups[place] for place in sorted(groups)]


def _decayed_names(model: nn.Module) -> list[str]:
    exempt = getattr(model, "no_weight_decay", lambda name: False)
    return [name for name, parameter in model.named_parameters() if parameter.ndim >= 2 and not exempt(name)]


def _smooths_labels(model: Any) -> bool:
    """Whether a model is a classifier, of one class a sample."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "smoothing" not in inspect.signature(whole.forward).parameters:
        return False
    return whole.config.problem_type in (None, "single_label_classification")


def compile_layers(model: nn.Module, args: TrainingArguments) -> None:
    """Compiles every transformer layer in place, with the arguments' backend and mode.

    Around the layers, shapes depend on the data (which patches are real, which tokens are targets): compiled whole, a
    model breaks into pieces there, and is compiled again for every batch until it is given up. Accelerate's regional
    compilation copies the modules around the layers, so that what callbacks set on the model no longer reaches it.
    """
    # with and without mask, gradient and padding, of one row or several: more than the 8 that torch allows
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, COMPILED_VARIANTS)
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(backend=args.torch_compile_backend or "inductor", mode=args.torch_compile_mode)


@contextmanager
def _no_rotation() -> Iterator[None]:
    """The Trainer removes older checkpoints as soon as a new one is written, which may yet fail to be sealed.

    Without a limit in its arguments it would not, but then a checkpoint's `training_args.bin` would have none.
    """
    rotate = transformers_trainer.rotate_checkpoints
    transformers_trainer.rotate_checkpoints = lambda **_: None
    try:
        yield
    finally:
        transformers_trainer.rotate_checkpoints = rotate


@torch.no_grad()
def standardize_features(model: NeuroLMVQModel, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    """Gives each encoder feature mean 0 and variance 1 over `batches`, without changing any code.

    The scale goes into the encoder's last layer norm and is undone in the first layer of the head before the codebook,
    so the checkpoint's format stays. A small language model learns from features of unit scale much faster.
    """
    parts: list[torch.Tensor] = []
    for batch in batches:
        features = model.encode(**batch).features
        assert features is not None
        parts.append(features[batch["eeg_attention_mask"].bool()].double())
    real = torch.cat(parts)
    mean, deviation = real.mean(0), real.std(0, unbiased=False).clamp(min=1e-4)
    norm: Any = model.encoder.transformer.norm
    head: Any = model.encoder.to_codebook[0]
    with gathered([*norm.parameters(), *head.parameters()]):
        weight = head.weight.double()
        head.bias.copy_(head.bias.double() + weight @ mean)
        head.weight.copy_(weight * deviation)
        norm.weight.copy_(norm.weight.double() / deviation)
        norm.bias.copy_((norm.bias.double() - mean) / deviation)
