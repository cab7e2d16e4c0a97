#!/usr/bin/env python
"""Turn the checkpoints that NeuroLM's authors released into a folder that `from_pretrained` opens.

Everything (answers in text, and VQ tokens):
    python scripts/convert_checkpoint.py --vq VQ.pt --neurolm NeuroLM-B.pt --output neurolm-b

The neural tokenizer alone (EEG to VQ tokens and back, no text):
    python scripts/convert_checkpoint.py --vq VQ.pt --output neurolm-tokenizer

From the Hub, a file there being written REPO_ID:FILE, with GPT-2's text tokenizer out of a folder:
    python scripts/convert_checkpoint.py --vq Weibang/NeuroLM:VQ.pt --neurolm Weibang/NeuroLM:NeuroLM-B.pt \\
        --text-tokenizer folder-with-encoder.json-and-vocab.bpe --output neurolm-b

A checkpoint that you tuned with the authors' code on the Workload task, padding every sample to 276 patches:
    python scripts/convert_checkpoint.py --vq VQ.pt --neurolm ckpt.pt --stage instruction-tuned --tasks Workload \\
        --pad-to-patches 276 --output neurolm-workload

Nothing in a file is run, and no tensor is lost in silence: an unknown or missing one is an error.
Exit status: 0 converted, 1 could not be converted, 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from neurolm_hf import EEGFeatureExtractor, NeuroLMProcessor
from neurolm_hf.command_line import options_parser
from neurolm_hf.conversion import convert_neurolm, convert_vq
from neurolm_hf.model_card import write_model_card
from neurolm_hf.processing_neurolm import build_text_tokenizer
from neurolm_hf.tasks import load_task


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


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    output: str = field(metadata={"help": "Folder to write the model to."})
    vq: str | None = field(
        default=None,
        metadata={"help": "VQ.pt, the neural tokenizer: a file, or REPO_ID:FILE or REPO_ID of the Hub."},
    )
    neurolm: str | None = field(
        default=None,
        metadata={
            "help": "NeuroLM-B.pt, -L or -XL, the language model that was trained with this VQ.pt, in the same ways. "
            "Without --vq it reads EEG and answers, but gives no VQ tokens."
        },
    )
    text_tokenizer: str = field(
        default="gpt2",
        metadata={
            "help": "The text tokenizer of the language model: gpt2 (the default) or another id of the Hub; a folder "
            "with a saved tokenizer or with encoder.json and vocab.bpe; or none, to write no text side: the "
            "placeholder of EEG then takes the last row of the text vocabulary."
        },
    )
    stage: Literal["pretrained", "instruction-tuned"] = field(
        default="pretrained",
        metadata={
            "help": "What the language model has been through, which its file does not say (default: pretrained)."
        },
    )
    tasks: list[str] | None = field(
        default=None,
        metadata={
            "help": "The tasks it was tuned on, with --stage instruction-tuned: names (Workload) or .json files."
        },
    )
    pad_to_patches: int | None = field(
        default=None,
        metadata={
            "help": "For a checkpoint tuned on samples padded to this many patches, as the authors' code does: pad to "
            "as many and let padding enter the statistics, for padding changes what such a model computes."
        },
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Replace the model in an output folder that is not empty."}
    )


def main(arguments: list[str] | None = None) -> None:
    """Converts, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    if problem := usage_problem(options):
        parser.error(problem)
    try:
        convert(options)
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def usage_problem(options: Arguments) -> str | None:
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


def convert(options: Arguments) -> None:
    """Reads everything, and only then writes.

    Raises:
        ValueError, OSError: what cannot be read, converted or written.
    """
    output = Path(options.output)
    if output.is_file() or (output.is_dir() and any(output.iterdir()) and not options.overwrite):
        raise ValueError(
            f"{output} is not an empty folder; choose another, or replace the model in it with --overwrite."
        )
    eeg_fields = {"padding_enters_statistics": options.pad_to_patches is not None}
    text_tokenizer = None
    model: Any
    if options.neurolm is None:
        assert options.vq is not None  # usage_problem
        model, report = convert_vq(options.vq, **eeg_fields)
        eeg_config = model.config
        report.missing.insert(0, "everything with text: the language model is in a NeuroLM-*.pt (`--neurolm`)")
    else:
        tasks = [load_task(task).config_entry() for task in options.tasks or []]
        text_tokenizer = read_text_tokenizer(options.text_tokenizer)
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
    print(f"{report}\n{output}: {type(model).__name__}, {model.num_parameters():,} parameters")


def read_text_tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    """The text tokenizer, or None for `none`."""
    if source == "none":
        return None
    try:
        return build_text_tokenizer(source)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"the text tokenizer {source!r} cannot be read: {reason}. Give a folder with encoder.json and vocab.bpe, "
            "or none."
        ) from error


if __name__ == "__main__":
    main()
