"""Trainings of all stages in two CPU processes under a strategy of `configs/`, for the tests of `devices`.

accelerate's own launcher reads the files; the processes then work as a script that it starts. What they find goes
into a file for each rank.
"""

import argparse
import gc
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from safetensors.torch import load_file
from small_trainings import (
    ROWS,
    TASK,
    SpoilingCollator,
    arguments,
    codebook,
    fixed,
    make_processor,
    row,
    stages,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from training_runs import Trouble, TroubleCallback, make_trainer
from transformers import training_args

from neurolm_hf.devices import (
    gathered,
    heads_in_root,
    leave_together,
    local_share,
    round_weights_alone,
    settle_deepspeed,
    transformer_layers,
)
from neurolm_hf.layers_neurolm import PatchEmbedding
from neurolm_hf.running import run_training
from neurolm_hf.training import CodebookCallback, NeuroLMTrainer
from neurolm_hf.validation import answer_counts


CONFIGS = Path(__file__).parents[1] / "configs"
STRATEGIES = ("ddp-cpu", "zero2", "zero2-offload", "zero3", "zero3-offload")
STAGES = ("vq", "pretraining", "instruction", "lora")
# those whose single steps are compared; whole runs of LaBraM are the same trainer's
STEPPED = (*STAGES, "labram-vq", "labram-masked", "labram-classifier")


class GradientTrainer(NeuroLMTrainer):
    """Keeps the gradient of every step and the codebook after it, also where DeepSpeed has shared the gradient out."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, torch.Tensor]] = []

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        prepared = super()._prepare_for_training(*args, **kwargs)
        engine = self.model_wrapped if self.is_deepspeed_enabled else self.optimizer
        step = engine.step

        def keep_and_step(*args: Any, **kwargs: Any) -> Any:
            self.steps.append(self.gradients())
            return step(*args, **kwargs)

        engine.step = keep_and_step
        return prepared

    def gradients(self) -> dict[str, torch.Tensor]:
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.is_deepspeed_enabled:
            return {name: p.grad.clone() for name, p in trained.items()}
        from deepspeed.utils import safe_get_full_grad

        return {name: safe_get_full_grad(p).clone() for name, p in trained.items()}


def launched(strategy: str, *options: str) -> argparse.Namespace:
    """A configuration file as `accelerate launch` reads it."""
    file = str(CONFIGS / f"{strategy}.yaml")
    args = launch_command_parser().parse_args(["--config_file", file, *options, "script.py"])
    args, _, _ = _validate_launch_command(args)
    return args


def environment(strategy: str) -> dict[str, str]:
    """What accelerate's launcher tells the processes of a strategy."""
    args = launched(strategy)
    args.deepspeed_fields_from_accelerate_config = ""
    made = prepare_deepspeed_cmd_env(args)[1] if args.use_deepspeed else prepare_multi_gpu_env(args)
    return {name: value for name, value in made.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def arguments_of(strategy: str) -> dict[str, Any]:
    """The training arguments that a strategy needs on CPUs."""
    return {"use_cpu": False, "ddp_backend": "gloo"} if strategy.startswith("zero") else {"use_cpu": True}


def run_ranks(work: Any, folder: Path, *given: Any) -> list[Any]:
    """What `work(rank, folder, *given)` returns in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_run_rank, args=(work, port, folder, *given), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def strategy_results(rank: int, folder: Path, strategy: str) -> dict[str, Any]:
    """All that the tests want to know of a strategy."""
    os.chdir(CONFIGS.parent)  # the files name each other from there
    os.environ |= environment(strategy)
    asked = arguments_of(strategy)
    return {
        "steps": {stage: _steps(folder / "steps" / stage, stage, asked) for stage in STEPPED},
        "runs": {stage: _runs(folder / stage, stage, asked) for stage in STAGES},
        "bad": _bad_batch(folder / "bad", asked),
        "not finite": _gradient_not_finite(folder / "not-finite", asked),
        "bfloat16": _bfloat16(folder / "bfloat16", asked),
    }


def streamed(rank: int, folder: Path) -> dict[str, Any]:
    """Which rows of a stream each process reads, and what is said of one that is split already."""
    recordings: list[str] = []
    collate = stages()["vq"].collator(1)

    def remember(rows: Any) -> Any:
        recordings.extend(row["recording"] for row in rows)
        return collate(rows)

    def train(stream: Any) -> None:
        NeuroLMTrainer(
            model=stages()["vq"].model(),
            args=arguments(folder, max_steps=2),
            train_dataset=stream,
            data_collator=remember,
            callbacks=[CodebookCallback()],
        ).train()

    stream = IterableDataset.from_generator(_shards, gen_kwargs={"shards": [0, 1]})
    train(stream)
    try:
        train(split_dataset_by_node(stream, rank, 2))
    except ValueError as error:
        return {"recordings": recordings, "said": str(error)}
    return {"recordings": recordings, "said": "nothing"}


def _shards(shards: list[int]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from (row(seed=number, seconds=1 + number % 3) for number in range(shard, 8, 2))


def fsdp_results(rank: int, folder: Path) -> dict[str, Any]:
    """A step of each stage with the weights shared out by FSDP, as accelerate does it with `configs/fsdp2.yaml`.

    accelerate itself knows FSDP on GPUs alone; here its wrapping works on CPUs.
    """
    os.environ |= environment("fsdp2")
    dist.init_process_group("gloo")
    results: dict[str, Any] = {stage: _fsdp_step(rank, stage) for stage in (*STEPPED, "unfrozen")}
    return results | {"bfloat16": {stage: _fsdp_bfloat16_step(rank, stage) for stage in STEPPED}}


def _shared_out(rank: int, stage: str, precision: str) -> Any:
    """The stage's model under FSDP."""
    model = stages()[stage].model().train()
    plugin = FullyShardedDataParallelPlugin(transformer_cls_names_to_wrap=transformer_layers(model))
    if precision != "no":
        plugin.set_mixed_precision(precision)
    round_weights_alone(plugin)
    state = SimpleNamespace(fsdp_plugin=plugin)
    accelerator = SimpleNamespace(state=state, mixed_precision=precision, is_main_process=rank == 0, device="cpu")
    with heads_in_root(model):
        return fsdp2_prepare_model(accelerator, model)


def _fsdp_bfloat16_step(rank: int, stage: str) -> dict[str, Any]:
    """Precisions of a step, and its loss."""
    model = _shared_out(rank, stage, "bf16")
    batch = stages()[stage].collator(1)(ROWS[:4])
    batch.pop("rows")
    read: set[str] = set()
    root = model.get_base_model() if stage == "lora" else model
    reader = next(module for module in root.modules() if isinstance(module, PatchEmbedding))
    reader.register_forward_pre_hook(lambda _, inputs: read.add(str(inputs[0].dtype)))
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, num_items_in_batch=model.count_loss_items(**batch)).loss
    loss.backward()
    gradients = {str(p.grad.dtype) for p in model.parameters() if p.grad is not None}
    return {"signals": sorted(read), "loss": loss.detach(), "gradients": sorted(gradients)}


def _fsdp_step(rank: int, stage: str) -> dict[str, Any]:
    made = stages()[stage]
    model = _shared_out(rank, stage, "no")
    if hasattr(model, "score_answers"):
        register_fsdp_forward_method(model, "score_answers")

    whole, own = made.collator(1)(ROWS[:4]), made.collator(1)(ROWS[2 * rank : 2 * rank + 2])
    counts = model.count_loss_items(**whole)
    own.pop("rows")
    # the Trainer multiplies the loss too, for gradients are averaged
    (2 * model(**own, num_items_in_batch=counts).loss).backward()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gathered_state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    result = {
        "groups": sorted({type(m).__name__ for m in model.modules() if isinstance(m, FSDPModule)}),
        "not shared out": [name for name, p in model.named_parameters() if not isinstance(p, DTensor)],
        "gradients": [{name: p.grad.full_tensor() for name, p in trained.items()}],
        "state": {name: tensor.clone() for name, tensor in gathered_state.items()},
    }
    if stage.endswith("vq"):
        model.update_codebook()
        result["gradients"][0] |= codebook(model)
    if stage in ("instruction", "lora"):
        processor = make_processor()
        with torch.no_grad():
            result["answers"] = answer_counts(model.eval(), processor, TASK, ROWS[:4], 2)
    return result


def _run_rank(rank: int, work: Any, port: int, folder: Path, *given: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # ninja, for DeepSpeed
    torch.set_num_threads(1)
    gc.freeze()  # each training collects garbage, and what was imported takes most of that time
    torch.save(work(rank, folder, *given), folder / f"{rank}.pt")
    leave_together()


def _steps(folder: Path, stage: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Two steps of four windows on weights that stay, after an evaluation of all."""
    args = fixed(
        folder,
        **asked,
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=2,
        eval_strategy="steps",
        eval_steps=10,
        eval_on_start=True,
    )
    settle_deepspeed(args)
    made = stages()[stage]
    tuned = stage in ("instruction", "lora")
    # five of seven windows: the processes have three and two to ask about
    asks = {"processing_class": make_processor(), "answer_sets": {"mine": (TASK, ROWS[:5])}} if tuned else {}
    trainer = GradientTrainer(
        model=made.model(),
        args=args,
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=made.collator(1),
        eval_data_collator=made.collator(0 if tuned else 1),
        callbacks=[CodebookCallback()] if stage.endswith("vq") else [],
        **asks,
    )
    trainer.train()
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    engine = trainer.model_wrapped
    return {
        "type": trainer.accelerator.distributed_type.value,
        "wrapped": type(engine).__name__,
        "shares": [(local_share(p).numel(), getattr(p, "ds_numel", p.numel()), p.numel()) for p in trained],
        "optimizer_share": _optimizer_numbers(engine),
        "gradients": trainer.steps,
        "codebook": codebook(trainer.model),
        "evaluation": next(entry for entry in trainer.state.log_history if "eval_loss" in entry),
    }


def _optimizer_numbers(engine: Any) -> int:
    """How many weights this process has the optimiser's state of, under DeepSpeed."""
    optimizer = getattr(engine, "optimizer", None)
    groups = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if groups is None:
        groups = getattr(optimizer, "fp32_partitioned_groups_flat", [])
    return sum(group.numel() for group in groups)


def _runs(folder: Path, stage: str, asked: dict[str, Any]) -> dict[str, Any]:
    """A run from end to end, one that is stopped and goes on, and one that is started again when it has ended."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {**asked, "num_train_epochs": 3, "save_steps": 2}
    whole = make_trainer(stage, folder / "whole", **given)
    run_training(whole, {"stage": stage})
    whole.save_model()

    stopped = make_trainer(stage, folder / "stopped", **given)
    stopped.add_callback(TroubleCallback(Trouble(signal.SIGTERM, "step_begin", 1)))
    by = run_training(stopped, {"stage": stage})
    resumed = make_trainer(stage, folder / "stopped", **given)
    run_training(resumed, {"stage": stage})
    resumed.save_model()

    ended = make_trainer(stage, folder / "whole", **given)
    run_training(ended, {"stage": stage})
    ended.save_model(str(folder / "again"))
    dist.barrier()
    return {
        "stopped": (int(by or 0), stopped.state.global_step, resumed.state.global_step),
        "weights": _weights(whole),
        "saved": {name: _saved(folder / name) for name in ("whole", "stopped", "again")},
    }


def _weights(trainer: Any) -> dict[str, torch.Tensor]:
    """The trained weights, and the buffers."""
    trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    with gathered(list(trained.values())):
        weights = {name: p.detach().clone() for name, p in trained.items()}
    return weights | {name: buffer.clone() for name, buffer in trainer.model.named_buffers()}


def _saved(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def _bfloat16(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """Precisions after a step in bfloat16."""
    # the Trainer takes bfloat16 on CPUs with `use_cpu` alone, under which accelerate would not know DeepSpeed
    training_args.is_torch_bf16_gpu_available = lambda: True
    args = fixed(folder, **asked, bf16=True, max_steps=1)
    settle_deepspeed(args)
    read: list[str] = []
    collate = stages()["vq"].collator(1)
    trainer = NeuroLMTrainer(
        model=stages()["vq"].model(),
        args=args,
        train_dataset=ROWS,
        data_collator=collate,
        callbacks=[CodebookCallback()],
    )
    trainer.model.vq.register_forward_pre_hook(lambda _, inputs: read.append(str(inputs[0].dtype)))
    trainer.train()
    return {
        "weights": sorted({str(p.dtype) for p in trainer.model.parameters()}),
        "buffers": sorted({str(b.dtype) for b in trainer.model.buffers()}),
        "signals": sorted(set(read)),
        "loss": trainer.state.log_history[0]["loss"],
    }


def _bad_batch(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """A step whose second micro-batch of the second process is bad."""
    args = fixed(folder, **asked, max_steps=1, per_device_train_batch_size=1, gradient_accumulation_steps=2)
    settle_deepspeed(args)
    trainer = GradientTrainer(
        model=stages()["vq"].model(),
        args=args,
        train_dataset=ROWS,
        data_collator=SpoilingCollator(1),
        callbacks=[CodebookCallback()],
        skip_bad_batches=True,
    )
    trainer.train()
    return {"gradients": trainer.steps, "log": trainer.state.log_history[0], "codebook": codebook(trainer.model)}


def _gradient_not_finite(folder: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What is said of a gradient that is not finite, and whether a weight has moved."""
    args = fixed(folder, **{**asked, "max_steps": 1, "learning_rate": 0.1, "max_grad_norm": 1.0})
    settle_deepspeed(args)
    model = stages()["pretraining"].model()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer = NeuroLMTrainer(
        model=model, args=args, train_dataset=ROWS, data_collator=stages()["pretraining"].collator(1)
    )
    model.model.channel_embedding.weight.register_hook(lambda gradient: gradient * float("nan"))
    try:
        trainer.train()
        said = "nothing"
    except ValueError as error:
        said = str(error)
    after = _weights(trainer)
    return {"said": said, "moved": [name for name in before if not torch.equal(before[name], after[name])]}
