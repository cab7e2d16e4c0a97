#!/usr/bin/env python
"""Take over what the NeuroLM authors' own scripts have prepared, as the set that prepare_data.py would write.

    python scripts/import_pickles.py --task TUAB --input TUAB/processed --output prepared/tuab
    python scripts/import_pickles.py --task TUEV --input TUEV/processed --output prepared/tuev
    python scripts/import_pickles.py --task SEED --input seed-3.hdf5 --output prepared/seed
    python scripts/import_pickles.py --task TUEG --input pretraining-pickles --output prepared/tueg

Nothing in a pickle is run: arrays, numbers, strings and plain containers are read, everything else is refused, and the
file and what it asked for are named. Such files are left out; the others are imported. Started again after it was
killed, it goes on.
Exit status: 0 all imported, 1 some or all could not be (or the output cannot be written), 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field

from neurolm_hf.command_line import options_parser
from neurolm_hf.reference_pickles import REFUSED, import_pickles
from neurolm_hf.tasks import load_task


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    task: str = field(
        metadata={"help": "TUAB, TUEV, TUSL, HMC, Workload, SEED, TUEG for pre-training windows, or a .json file."}
    )
    input: str = field(metadata={"help": "The folder that the authors' script wrote; for SEED its .hdf5 file."})
    output: str = field(metadata={"help": "Folder of the prepared set: empty, new, or that of an earlier run."})
    workers: int = field(default=1, metadata={"help": "Processes (default: 1)."})


def main(arguments: list[str] | None = None) -> None:
    """Imports, prints the summary, and leaves with 1 where anything was refused."""
    parser = options_parser(Arguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        summary = import_pickles(load_task(options.task), options.input, options.output, options.workers)
    except (ValueError, FileNotFoundError, NotADirectoryError, ImportError) as error:
        parser.error(str(error))
    except OSError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on.", file=sys.stderr)
        sys.exit(130)
    print(summary)
    refused = [entry for entry in summary.files if any(part["reason"] == REFUSED for part in entry["left_out"])]
    for warning in (warning for entry in refused for warning in entry["warnings"]):
        print(f"left out: {warning}", file=sys.stderr)
    sys.exit(1 if refused or summary.failed else 0)


if __name__ == "__main__":
    main()
