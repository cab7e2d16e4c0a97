"""One run of a training: it has a folder of its own, goes on where it was interrupted, and saves when told to stop.

The same command starts a run, goes on with it after it was killed or pre-empted, and does nothing to one that has
ended. On a CPU an interrupted run gives the same weights, bit for bit, as one that was never interrupted.
"""

import errno
import importlib.util
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .checkpoints import checkpoint_step, last_complete_checkpoint, remove_incomplete
from .devices import sharding
from .storage import TEMPORARY, write_text


SETTINGS = "settings.json"
LOCK = ".lock"
# What NeuroLMTrainer notes of the batches that it leaves out, a line each with its step.
SKIPPED_BATCHES = "skipped.jsonl"
# As long as schedulers and torchrun wait between SIGTERM and SIGKILL.
WORKER_SECONDS = 30
# The arguments that decide which weights come out. How a step's batch is shared over processes and micro-batches does
# not, so a run may go on with another number of devices: each row has its own random numbers, and so have the texts
# that come with it. Then equal up to rounding, and up to what the model itself draws at random in a micro-batch:
# dropout, feature noise, samples that bypass the quantiser, revived codes.
DECIDING_ARGUMENTS = (
    *("max_steps", "num_train_epochs", "seed", "data_seed", "dataloader_drop_last", "train_sampling_strategy"),
    *("optim", "optim_args", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "average_tokens_across_devices"),
    *("bf16", "fp16", "label_smoothing_factor", "neftune_noise_alpha"),
    *("eval_strategy", "eval_steps", "eval_delay", "eval_on_start"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
)


def run_training(
    trainer: Trainer, settings: Mapping[str, Any], prepare: Callable[[], None] = lambda: None
) -> signal.Signals | None:
    """Trains to the end, or until SIGTERM or SIGINT; goes on from the last complete checkpoint where there is one.

    A run that has ended is not trained again: `trainer.model` gets its final weights (the best ones with
    `load_best_model_at_end`). So what is written after the training can be written again.

    Args:
        trainer: with the model as it was when the run began.
        settings: what decides the result beside the training arguments: data, model, augmentation. JSON values.
        prepare: called on every process once the folder is the run's, before anything is trained. A signal ends it.

    Returns:
        None when the training has ended; the signal that stopped it before, after a checkpoint was saved.

    Raises:
        ValueError: the folder belongs to a run with other settings or holds other files, another process is at work
            in it, or the arguments would leave a run that cannot go on exactly.
        OSError: a checkpoint could not be written.
    """
    _check_arguments(trainer.args)
    with ExitStack() as held:
        return _run(trainer, settings, prepare, held)


@contextmanager
def locked(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Keeps other processes out of a folder. The lock ends with its process, however that ends.

    Args:
        wanted: False on the processes of a run that write nothing: they hold no lock.

    Raises:
        ValueError: another process holds it.
    """
    if not wanted or importlib.util.find_spec("fcntl") is None:  # Windows has no such locks
        yield
        return
    import fcntl

    # the lock is the process's own: workers that outlive a killed one for a moment do not keep it, as flock's would
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise ValueError(
                    f"{folder} is in use: another process trains there. Wait until it has ended, or stop it, or give "
                    "this one a folder of its own."
                ) from error
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a disk that knows no locks
                raise
        yield


def _run(
    trainer: Trainer, settings: Mapping[str, Any], prepare: Callable[[], None], held: ExitStack
) -> signal.Signals | None:
    """`run_training`, with a lock on the folder that `held` gives back."""
    args = trainer.args
    output_dir = Path(args.output_dir or ".")
    with args.main_process_first(local=False):
        _check_shared(output_dir, args.should_save)
        claim_folder(output_dir, {**deciding_arguments(args), **settings})
        held.enter_context(locked(output_dir, args.should_save))
        last = last_complete_checkpoint(output_dir)
        if args.should_save:
            step = 0 if last is None else checkpoint_step(last)
            remove_incomplete(output_dir, after=step)
            _forget_skipped(output_dir / SKIPPED_BATCHES, after=step)
    prepare()
    if last is not None:
        state = TrainerState.load_from_json(str(last / "trainer_state.json"))
        if _has_ended(state):
            _load_final_weights(trainer, last, state)
            _say(trainer, f"{output_dir}: this run has ended, at step {state.global_step}.")
            return None
        _say(trainer, f"{output_dir}: going on from step {state.global_step} of {state.max_steps}.")
    stop = StopCallback()
    trainer.add_callback(stop)
    with stop.listening():
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
    trainer.remove_callback(stop)
    if stop.stopped_by is not None:
        name, step = stop.stopped_by.name, trainer.state.global_step
        _say(trainer, f"{name}: saved at step {step}; start the same command again to go on from there.")
    return stop.stopped_by


def claim_folder(output_dir: Path, settings: Mapping[str, Any]) -> None:
    """Makes a folder that of a run, by a file with its settings; a folder that is one already must have the same.

    Raises:
        ValueError: other settings, which are named, or files that are of no run.
    """
    file = output_dir / SETTINGS
    text = json.dumps(settings, indent=1, default=str, sort_keys=True) + "\n"
    if not file.exists():
        own = (LOCK, SKIPPED_BATCHES)
        others = sorted(
            one.name for one in output_dir.glob("*") if not (one.name.endswith(TEMPORARY) or one.name in own)
        )
        if others:
            raise ValueError(
                f"{output_dir} holds files of something else ({', '.join(others[:3])}): give the run a folder of its "
                "own."
            )
        write_text(file, text)
        return
    begun, now = json.loads(file.read_text(encoding="utf-8")), json.loads(text)
    changed = [name for name in sorted(begun.keys() | now.keys()) if begun.get(name) != now.get(name)]
    if changed:
        listed = "; ".join(f"{name} was {begun.get(name)!r} and is {now.get(name)!r} now" for name in changed)
        raise ValueError(
            f"{output_dir} belongs to a run with other settings: {listed}. Go on with those of {file}, or give the "
            "new run a folder of its own."
        )


def deciding_arguments(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that decide which weights come out, as JSON values.

    And how the run's state is shared out, if it is: only the same strategy can read its checkpoints, ZeRO's only as
    many processes.
    """
    values = args.to_dict()
    deciding = {name: values[name] for name in DECIDING_ARGUMENTS}
    deciding["total_train_batch_size"] = windows_of_a_step(args)
    return deciding if (shared := sharding(args)) is None else deciding | {"sharding": shared}


def windows_of_a_step(args: TrainingArguments) -> int:
    """Windows of an optimiser step, over all devices."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


class StopCallback(TrainerCallback):
    """Saves a checkpoint and stops the training after the step during which SIGTERM or SIGINT came.

    The Trainer's own `enable_jit_checkpoint` saves in the middle of a step, from which a run cannot go on exactly.
    What an epoch ends with is kept in one piece: a checkpoint of its last step is saved after its evaluation.

    Attributes:
        stopped_by: the signal, once the checkpoint is saved.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self._received = 0
        self._several_processes = False
        self._saved_step = -1
        self._save_after_evaluation = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes both signals, and gives them back."""
        previous = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loader = kwargs["train_dataloader"]
        loader = getattr(loader, "base_dataloader", loader)  # accelerate's holds torch's
        loader.worker_init_fn = partial(_start_worker, loader.worker_init_fn)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._several_processes = args.world_size > 1
        self._received = self._agreed(args)
        if self._received:
            control.should_save = True
        ends_epoch = control.should_training_stop or float(state.epoch or 0).is_integer()
        if ends_epoch and args.eval_strategy == IntervalStrategy.EPOCH:
            self._save_after_evaluation, control.should_save = control.should_save, False

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # where it is stopped, an epoch has not ended; all of the last step is saved already
        if self.stopped_by is not None:
            control.should_evaluate = control.should_save = False
            return
        # the last checkpoint tells that the run has ended
        ended = control.should_training_stop and self._saved_step != state.global_step
        control.should_save |= self._save_after_evaluation or ended
        self._save_after_evaluation = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._saved_step = state.global_step
        # only now: a checkpoint in which the training is to stop is the last one of its run
        if self._received and not control.should_training_stop:
            self.stopped_by = signal.Signals(self._received)
            control.should_training_stop = True

    def _receive(self, number: int, frame: FrameType | None) -> None:
        # torchrun repeats the signal of the keyboard to its processes, and schedulers repeat theirs
        if self._received == number == signal.SIGINT and not self._several_processes:
            raise KeyboardInterrupt
        self._received = number

    def _agreed(self, args: TrainingArguments) -> int:
        """The signal that any of the processes received, or 0."""
        if args.world_size == 1:
            return self._received
        received = torch.tensor(self._received, device=args.device)
        torch.distributed.all_reduce(received, op=torch.distributed.ReduceOp.MAX)
        return int(received)


def _start_worker(start: Callable[[int], None] | None, index: int) -> None:
    """Lets a worker of the DataLoader outlive SIGTERM for a while: schedulers send it to all processes of a job.

    A worker that is terminated fails the step that is to be finished and saved.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(WORKER_SECONDS))
    if start is not None:
        start(index)


def _check_arguments(args: TrainingArguments) -> None:
    """A ValueError where an interrupted run could not go on exactly."""
    wrong = {
        "save_only_model must be False: the optimiser's state is needed to go on": args.save_only_model,
        "ignore_data_skip must be False: the data must go on where they were": args.ignore_data_skip,
        "enable_jit_checkpoint must be False: SIGTERM saves a checkpoint anyway": args.enable_jit_checkpoint,
        "restore_callback_states_from_checkpoint must be True: early stopping must go on counting": (
            not args.restore_callback_states_from_checkpoint
        ),
        "save_on_each_node must be False: a run has one folder, on a disk that all its nodes share": (
            args.save_on_each_node
        ),
        "save_strategy must not be 'best': the last step is needed to go on; use load_best_model_at_end": (
            args.save_strategy == SaveStrategy.BEST
        ),
    }
    if args.load_best_model_at_end:
        saves, evaluations = (args.save_strategy, args.save_steps), (args.eval_strategy, args.eval_steps)
        by_steps = args.save_strategy == SaveStrategy.STEPS
        wrong |= {
            "save_steps must equal eval_steps with load_best_model_at_end, or the best model may not be saved": (
                by_steps and saves != evaluations
            ),
            "save_total_limit must be 2 or more with load_best_model_at_end: the best and the last checkpoint": (
                args.save_total_limit == 1
            ),
        }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"{message}.")


def _check_shared(output_dir: Path, writes: bool) -> None:
    """A ValueError where a process does not see what the one that writes, which comes first, has made there."""
    if not (writes or (output_dir / SETTINGS).exists()):
        raise ValueError(
            f"{output_dir} is another folder here than on the first node: put it on a disk that all nodes share, for "
            "every process has its part in a checkpoint."
        )


def _forget_skipped(file: Path, after: int) -> None:
    """Drops the lines about steps beyond `after`, which are made again, and a line that was not finished."""
    if not file.exists():
        return
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= after]
    write_text(file, "".join(f"{line}\n" for line in kept))


def _has_ended(state: TrainerState) -> bool:
    """Whether a checkpoint is the last one of its run: the Trainer would go one step beyond it."""
    states: Any = state.stateful_callbacks
    return states["TrainerControl"]["args"]["should_training_stop"]


def _load_final_weights(trainer: Trainer, last: Path, state: TrainerState) -> None:
    """What the Trainer's end of training leaves: the weights and the state."""
    if trainer.is_fsdp_enabled:
        raise ValueError(f"This run has ended, and FSDP loads weights for training alone; the model is in {last}.")
    final = last
    if trainer.args.load_best_model_at_end and state.best_global_step:
        final = last.with_name(f"checkpoint-{state.best_global_step}")
        state.best_model_checkpoint = str(final)
    trainer.state = state
    trainer._load_from_checkpoint(str(final))


def _say(trainer: Trainer, message: str) -> None:
    if trainer.is_world_process_zero():
        print(message, flush=True)
