"""Small trainings of all three stages in processes that can be killed, for the tests of `running`.

Each is as a script would make it, with everything random that its stage has. `Trouble` says what happens to it.
"""

import multiprocessing
import os
import signal
import socket
import subprocess
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny import randomize, text_config, vq_config
from transformers import (
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQForPreTraining
from neurolm_hf.collators import EEGCollator, InstructionCollator, PretrainingCollator
from neurolm_hf.devices import settle_deepspeed
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, train_text_tokenizer
from neurolm_hf.running import run_training
from neurolm_hf.tasks import Task, load_task
from neurolm_hf.training import (
    AlignmentScheduleCallback,
    CodebookCallback,
    NeuroLMTrainer,
    QuantizerScheduleCallback,
)
from neurolm_hf.training_set import TrainingSet


STAGES = ("vq", "pretraining", "lora")
LETTERED, PLAIN = load_task("TUSL"), load_task("Workload")
TEXTS = ["Alpha fades during work.", "Theta grows over the midline.", "Spindles come in the second stage."]


@dataclass(frozen=True)
class Trouble:
    """What happens to a run: a signal at a moment of a step.

    Attributes:
        number: of the signal.
        moment: an event of the Trainer's callbacks, or 'saving': after the optimiser's file of a checkpoint.
        step: steps that are finished then.
        whole_group: the signal goes to all processes of the run, as schedulers do it.
        rank: the process that is met.
    """

    number: int = signal.SIGKILL
    moment: str = "step_end"
    step: int = 0
    whole_group: bool = False
    rank: int = 0

    def strike(self) -> None:
        if self.whole_group:
            # from outside the group: workers of a DataLoader tell their parent's signals from others'
            kill = ["kill", f"-{int(self.number)}", "--", f"-{os.getpgrp()}"]
            subprocess.run(kill, check=True, start_new_session=True)
        else:
            os.kill(os.getpid(), self.number)


class TroubleCallback(TrainerCallback):
    """Sends the process its signal."""

    def __init__(self, trouble: Trouble):
        def strike(args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == trouble.step:
                trouble.strike()

        setattr(self, f"on_{trouble.moment}", strike)


def run_in_process(
    stage: str, output_dir: Path, trouble: Trouble | None = None, *, ranks: int = 1, **arguments: Any
) -> int | None:
    """Runs a training in a process of its own, or in several.

    Returns:
        its exit code: 0, 128 + signal where it was stopped, or - signal where it was killed; that of rank 0.
    """
    context = multiprocessing.get_context("forkserver")  # whose processes start with everything imported
    context.set_forkserver_preload(["peft", "neurolm_hf.running", "neurolm_hf.training", "neurolm_hf.training_set"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    given = (ranks, port, stage, output_dir, trouble, arguments)
    processes = [context.Process(target=_run_rank, args=(rank, *given)) for rank in range(ranks)]
    for process in processes:
        process.start()
    processes[0].join()
    for process in processes[1:]:
        if processes[0].exitcode:
            process.join(timeout=20)
            process.kill()  # as torchrun ends the others of a rank that has failed
        process.join()
    return processes[0].exitcode


def said(output_dir: Path) -> str:
    """What the processes of a run have written to their standard output."""
    return _log(output_dir).read_text()


def results(output_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the final model and optimiser of a run."""
    return load_file(output_dir / "results.safetensors")


def make_trainer(stage: str, output_dir: Path, **arguments: Any) -> NeuroLMTrainer:
    """A run of 7 rows in batches of 2 and micro-batches of 1 or 2: an epoch has 2 steps, or 4, and an uneven end."""
    torch.set_num_threads(1)
    given = {
        "output_dir": str(output_dir),
        "num_train_epochs": 3,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "weight_decay": 0.05,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": 2,
        "restore_callback_states_from_checkpoint": True,
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(**{**given, **arguments})
    settle_deepspeed(args)
    set_seed(args.seed)
    extractor = EEGFeatureExtractor()
    rows = TrainingSet(_parts(), extractor, weights=(2, 1), seed=3)
    evaluated = {"eval_dataset": rows} if args.eval_strategy != "no" else {}
    if stage == "vq":
        # enough dead codes that each step revives some, at random
        config = vq_config(num_channel_embeddings=256, dead_code_threshold=0.5, quantizer_bypass=0.3)
        blocks = [{"input_ids": list(range(start, start + 6))} for start in range(40)]
        return NeuroLMTrainer(
            model=randomize(NeuroLMVQForPreTraining(config), scale=0.05),
            args=args,
            train_dataset=rows,
            data_collator=EEGCollator(extractor, text_blocks=blocks, texts_per_row=0.5),
            callbacks=[
                CodebookCallback(),
                QuantizerScheduleCallback(warmup_steps=1, bypass=0.4, revive_until=0.9),
                AlignmentScheduleCallback(),
            ],
            **evaluated,
        )
    written = [*TEXTS, *(task.training_text(answer) for task in (LETTERED, PLAIN) for answer in task.classes)]
    processor = NeuroLMProcessor(extractor, train_text_tokenizer(written, vocab_size=320))
    model = _language_model(processor)
    if stage == "pretraining":
        collator: Any = PretrainingCollator(processor, TEXTS, texts_per_row=0.5)
    else:
        collator = InstructionCollator(processor, channel_dropout=0.3, shuffle_options=True)
        model = _with_lora(model) if stage == "lora" else model
    return NeuroLMTrainer(model=model, args=args, train_dataset=rows, data_collator=collator, **evaluated)


def _log(output_dir: Path) -> Path:
    return output_dir.parent / f"{output_dir.name}.log"


def _run_rank(rank: int, ranks: int, port: int, stage: str, output_dir: Path, *given: Any) -> None:
    os.setpgrp()
    if ranks > 1:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with _log(output_dir).open("a") as file, redirect_stdout(file):
        _run(rank, stage, output_dir, *given)


def _run(rank: int, stage: str, output_dir: Path, trouble: Trouble | None, arguments: dict[str, Any]) -> None:
    """A training as a script would run it, with the trouble."""
    patience = arguments.pop("patience", None)
    trainer = make_trainer(stage, output_dir, **arguments)
    if patience is not None:
        trainer.add_callback(EarlyStoppingCallback(patience))
    if trouble is not None and trouble.rank == rank:
        _prepare(trouble, trainer)
    if stopped := run_training(trainer, {"stage": stage}):
        raise SystemExit(128 + stopped)
    if rank:
        return
    tensors = {f"model.{name}": tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    optimizer = getattr(trainer, "optimizer", None)
    for index, state in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer.{index}.{name}": tensor.clone() for name, tensor in state.items()}
    tensors["random"] = torch.get_rng_state()
    save_file(tensors, output_dir / "results.safetensors")


def _prepare(trouble: Trouble, trainer: NeuroLMTrainer) -> None:
    if trouble.moment != "saving":
        trainer.add_callback(TroubleCallback(trouble))
        return
    scheduler_class = torch.optim.lr_scheduler.LambdaLR
    state_dict = scheduler_class.state_dict

    def strike(scheduler: Any) -> dict[str, Any]:
        if trainer.state.global_step == trouble.step:
            trouble.strike()
        return state_dict(scheduler)

    # the process is the run's own and ends with it
    scheduler_class.state_dict = strike  # type: ignore[method-assign]


def _parts() -> list[tuple[list[dict[str, Any]], Task]]:
    """Rows of two tasks, with other channels and lengths."""
    montages = [("C3", "C4", "CZ"), ("FP1", "O2"), ("PZ", "OZ", "F3", "F4"), ("FP1", "CZ")]
    rows = []
    for index in range(7):
        channels = montages[index % 4]
        signal = np.random.default_rng(index).normal(size=(len(channels), 200 * (1 + index % 3)))
        task = LETTERED if index < 4 else PLAIN
        answer = task.classes[index % len(task.classes)]
        place = {"recording": f"{index}.edf", "start": 4.0, "subject": f"s{index}"}
        rows.append({"signal": signal.astype(np.float32), "channels": list(channels), "answer": answer, **place})
    return [(rows[:4], LETTERED), (rows[4:], PLAIN)]


def _language_model(processor: NeuroLMProcessor) -> NeuroLMForCausalLM:
    vocabulary = len(processor.tokenizer)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256).to_dict(),
        # dropout, so that the steps draw random numbers
        text_config=text_config(
            "gpt2", hidden_size=40, vocab_size=vocabulary, n_positions=512, resid_pdrop=0.1, attn_pdrop=0.1
        ),
        eeg_token_id=processor.eeg_token_id,
    )
    return randomize(NeuroLMForCausalLM(config))


def _with_lora(model: NeuroLMForCausalLM) -> Any:
    names = {name.rpartition(".")[2] for name, _ in model.model.named_children()}
    assert "eeg_projector" in names
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=r".*language_model.*\.(c_attn|c_proj|c_fc)",
        fan_in_fan_out=True,
        modules_to_save=["eeg_projector", "channel_embedding"],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)
