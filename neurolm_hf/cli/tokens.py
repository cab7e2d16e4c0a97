"""The VQ tokens of a recording: the code of each channel in each second, by a
neural tokenizer or by the one in a NeuroLM or a LaBraM.

A table with a row a second and a column a channel; seconds count from the
start of the recording:
    neurolm tokens night.edf --model demo-output/model

For programs. A code depends on the other channels and seconds of its window,
so windows are kept apart:
    neurolm tokens night.edf --model neurolm-b --output night.npz
    neurolm tokens study/*.edf --model neurolm-b --output tokens.csv
    neurolm tokens night.edf --model neurolm-b --json | jq '.windows[0].codes'

--output takes its format from the name:
    .csv          a row a code: path, window, second, channel, code;
                  all recordings in one file
    .npz          arrays codes (windows, seconds, channels), starts (windows;
                  in seconds), channels (names)
    .safetensors  tensors codes and starts; channels in the metadata, separated
                  by spaces
Of several recordings, .npz and .safetensors are one file each, numbered.

MODEL is a folder or an id of the Hub. A recording is filtered and scaled as it
wants. Code that lies beside its weights is never run.

Fields of --json, an object a recording, a line each: path, codebook_size,
channels, windows (start and end in seconds; codes: a list a second, with a
code a channel). A recording that cannot be read has path, error.

Exit status: 0 all recordings were read, 1 any could not be, or the model not
be opened (the rest is done), 2 wrong usage.
"""

import argparse
import csv
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console, check_output, numbered, table
from .reading import add_reading_options, add_window_options, check_model, check_window_options, prepare_torch


if TYPE_CHECKING:
    import numpy as np

HELP = "the VQ tokens of a recording: a code for each channel and second"
SUFFIXES = (".csv", ".npz", ".safetensors")
# Opened as what they were saved as: another class would miss weights, or report them as left over.
LANGUAGE_MODELS = ("NeuroLMForCausalLM", "NeuroLMForSequenceClassification", "NeuroLMModel")


@dataclass(frozen=True)
class Tokens:
    """The tokens of one recording.

    Attributes:
        path: of the recording.
        channels: their names in the vocabulary.
        starts: of the windows, float64 (windows,), in seconds.
        codes: int64 (windows, seconds, channels).
    """

    path: str
    channels: list[str]
    starts: "np.ndarray"
    codes: "np.ndarray"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm tokens`."""
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, in any format that MNE reads")
    what = "a neural tokenizer, a NeuroLM or a LaBraM: a folder or an id of the Hub"
    parser.add_argument("--model", required=True, help=what)
    parser.add_argument("--json", action="store_true", help="a JSON object a recording instead of tables")
    parser.add_argument("--output", metavar="FILE", help=f"write them there instead: {', '.join(SUFFIXES)}")
    add_window_options(parser)
    add_reading_options(parser)


def run(options: argparse.Namespace, console: Console) -> None:
    """Tells the tokens of each file.

    Raises:
        ValueError, OSError, ImportError: the model cannot be opened.
    """
    check_model(options.model, options.parser)
    check_window_options(options)
    suffix = Path(options.output or "").suffix
    if options.output and suffix not in SUFFIXES:
        options.parser.error(f"--output is a file named {', '.join(SUFFIXES)}, not {options.output}")
    if options.output and options.json:
        options.parser.error("give --output or --json, not both")
    check_output(options.output, options.parser)
    device = prepare_torch(options.device, console)
    console.progress(f"opening {options.model}")
    model, extractor = open_encoder(options.model)
    model.to(device).eval()
    for name in ("window_seconds", "stride_seconds"):
        if (value := getattr(options, name)) is not None:
            setattr(extractor, name, value)
    extractor.check_settings()
    size = getattr(model.config, "eeg_config", model.config).codebook_size

    def tell(file: str, number: int) -> None:
        tokens = recording_tokens(file, model, extractor, options, console)
        if options.output is None:
            document = {"path": file, "codebook_size": size, "channels": tokens.channels, "windows": _windows(tokens)}
            console.result(document, _as_text(tokens, size))
        elif suffix == ".csv":
            _append_csv(tokens, options.output, is_first=not written)
        else:
            _write_arrays(tokens, numbered(options.output, number, len(options.files), suffix))
        written.append(file)

    written: list[str] = []
    console.each(options.files, tell)


def open_encoder(source: str) -> tuple[Any, Any]:
    """The model that makes tokens, and its feature extractor; no code that lies beside the weights is run.

    Raises:
        ValueError: it is something else, or cannot be found.
        OSError: it cannot be read.
    """
    from .. import EEGFeatureExtractor, NeuroLMConfig, modeling_neurolm
    from ..starting_models import ARCHITECTURES, architecture_of, load_vq, model_type

    if architecture_of(source) is not None:
        return load_vq(source, architectures=ARCHITECTURES)
    if (kind := model_type(source)) == "labram":
        return _open_labram(source)
    if kind != "neurolm":
        raise ValueError(f"{source} is a {kind}, which makes no tokens of EEG: give a NeuroLM or a neural tokenizer.")
    (name,) = NeuroLMConfig.from_pretrained(source).architectures or ["NeuroLMForCausalLM"]
    if name not in LANGUAGE_MODELS:
        raise ValueError(f"{source} is a {name}, which is none of {', '.join(LANGUAGE_MODELS)}.")
    model = getattr(modeling_neurolm, name).from_pretrained(source)
    return model.base_model, EEGFeatureExtractor.from_pretrained(source)


def _open_labram(source: str) -> tuple[Any, Any]:
    """A LaBraM that was trained by masking, with the tokenizer whose codes it predicts.

    Raises:
        ValueError: the tokenizer is not in it.
    """
    from .. import EEGFeatureExtractor, LaBraMConfig, LaBraMForMaskedEEGModeling

    config = LaBraMConfig.from_pretrained(source)
    if config.vq_config is None or config.architectures != [LaBraMForMaskedEEGModeling.__name__]:
        raise ValueError(
            f"{source} is a LaBraM without the tokenizer that its codes are of: give that one, a LaBraMVQModel."
        )
    return LaBraMForMaskedEEGModeling.from_pretrained(source), EEGFeatureExtractor.from_pretrained(source)


def recording_tokens(file: str, model: Any, extractor: Any, options: argparse.Namespace, console: Console) -> Tokens:
    """The tokens of one file, a batch of windows at a time.

    Raises:
        ValueError, OSError, ImportError: the file cannot be read, or is none that the model can read.
    """
    import numpy as np

    from ..processing_neurolm import eeg_codes

    (prepared,) = extractor.prepare(file, unit=options.unit, unknown_channels=options.unknown_channels or "raise")
    spans = extractor.window_spans(prepared)
    codes = []
    for first in range(0, len(spans), options.batch_size):
        batch = [[extractor.segment_at(prepared, *span)] for span in spans[first : first + options.batch_size]]
        codes.append(eeg_codes(extractor.collate(batch, (), "pt"), model).cpu().numpy())
        console.progress(f"{batch[-1][0].end:.0f} of {prepared.n_samples / extractor.sampling_rate:.0f} s")
    starts = np.array([start / extractor.sampling_rate for start, _ in spans])
    channels = list(prepared.ch_names)
    seconds = (spans[0][1] - spans[0][0]) // extractor.patch_size
    # padding to `pad_to_patches` stands behind the patches
    real = np.concatenate(codes)[:, : seconds * len(channels)]
    by_second = np.stack([extractor.by_channel(window, len(channels)).T for window in real])
    return Tokens(file, channels, starts, by_second)


def _windows(tokens: Tokens) -> list[dict[str, Any]]:
    return [
        {"start": float(start), "end": float(start + len(codes)), "codes": codes.tolist()}
        for start, codes in zip(tokens.starts, tokens.codes, strict=True)
    ]


def _as_text(tokens: Tokens, codebook_size: int) -> str:
    """A row a second and a column a channel, a blank line between windows; columns that fit the terminal."""
    n_windows, n_seconds, n_channels = tokens.codes.shape
    used = len({int(code) for code in tokens.codes.flat})
    size = f"{n_windows} x {n_seconds} s of {n_channels} channels"
    lines = [f"{tokens.path}: {size}; {used} of {codebook_size} codes are used"]
    cell = 2 + max(len(str(codebook_size - 1)), *map(len, tokens.channels))
    at_once = max(1, (_width() - len("seconds")) // cell)
    for window in _windows(tokens):
        for first in range(0, n_channels, at_once):
            part = slice(first, first + at_once)
            rows = [["seconds", *tokens.channels[part]]]
            for second, codes in enumerate(window["codes"]):
                rows.append([f"{window['start'] + second:g}", *map(str, codes[part])])
            lines += ["", *table(rows)]
    return "\n".join([*lines, ""])


def _width() -> int:
    """Of what reads the tables: programs may have them in one piece."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize


def _append_csv(tokens: Tokens, path: str, is_first: bool) -> None:
    with open(path, "w" if is_first else "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if is_first:
            writer.writerow(["path", "window", "second", "channel", "code"])
        for number, window in enumerate(_windows(tokens)):
            for second, codes in enumerate(window["codes"]):
                for channel, code in zip(tokens.channels, codes, strict=True):
                    writer.writerow([tokens.path, number, f"{window['start'] + second:g}", channel, code])


def _write_arrays(tokens: Tokens, path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    if path.suffix == ".npz":
        np.savez_compressed(path, codes=tokens.codes, starts=tokens.starts, channels=np.array(tokens.channels))
    else:
        metadata = {"channels": " ".join(tokens.channels), "path": tokens.path}
        save_file({"codes": tokens.codes, "starts": tokens.starts}, path, metadata)
