"""Turn the checkpoints that NeuroLM's authors released into a folder that
`from_pretrained` opens.

Everything (answers in text, and VQ tokens):
    neurolm convert --vq VQ.pt --neurolm NeuroLM-B.pt --output neurolm-b

The neural tokenizer alone (EEG to VQ tokens and back, no text):
    neurolm convert --vq VQ.pt --output neurolm-tokenizer

From the Hub, a file there being written REPO_ID:FILE, with GPT-2's text
tokenizer out of a folder:
    neurolm convert --vq Weibang/NeuroLM:VQ.pt \\
        --neurolm Weibang/NeuroLM:NeuroLM-B.pt \\
        --text-tokenizer folder-with-encoder.json-and-vocab.bpe \\
        --output neurolm-b

A checkpoint that you tuned with the authors' code on the Workload task,
padding every sample to 276 patches:
    neurolm convert --vq VQ.pt --neurolm ckpt.pt --output neurolm-workload \\
        --stage instruction-tuned --tasks Workload --pad-to-patches 276

Nothing in a file is run, and no tensor is lost in silence: an unknown or
missing one is an error.

Fields of --json: output, model (its class), parameters, converted (name in the
file: name in the model), dropped and created (name: why), missing (what the
folder cannot do). Without --json, the same in words.

Exit status: 0 converted, 1 could not be converted, 2 wrong usage.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console
from .reading import load_transformers


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HELP = "turn the authors' released checkpoints into a model folder"

# What a model folder holds; `--overwrite` removes these, and nothing else, before it writes.
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "*_neurolm.py",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm convert`."""
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write the model to")
    parser.add_argument(
        "--vq", metavar="FILE", help="VQ.pt, the neural tokenizer: a file, or REPO_ID:FILE or REPO_ID of the Hub"
    )
    parser.add_argument(
        "--neurolm",
        metavar="FILE",
        help="NeuroLM-B.pt, -L or -XL, the language model that was trained with this VQ.pt, in the same ways; without "
        "--vq it reads EEG and answers, but gives no VQ tokens",
    )
    parser.add_argument(
        "--text-tokenizer",
        default="gpt2",
        metavar="SOURCE",
        help="the text tokenizer of the language model: gpt2 (the default) or another id of the Hub; a folder with a "
        "saved tokenizer or with encoder.json and vocab.bpe; or none, to write no text side: the placeholder of EEG "
        "then takes the last row of the text vocabulary",
    )
    parser.add_argument(
        "--stage",
        choices=("pretrained", "instruction-tuned"),
        default="pretrained",
        help="what the language model has been through, which its file does not say (default: pretrained)",
    )
    parser.add_argument(
        "--tasks",
        nargs="+",
        metavar="TASK",
        help="the tasks it was tuned on, with --stage instruction-tuned: names (Workload) or .json files",
    )
    parser.add_argument(
        "--pad-to-patches",
        type=int,
        metavar="N",
        help="for a checkpoint tuned on samples padded to this many patches, as the authors' code does: pad to as "
        "many and let padding enter the statistics, for padding changes what such a model computes",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of text")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in a folder that is not empty")


def run(options: argparse.Namespace, console: Console) -> None:
    """Reads everything, and only then writes.

    Raises:
        ValueError, OSError: what cannot be read, converted or written.
    """
    if problem := _usage_problem(options):
        options.parser.error(problem)
    output = Path(options.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not options.overwrite):
        raise ValueError(
            f"{output} is not an empty folder; choose another, or replace the model in it with --overwrite."
        )
    load_transformers(console)
    console.progress("converting")
    from .. import EEGFeatureExtractor, NeuroLMProcessor
    from ..conversion import convert_neurolm, convert_vq
    from ..model_card import write_model_card
    from ..tasks import load_task

    eeg_fields = {"padding_enters_statistics": options.pad_to_patches is not None}
    text_tokenizer = None
    model: Any
    if options.neurolm is None:
        model, report = convert_vq(options.vq, **eeg_fields)
        eeg_config = model.config
        report.missing.insert(0, "everything with text: the language model is in a NeuroLM-*.pt (`--neurolm`)")
    else:
        tasks = [load_task(task).config_entry() for task in options.tasks or []]
        text_tokenizer = _text_tokenizer(options.text_tokenizer)
        model, report = convert_neurolm(
            options.neurolm, options.vq, text_tokenizer, options.stage, tasks, **eeg_fields
        )
        eeg_config = model.config.eeg_config
        if text_tokenizer is None:
            report.missing.append("the text tokenizer: prompts and answers must be token ids (`--text-tokenizer`)")
        if options.stage == "instruction-tuned" and not tasks:
            report.missing.append("the tasks it was tuned on, with their answers (`--tasks`)")
    extractor = EEGFeatureExtractor(
        sampling_rate=eeg_config.patch_size,
        patch_size=eeg_config.patch_size,
        max_seconds=eeg_config.max_seconds,
        pad_to_patches=options.pad_to_patches,
    )
    for pattern in MODEL_FILES if output.is_dir() else ():
        for file in output.glob(pattern):
            file.unlink()
    NeuroLMProcessor(extractor, text_tokenizer).save_pretrained(output)
    model.save_pretrained(output)
    write_model_card(output)
    kind, size = type(model).__name__, model.num_parameters()
    document = {"output": str(output), "model": kind, "parameters": size, **asdict(report)}
    console.result(document, f"{report}\n{output}: {kind}, {size:,} parameters")


def _usage_problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options before any file is read."""
    if options.vq is None and options.neurolm is None:
        return "give --vq, --neurolm or both"
    if options.tasks and options.stage != "instruction-tuned":
        return "--tasks are those of --stage instruction-tuned"
    if options.neurolm is None and options.stage != "pretrained":
        return "--stage is the language model's: give --neurolm"
    if options.pad_to_patches is not None and options.pad_to_patches < 1:
        return "--pad-to-patches must be at least 1"
    return None


def _text_tokenizer(source: str) -> "PreTrainedTokenizerBase | None":
    """The text tokenizer, or None for `none`."""
    from ..starting_models import read_text_tokenizer

    return None if source == "none" else read_text_tokenizer(source)
