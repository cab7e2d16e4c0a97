#!/usr/bin/env python
"""Turn a folder of recordings into a prepared set: filtered, cut into labelled windows, split, ready to train on.

One of the paper's tasks, from its original folder layout:
    python scripts/prepare_data.py --task TUAB --input tuh_eeg_abnormal/v3.0.0 --output prepared/tuab

Recordings of any kind, to pre-train on; the mains frequency must be told:
    python scripts/prepare_data.py --task Corpus --notch-hz 50 --input recordings --output prepared/corpus

A task of your own, declared in a file, with its labels in a table:
    python scripts/prepare_data.py --task my_task.json --input recordings --output prepared/mine

On four machines that share a folder, each with another i of --shard i/4; or on a Dask cluster:
    python scripts/prepare_data.py --task TUEG --input tuh_eeg --output prepared --shard 0/4
    python scripts/prepare_data.py --task TUEG --input tuh_eeg --output prepared --backend dask --scheduler HOST:8786

Killed and started again, it goes on where it was and ends with the same bytes. A recording that cannot be used stops
nothing: it is listed with its reason, and the next run tries it again.
Exit status: 0 all prepared, 1 some recordings failed or no window was kept (or the output cannot be written), 2 wrong
usage, or an input that does not fit the task.

Tasks:
"""

import inspect
import signal
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neurolm_hf.command_line import options_parser
from neurolm_hf.preparation import prepare_dataset
from neurolm_hf.prepared_set import Summary
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor
from neurolm_hf.publishing import push_prepared
from neurolm_hf.storage import NEEDED
from neurolm_hf.task_sections import PARTS
from neurolm_hf.tasks import TASK_FILES, Task, load_task


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    task: str = field(metadata={"help": "A task by name, or the path of a task file of your own."})
    input: str = field(metadata={"help": "Folder that holds the recordings in the task's layout."})
    output: str = field(metadata={"help": "Folder of the prepared set: new, or that of an earlier run to go on with."})
    split: Literal["published", "subject"] = field(
        default="published", metadata={"help": "The task's own split, or one by subject."}
    )
    split_shares: list[float] | None = field(
        default=None,
        metadata={"metavar": "SHARE", "help": "Three: train, validation and test, of a split by subject."},
    )
    seed: int = field(default=0, metadata={"help": "Of what a split draws."})
    notch_hz: float | None = field(
        default=None, metadata={"help": "Mains frequency where the task does not know it, or against it; 0: no notch."}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "Prepare as this model wants its input: a folder or an id of the Hub, its recipe is taken."},
    )
    scale: float | None = field(
        default=None, metadata={"help": "Without --model: microvolts are divided by it. The paper's is 100 (default)."}
    )
    architecture: Literal["neurolm", "labram"] | None = field(
        default=None,
        metadata={
            "help": "Whose channels and longest windows (default: --model's own, or neurolm). labram: 128 names, 16 s "
            "and 256 patches; NeuroLM reads such sets, too."
        },
    )
    unit: str | None = field(
        default=None, metadata={"help": "Unit of all recordings (uV, mV, V) where what the files say is wrong."}
    )
    unknown_channels: Literal["raise", "drop"] | None = field(
        default=None, metadata={"help": "Channels outside the vocabulary: refuse the recording, or leave them out."}
    )
    workers: int = field(default=-1, metadata={"help": "Recordings at a time; -1: one a core."})
    backend: Literal["loky", "threading", "dask", "ray"] = field(
        default="loky", metadata={"help": "Where they run: processes, threads, or a cluster."}
    )
    scheduler: str | None = field(
        default=None, metadata={"help": "Address of the cluster; without one, a Dask or Ray cluster here."}
    )
    shard: str = field(default="0/1", metadata={"help": "i/n: only every n-th recording, from the i-th on."})
    licence: str | None = field(
        default=None, metadata={"help": "Of the recordings, for the set's card: odc-by, cc-by-4.0, or your own words."}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"metavar": "ID", "help": "Private dataset repository to upload the set to."}
    )


def main(arguments: list[str] | None = None) -> None:
    """Prepares, prints the summary, and exits with the status that the help explains."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tasks = [load_task(file).describe() for file in sorted(TASK_FILES.glob("*.json"))]
    tasks = [textwrap.fill(line, 115, initial_indent="  ", subsequent_indent="      ") for line in tasks]
    parser = options_parser(Arguments, description="\n".join([str(__doc__).rstrip(), *tasks]).replace("%", "%%"))
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        summary = prepare(options)
    except (ValueError, FileNotFoundError, NotADirectoryError, ImportError) as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    print(summary)
    if options.push_to_hub:
        try:
            print(push_prepared(options.output, options.push_to_hub))
        except (ValueError, OSError) as error:
            sys.exit(f"error: {error}")
    nothing_kept = bool(summary.files) and not summary.windows
    sys.exit(1 if summary.failed or nothing_kept else 0)


def prepare(options: Arguments) -> Summary:
    """Prepares by the options.

    Raises:
        ValueError, FileNotFoundError, ImportError: options that cannot be followed.
        OSError: the output cannot be written.
    """
    check_options(options)
    task = load_task(options.task)
    extractor = feature_extractor(options, notch_frequency(task, options.notch_hz))
    shares: dict[str, float] | None = None
    if options.split_shares is not None:
        if len(options.split_shares) != len(PARTS):
            raise ValueError(f"--split-shares are three, of {', '.join(PARTS)}; got {len(options.split_shares)}")
        shares = dict(zip(PARTS, options.split_shares, strict=True))
    with parallel_backend(options):
        return prepare_dataset(
            task,
            Path(options.input),
            options.output,
            feature_extractor=extractor,
            split_rule="subject" if options.split == "subject" else None,
            shares=shares,
            seed=options.seed,
            unit=options.unit,
            unknown_channels=options.unknown_channels,
            shard=shard_of(options.shard),
            licence=options.licence,
        )


def check_options(options: Arguments) -> None:
    """A ValueError that names the option for numbers and combinations that make no sense."""
    if options.workers < 1 and options.workers != -1:
        raise ValueError(f"--workers is 1 or more, or -1 for one a core, not {options.workers}")
    if options.seed < 0:
        raise ValueError(f"--seed is 0 or more, not {options.seed}")
    if options.scheduler is not None and options.backend not in ("dask", "ray"):
        raise ValueError("--scheduler belongs to --backend dask or ray")
    if options.scheduler is not None and options.backend == "dask" and options.workers != -1:
        raise ValueError("--workers does not go with --backend dask --scheduler: the cluster's workers do the work")


def feature_extractor(options: Arguments, mains_hz: float | None) -> EEGFeatureExtractor:
    """Of the model's recipe, or of the paper's; the mains are where the recordings were made."""
    defaults = inspect.signature(EEGFeatureExtractor).parameters
    layouts: dict[str | None, dict[str, Any]] = {
        None: {},
        "neurolm": {name: defaults[name].default for name in LABRAM_LAYOUT},
        "labram": LABRAM_LAYOUT,
    }
    layout = layouts[options.architecture]
    if options.model is None:
        scale = 100.0 if options.scale is None else options.scale
        return EEGFeatureExtractor(notch_frequency=mains_hz, scale=scale, **layout)
    if options.scale is not None:
        raise ValueError("--model brings its own scale: leave --scale out")
    try:
        return EEGFeatureExtractor.from_pretrained(options.model, notch_frequency=mains_hz, **layout)
    except OSError as error:
        raise ValueError(f"--model {options.model} holds no feature extractor: is it a NeuroLM?") from error


def notch_frequency(task: Task, wanted: float | None) -> float | None:
    """The mains frequency in Hz, the user's before the task's; None for no notch."""
    if wanted is not None:
        return wanted or None
    if task.notch_hz is None:
        raise ValueError(
            f"task {task.name} does not know the mains frequency where the recordings were made: give --notch-hz 50 "
            "or --notch-hz 60, or 0 for no notch"
        )
    return task.notch_hz


def shard_of(text: str) -> tuple[int, int]:
    """(i, n) of 'i/n'."""
    index, slash, parts = text.partition("/")
    if not (slash and index.isdecimal() and parts.isdecimal() and int(index) < int(parts)):
        raise ValueError(f"--shard is i/n with 0 <= i < n, such as 0/4, not {text!r}")
    return int(index), int(parts)


@contextmanager
def parallel_backend(options: Arguments) -> Iterator[None]:
    """joblib's configuration for the time of the run."""
    try:
        from joblib import parallel_config
    except ImportError as error:
        raise ImportError(NEEDED, name="joblib") from error
    if options.backend == "dask":
        try:
            from dask.distributed import Client
        except ImportError as error:
            raise ImportError('--backend dask needs Dask: pip install "neurolm_hf[cluster]"') from error
        workers = None if options.workers < 0 else options.workers
        local = {"n_workers": workers, "threads_per_worker": 1, "dashboard_address": None}
        with Client(options.scheduler) if options.scheduler else Client(**local), parallel_config("dask"):
            yield
        return
    if options.backend == "ray":
        try:
            import ray  # type: ignore[import-not-found]  # not among our extras
            from ray.util.joblib import register_ray  # type: ignore[import-not-found]
        except ImportError as error:
            raise ImportError("--backend ray needs Ray: pip install ray") from error
        ray.init(options.scheduler)
        register_ray()
    with parallel_config(options.backend, n_jobs=options.workers):
        yield


if __name__ == "__main__":
    main()
