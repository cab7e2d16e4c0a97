"""Turn the checkpoints that the authors of NeuroLM and LaBraM released, and those
that their code writes, into a folder that `from_pretrained` opens.

Everything (answers in text, and VQ tokens):
    neurolm convert --vq VQ.pt --neurolm NeuroLM-B.pt --output neurolm-b

The neural tokenizer alone (EEG to VQ tokens and back, no text), NeuroLM's or
LaBraM's:
    neurolm convert --vq VQ.pt --output neurolm-tokenizer
    neurolm convert --vq vqnsp.pth --output labram-tokenizer

LaBraM's encoder, with the tokenizer whose codes it predicts where patches are
masked; and one that you fine-tuned with the authors' code, on TUAB:
    neurolm convert --vq vqnsp.pth --labram labram-base.pth --output labram-base
    neurolm convert --labram best.pth --tasks TUAB --output labram-tuab

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
file: name in the model), dropped and created (name: why), assumed (what no file
says), untrained (channels of LaBraM that no training has moved), missing (what
the folder cannot do). Without --json, the same in words.

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

    from ..processing_neurolm import NeuroLMProcessor
    from ..released_files import ConversionReport

    # a model, what prepares its EEG, and what became of every tensor
    Converted = tuple[Any, NeuroLMProcessor, ConversionReport]

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
    "*_labram.py",
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm convert`."""
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder to write the model to")
    parser.add_argument(
        "--vq",
        metavar="FILE",
        help="VQ.pt or vqnsp.pth, the neural tokenizer: a file, or REPO_ID:FILE or REPO_ID of the Hub",
    )
    parser.add_argument(
        "--neurolm",
        metavar="FILE",
        help="NeuroLM-B.pt, -L or -XL, the language model that was trained with this VQ.pt, in the same ways; without "
        "--vq it reads EEG and answers, but gives no VQ tokens",
    )
    parser.add_argument(
        "--labram",
        metavar="FILE",
        help="labram-base.pth, or an encoder that was fine-tuned from it, which its tensors tell, in the same ways; "
        "without --vq the pre-trained one gets no codes to predict",
    )
    parser.add_argument(
        "--text-tokenizer",
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
        help="the tasks it was tuned on: names (Workload) or .json files; of a language model with --stage "
        "instruction-tuned, of a fine-tuned LaBraM the one whose answers are its classes",
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
    from ..model_card import write_model_card

    if options.neurolm is not None:
        model, processor, report = _language_model(options)
    elif options.labram is not None:
        model, processor, report = _encoder(options)
    else:
        model, processor, report = _neural_tokenizer(options)
    for pattern in MODEL_FILES if output.is_dir() else ():
        for file in output.glob(pattern):
            file.unlink()
    processor.save_pretrained(output)
    model.save_pretrained(output)
    write_model_card(output)
    kind, size = type(model).__name__, model.num_parameters()
    document = {"output": str(output), "model": kind, "parameters": size, **asdict(report)}
    console.result(document, f"{report}\n{output}: {kind}, {size:,} parameters")


def _usage_problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options before any file is read."""
    if options.vq is None and options.neurolm is None and options.labram is None:
        return "give --vq, --neurolm, --labram, or --vq with one of the others"
    if options.neurolm is not None and options.labram is not None:
        return "--neurolm and --labram are two models: convert them one after the other"
    if options.labram is not None:
        return _labram_usage_problem(options)
    if options.tasks and options.stage != "instruction-tuned":
        return "--tasks are those of --stage instruction-tuned, or of --labram"
    if options.neurolm is None and options.stage != "pretrained":
        return "--stage is the language model's: give --neurolm"
    if options.pad_to_patches is not None and options.pad_to_patches < 1:
        return "--pad-to-patches must be at least 1"
    return None


def _labram_usage_problem(options: argparse.Namespace) -> str | None:
    for name, default in (("text_tokenizer", None), ("stage", "pretrained"), ("pad_to_patches", None)):
        if getattr(options, name) != default:
            return f"--{name.replace('_', '-')} is for NeuroLM's checkpoints: leave it out with --labram"
    if options.tasks and len(options.tasks) > 1:
        return "--labram has the classes of one task: give one after --tasks"
    return None


def _language_model(options: argparse.Namespace) -> "Converted":
    from ..conversion import convert_neurolm
    from ..tasks import load_task

    tasks = [load_task(task).config_entry() for task in options.tasks or []]
    text_tokenizer = _text_tokenizer(options.text_tokenizer or "gpt2")
    model, report = convert_neurolm(
        options.neurolm, options.vq, text_tokenizer, options.stage, tasks, **_padding_fields(options)
    )
    if text_tokenizer is None:
        report.missing.append("the text tokenizer: prompts and answers must be token ids (`--text-tokenizer`)")
    if options.stage == "instruction-tuned" and not tasks:
        report.missing.append("the tasks it was tuned on, with their answers (`--tasks`)")
    return model, _processor(model.config.eeg_config, options, text_tokenizer), report


def _encoder(options: argparse.Namespace) -> "Converted":
    from ..conversion_labram import convert_labram
    from ..tasks import load_task

    classes = load_task(options.tasks[0]).classes if options.tasks else None
    model, report = convert_labram(options.labram, options.vq, classes)
    return model, _processor(model.config, options), report


def _neural_tokenizer(options: argparse.Namespace) -> "Converted":
    """Of either model: the tensors tell."""
    from ..conversion import convert_vq
    from ..conversion_labram import convert_labram_vq
    from ..released_files import Kind, read_checkpoint

    checkpoint = read_checkpoint(options.vq, "VQ*.pt", "vqnsp*.pth")
    model: Any
    if checkpoint.must_be(Kind.NEUROLM_VQ, Kind.LABRAM_VQ) is Kind.NEUROLM_VQ:
        model, report = convert_vq(checkpoint, **_padding_fields(options))
        rest = "everything with text: the language model is in a NeuroLM-*.pt (`--neurolm`)"
    else:
        if options.pad_to_patches is not None:
            raise ValueError(f"{checkpoint.path}: is LaBraM's, which is never padded: leave --pad-to-patches out.")
        model, report = convert_labram_vq(checkpoint)
        rest = "masked modelling and classes: the encoder for them is in labram-base.pth (`--labram`)"
    report.missing.insert(0, rest)
    return model, _processor(model.config, options), report


def _padding_fields(options: argparse.Namespace) -> dict[str, Any]:
    return {"padding_enters_statistics": options.pad_to_patches is not None}


def _processor(
    config: Any, options: argparse.Namespace, text_tokenizer: "PreTrainedTokenizerBase | None" = None
) -> "NeuroLMProcessor":
    """What prepares EEG for a model with this configuration, of NeuroLM's encoder or LaBraM's."""
    from .. import EEGFeatureExtractor, NeuroLMProcessor
    from ..processing_neurolm import LABRAM_LAYOUT

    fields: dict[str, Any] = {"pad_to_patches": options.pad_to_patches}
    if config.model_type.startswith("labram"):
        fields = {**LABRAM_LAYOUT, "known_channels": config.num_channel_embeddings - 1}
    fields |= {name: config.patch_size for name in ("sampling_rate", "patch_size")}
    extractor = EEGFeatureExtractor(**{**fields, "max_seconds": config.max_seconds})
    return NeuroLMProcessor(extractor, text_tokenizer)


def _text_tokenizer(source: str) -> "PreTrainedTokenizerBase | None":
    """The text tokenizer, or None for `none`."""
    from ..starting_models import read_text_tokenizer

    return None if source == "none" else read_text_tokenizer(source)
