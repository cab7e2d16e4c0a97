#!/usr/bin/env python
"""What is in an EEG file? Its channels and what NeuroLM reads each as, units, rate, length, annotations, amplitudes,
and everything that is wrong or odd about it.

One file, or many:
    python scripts/inspect_recording.py subject01.edf
    python scripts/inspect_recording.py study/*.vhdr

With a picture (ten seconds of traces, amplitudes, spectrum); of several files, one picture each, numbered:
    python scripts/inspect_recording.py subject01.edf --picture subject01.png

For programs: one JSON list, an object a file; a file that cannot be read has its path and its error there:
    python scripts/inspect_recording.py study/*.edf --json

Nothing is changed, and names, units and amplitudes that `EEGFeatureExtractor` would refuse are only reported. Give the
header of a recording that is several files (.vhdr, .set, .lay), and an EGI .mff as the folder that it is.
Amplitude is 1.4826 x the median absolute deviation within seconds, before filtering; preparation judges after
filtering.
Exit status: 0 all files were read, 1 any could not be read or its picture not be drawn (all else is reported), 2 wrong
usage.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from neurolm_hf.inspection import RecordingInfo, inspect_recording, plot_recording


def main(arguments: list[str] | None = None) -> None:
    """Reports on every file, and exits with 1 if any could not be read."""
    # not HfArgumentParser: it has no positional arguments, and its --json would take the next file for its value
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="Recordings, in any format that MNE reads.")
    parser.add_argument("--json", action="store_true", help="Print one JSON list instead of text.")
    parser.add_argument("--picture", metavar="PNG", help="PNG file to draw to; needs matplotlib.")
    options = parser.parse_args(arguments)
    if options.picture and not options.picture.lower().endswith(".png"):
        parser.error(f"--picture draws PNG: name a .png file, not {options.picture}")
    reports: list[dict[str, Any]] = []
    pictures: list[tuple[RecordingInfo, Path]] = []
    failed = False
    for number, file in enumerate(options.files, 1):
        try:
            info = inspect_recording(file)
        except (ImportError, ValueError, OSError) as error:
            failed = True
            reports.append({"path": file, "error": str(error)})
            print(f"error: {error}", file=sys.stderr)
            continue
        reports.append(info.to_dict())
        if options.picture:
            path = Path(options.picture)
            pictures.append((info, path.with_stem(f"{path.stem}-{number}") if len(options.files) > 1 else path))
        if not options.json:
            print(info, end="\n\n")
    if options.json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    sys.stdout.flush()
    for info, path in pictures:
        try:
            plot_recording(info.path, info).savefig(path)
        except (ImportError, ValueError, OSError) as error:
            failed = True
            print(f"error: the picture {path} of {info.path} cannot be drawn: {error}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
