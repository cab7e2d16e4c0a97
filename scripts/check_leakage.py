#!/usr/bin/env python
"""List the subjects and recordings that prepared sets train on and test on at once.

    python scripts/check_leakage.py prepared/tueg prepared/tuab prepared/tuev

Every set is compared with every other and with itself: its train part with validation and test, its validation part
with test; of a corpus to pre-train on, everything counts as trained on. A leak is certain where the content of a file,
its name within one archive, or the subject of one archive stands on both sides. The same name in sets that may have
nothing to do with each other is listed as possible, as are subjects whose names differ only in their writing, and what
a published split shares within its own set, as its notes say, as declared: neither of the two changes the exit status.
Exit status: 0 no certain leak, 1 at least one, or a set that cannot be read, 2 wrong usage.
"""

import argparse
import json
import sys

from neurolm_hf.leakage import describe_leaks, find_leaks, read_prepared_set


def main(arguments: list[str] | None = None) -> None:
    """Compares, prints, and leaves with 1 where something leaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folders", nargs="+", help="Prepared sets: the outputs of prepare_data.py.")
    parser.add_argument("--json", action="store_true", help="Print every leak as JSON.")
    options = parser.parse_args(arguments)
    try:
        sets = [read_prepared_set(folder) for folder in dict.fromkeys(options.folders)]
        leaks = find_leaks(sets)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    certain = sum(leak.grade == "certain" for leak in leaks)
    if options.json:
        print(json.dumps([leak.to_dict() for leak in leaks], indent=1))
    else:
        for prepared in sets:
            counts = ", ".join(f"{split} {len(files)}" for split, files in prepared.recordings.items() if files)
            kind = "corpus" if prepared.corpus else "task"
            print(f"{prepared.folder}: {kind} {prepared.task}; recordings: {counts or 'none'}")
            if prepared.only_subject is not None:
                print(f"    all are of one subject, {prepared.only_subject!r}: a leak by subject cannot be seen")
        if leaks:
            print(describe_leaks(leaks))
        print(f"{certain} certain leaks, {len(leaks) - certain} declared or possible")
    sys.exit(1 if certain else 0)


if __name__ == "__main__":
    main()
