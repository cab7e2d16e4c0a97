"""What is in an EEG file? Its channels and what NeuroLM reads each as, units,
rate, length, annotations, amplitudes, and everything that is odd about it.

One file, or many:
    neurolm info subject01.edf
    neurolm info study/*.vhdr

With a picture (ten seconds of traces, amplitudes, spectrum); of several files
one picture each, numbered:
    neurolm info subject01.edf --picture subject01.png

For programs, a JSON object a file, a line each:
    neurolm info study/*.edf --json
    neurolm info *.edf --json | jq -r 'select(.problems != []) | .path'

Nothing is changed, and names, units and amplitudes that a model would refuse
are only reported. Give the header of a recording that is several files (.vhdr,
.set, .lay), and an EGI .mff as the folder that it is.
Amplitude is 1.4826 x the median absolute deviation within seconds, before
filtering; a model judges after filtering.

Fields of --json: path, format, bytes, sampling_rate (Hz), samples (a channel),
seconds, start (date and time, or null), channels (name, kind, unit,
sampling_rate, resolved, left_out, amplitude in microvolts, flat, clipped),
annotations (description: how often), first_annotations (onset, duration,
description), measured, problems. A file that cannot be read has path, error.

Exit status: 0 all files were read, 1 any could not be read or its picture not
be drawn (the rest is done), 2 wrong usage.
"""

import argparse

from .console import FAILURES, Console, check_output, numbered, one_line


HELP = "what is in a recording: channels, units, amplitudes, problems"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm info`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, in any format that MNE reads")
    parser.add_argument("--json", action="store_true", help="a JSON object a file instead of text")
    parser.add_argument("--picture", metavar="PNG", help="PNG file to draw to; needs matplotlib")


def run(options: argparse.Namespace, console: Console) -> None:
    """Tells what is in each file."""
    if options.picture and not options.picture.endswith(".png"):
        options.parser.error(f"--picture draws PNG: name a .png file, not {options.picture}")
    check_output(options.picture, options.parser)
    from ..inspection import inspect_recording, plot_recording

    def tell(file: str, number: int) -> None:
        info = inspect_recording(file)
        console.result(info.to_dict(), f"{info}\n")
        if not options.picture:
            return
        picture = numbered(options.picture, number, len(options.files), ".png")
        try:
            plot_recording(file, info).savefig(picture)
        except FAILURES as error:
            console.error(f"the picture {picture} of {file} cannot be drawn: {one_line(error)}")

    console.each(options.files, tell)
