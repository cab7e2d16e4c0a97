#!/usr/bin/env python
"""What a training would cost, before anything is bought: steps, FLOPs, memory of a GPU, communication, GPU hours.

NeuroLM-XL as in the paper, all three stages, 25,000 hours of EEG, on eight H100 (the tables of docs/scaling.md):
    python scripts/estimate_training.py --model XL --vq recipes/vq-paper.yaml --pretrain recipes/pretrain-xl.yaml \\
        --instruct recipes/instruction-xl.yaml --hours 25000 25000 1944 --channels 23 23 19 --window-seconds 44 44 10

Pre-training NeuroLM-B on 300 hours of 19 channels, on one A100:
    python scripts/estimate_training.py --model B --pretrain recipes/pretrain-one-gpu.yaml --hours 300 --channels 19 \\
        --window-seconds 30 --devices 1 --gpu A100

Another language model in NeuroLM-B's place, its Hub id or folder; only its configuration is read:
    python scripts/estimate_training.py --model B --text-model Qwen/Qwen3-0.6B --pretrain recipes/pretrain-b.yaml \\
        --hours 1000

An adapter for your model, on a GPU of your own: products a second that it can do, its memory, its bus:
    python scripts/estimate_training.py --model runs/pretrained --instruct recipes/instruction-lora.yaml --hours 20 \\
        --channels 32 --window-seconds 4 --devices 1 --tflops 165 --memory-gb 24 --link-gbs 25

Stages are those whose recipe is given; options that hold for a stage each (--hours, --channels, --window-seconds) take
one value for all of them, or one a stage in the order vq, pretrain, instruct. Nothing is downloaded but a named
configuration, and no GPU is needed. Texts are those of the recipe, or a quarter of the windows where it does not say,
as in a training with --text-data; one without: --text-batch-size 0. Time is products divided by what the GPUs reach of
their peak: --utilisation decides it, so measure yours before you believe the hours. It is the FLOPs a step told here,
divided by the seconds a step of a short training on one of them, and by its peak.
Exit status: 0 told, 1 could not be told, 2 wrong usage.
"""

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from neurolm_hf.command_line import options_parser
from neurolm_hf.configuration_neurolm import GPT2_SIZES, NeuroLMConfig, NeuroLMVQConfig
from neurolm_hf.costs import Cost, Devices, Schedule, costs_of, ranks_of, step_of
from neurolm_hf.dry_run import Batch, DryRun, Setup, Stage
from neurolm_hf.recipes import read_recipe
from neurolm_hf.resources import moment_bytes


class GPU(NamedTuple):
    """From its maker's data sheet: dense TFLOP/s in bfloat16 and float32, GB, GB/s of NVLink in one direction."""

    bf16: float
    fp32: float
    memory: float
    link: float


# NVIDIA's data sheets of A100 80GB SXM, H100 SXM and H200 SXM. They print the tensor cores' rates with sparsity, twice
# these, and NVLink's both directions together, twice these. float32 is without TF32, PyTorch's default.
GPUS = {
    "A100": GPU(312, 19.5, 80, 300),
    "H100": GPU(989, 67, 80, 450),
    "H200": GPU(989, 67, 141, 450),
}
TITLES: dict[Stage, str] = {"vq": "Neural tokenizer", "pretrain": "Pre-training", "instruct": "Instruction tuning"}
# What the Trainer keeps free for its context, its kernels and fragmentation.
RESERVED = 0.1

LEFT_OUT = f"""\
Counted are matrix products, convolutions and attention (masked scores too), as this package's code runs them; norms,
activation functions, the spectra of the targets, the optimiser's arithmetic, reading data, evaluation and checkpoints
are not. All windows are equally long. Activations are those of sdpa attention, at their worst moment; the context of
the device, buffers of communication and fragmentation are not among them: what "fits" leaves {RESERVED:.0%} of the
memory for these. Nothing is sent while something is computed: what overlaps makes a step shorter, at best by all of
"sending". The optimiser's step on the host (offloaded) takes no time here."""


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    hours: list[float] = field(metadata={"help": "Hours of recordings, for all stages or for each."})
    model: str = field(
        default="B", metadata={"help": "B, L or XL, or the folder or Hub id of a NeuroLM or a neural tokenizer."}
    )
    text_model: str | None = field(
        default=None, metadata={"help": "A language model in place of --model's: any decoder, a folder or a Hub id."}
    )
    vq: str | None = field(default=None, metadata={"metavar": "RECIPE", "help": "Recipe of the neural tokenizer."})
    pretrain: str | None = field(default=None, metadata={"metavar": "RECIPE", "help": "Recipe of pre-training."})
    instruct: str | None = field(default=None, metadata={"metavar": "RECIPE", "help": "Recipe of instruction tuning."})
    channels: list[int] = field(default_factory=lambda: [23], metadata={"help": "Channels of a window (default: 23)."})
    window_seconds: list[int] = field(
        default_factory=lambda: [44],
        metadata={"help": "Seconds of a window (default: 44, which with 23 channels are 1012 patches)."},
    )
    epochs: float | None = field(default=None, metadata={"help": "In place of the recipes'."})
    total_batch_size: int | None = field(
        default=None, metadata={"help": "Windows of a step, on all devices, in place of the recipes'."}
    )
    micro_batch_size: int | None = field(
        default=None, metadata={"help": "Windows that a device takes at once at the most, in place of the recipes'."}
    )
    text_batch_size: int | None = field(
        default=None, metadata={"help": "Texts of a step, in place of the recipes'; 0 goes without text."}
    )
    text_tokens: int = field(default=1024, metadata={"help": "Tokens of a text (default: 1024)."})
    prompt_tokens: int = field(
        default=28, metadata={"help": "Tokens of a question (default: 28, the mean of the paper's windows)."}
    )
    answer_tokens: int = field(default=3, metadata={"help": "Tokens of an answer, with its end (default: 3)."})
    lora_rank: int | None = field(default=None, metadata={"help": "In place of the recipe's; 0 trains all weights."})
    activation_checkpointing: bool | None = field(
        default=None, metadata={"nargs": "?", "const": True, "help": "In place of the recipes'."}
    )
    fp32: bool = field(default=False, metadata={"help": "Products in float32 in place of bfloat16."})
    optim: str | None = field(
        default=None, metadata={"help": "The Trainer's name of the optimiser, in place of the recipe's."}
    )
    devices: int = field(default=8, metadata={"help": "GPUs in all (default: 8)."})
    gpus_per_node: int = field(default=8, metadata={"help": "GPUs of one machine (default: 8)."})
    gpu: str = field(default="H100", metadata={"help": f"One of {', '.join(GPUS)} (default: H100)."})
    tflops: float | None = field(default=None, metadata={"help": "10^12 dense FLOP/s of a GPU, in place of --gpu's."})
    memory_gb: float | None = field(default=None, metadata={"help": "Memory of a GPU, in place of --gpu's."})
    link_gbs: float | None = field(
        default=None, metadata={"help": "GB/s that a GPU sends to one of its node, in place of --gpu's NVLink."}
    )
    node_link_gbs: float = field(
        default=400, metadata={"help": "GB/s that a node sends to others (default: 400, eight ports of 400 Gbit/s)."}
    )
    host_link_gbs: float = field(
        default=25, metadata={"help": "GB/s between a GPU and its host (default: 25, PCIe 4.0 x16 in use)."}
    )
    utilisation: float = field(
        default=0.4, metadata={"help": "Share of the peak that matrix products reach over a step (default: 0.4)."}
    )
    json: bool = field(default=False, metadata={"help": "Print JSON in place of tables."})

    @property
    def recipes(self) -> dict[Stage, str]:
        """The recipe of each stage that is asked about."""
        given: dict[Stage, str | None] = {"vq": self.vq, "pretrain": self.pretrain, "instruct": self.instruct}
        return {stage: recipe for stage, recipe in given.items() if recipe is not None}


@dataclass(frozen=True)
class Estimate:
    """Of one stage."""

    setup: Setup
    schedule: Schedule
    step: DryRun
    costs: dict[str, Cost]

    @property
    def step_flops(self) -> int:
        """Of an optimiser step."""
        return sum(part.total for part in self.step.flops.values())

    @property
    def windows_seen(self) -> int:
        """In the whole training."""
        return self.schedule.steps * self.schedule.step.windows


def main(arguments: list[str] | None = None) -> None:
    """Tells, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    if problem := usage_problem(options):
        parser.error(problem)
    try:
        estimates = [estimate(options, place, stage) for place, stage in enumerate(options.recipes)]
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    gpu = devices_of(options)
    print(
        json.dumps([as_json(one) for one in estimates], indent=1) if options.json else report(estimates, gpu, options)
    )


def usage_problem(options: Arguments) -> str | None:
    """What is wrong with the options before anything is read."""
    stages = len(options.recipes)
    if not stages:
        return "give a recipe to tell about: --vq, --pretrain or --instruct, or several"
    for name in ("hours", "channels", "window_seconds"):
        values = getattr(options, name)
        option = f"--{name.replace('_', '-')}"
        if len(values) not in (1, stages):
            return f"{option} takes one value, or one for each of the {stages} stages; got {len(values)}"
        if min(values) <= 0:
            return f"{option} must be above 0"
    if options.gpu not in GPUS:
        return f"--gpu is one of {', '.join(GPUS)}; of another one, give --tflops, --memory-gb and --link-gbs"
    if not 0 < options.utilisation <= 1:
        return "--utilisation is a share: above 0, at most 1"
    for one in fields(options):
        value = getattr(options, one.name)
        if isinstance(value, int | float) and value < 0:
            return f"--{one.name.replace('_', '-')} must not be negative"
    if min(options.devices, options.gpus_per_node) < 1:
        return "--devices and --gpus-per-node are at least 1"
    return None


def estimate(options: Arguments, place: int, stage: Stage) -> Estimate:
    """Of a stage, the `place`-th of those asked about.

    Raises:
        ValueError, OSError: a recipe or a configuration that cannot be read, or that do not fit each other.
    """
    recipe = read_recipe(options.recipes[stage])
    if recipe.get("lora_targets"):
        raise ValueError(
            f"{options.recipes[stage]}: lora_targets names layers of its own, which are not counted: leave it out for "
            "an adapter on all layers of the language model."
        )
    if recipe.get("architecture") == "labram" or "layer_decay" in recipe:
        raise ValueError(f"{options.recipes[stage]} is a recipe of LaBraM: only NeuroLM's stages are counted here.")
    schedule = schedule_of(options, place, stage, recipe)
    rank = (
        options.lora_rank if options.lora_rank is not None else recipe.get("lora_rank", 16) * bool(recipe.get("lora"))
    )
    checkpointing = options.activation_checkpointing
    setup = Setup(
        stage,
        configuration(options, stage, recipe),
        adversary=schedule.step.texts > 0,
        lora_rank=rank if stage == "instruct" else 0,
        lora_eeg_projector=bool(recipe.get("lora_eeg_projector")),
        activation_checkpointing=recipe.get("activation_checkpointing", False)
        if checkpointing is None
        else checkpointing,
        bf16=not options.fp32,
    )
    step = step_of(setup, schedule.step)
    ranks = ranks_of(setup, schedule, moment_bytes(options.optim or recipe.get("optim", "adamw_torch")))
    return Estimate(setup, schedule, step, costs_of(step.flops, ranks, schedule, devices_of(options)))


def schedule_of(options: Arguments, place: int, stage: Stage, recipe: dict[str, Any]) -> Schedule:
    """Corpus and recipe as steps."""
    corpus: Any = (options.hours, options.channels, options.window_seconds)
    hours, channels, seconds = (values[place if len(values) > 1 else 0] for values in corpus)
    micro_batch = options.micro_batch_size or recipe.get("per_device_train_batch_size", 8)
    accumulated = recipe.get("gradient_accumulation_steps", 1)
    windows = options.total_batch_size or recipe.get(
        "total_train_batch_size", micro_batch * accumulated * options.devices
    )
    # as the scripts: a quarter of the windows, where a recipe does not say
    texts = recipe.get("text_batch_size", windows // 4) if options.text_batch_size is None else options.text_batch_size
    question = (options.prompt_tokens, options.answer_tokens) if stage == "instruct" else (0, 0)
    return Schedule(
        hours,
        options.epochs or recipe.get("num_train_epochs", 3),
        Batch(windows, channels, seconds, texts, options.text_tokens, *question),
        micro_batch,
        options.devices,
        steps=0 if options.epochs else max(0, recipe.get("max_steps", 0)),
    )


def configuration(options: Arguments, stage: Stage, recipe: dict[str, Any]) -> NeuroLMVQConfig | NeuroLMConfig:
    """The stage's part of `--model`.

    Raises:
        ValueError: it has no such part, or the recipe has sizes of its own.
    """
    config: Any
    if options.model in GPT2_SIZES:
        if sizes := sorted({"vq_config", "text_config", "model_config"} & recipe.keys()):
            raise ValueError(
                f"{options.recipes[stage]} makes a model of another size than {options.model} ({', '.join(sizes)}): "
                "give --model, a folder with that model's config.json."
            )
        config = NeuroLMConfig.from_preset(options.model)
    else:
        kind = PreTrainedConfig.get_config_dict(options.model)[0].get("model_type")
        known: dict[Any, Any] = {"neurolm": NeuroLMConfig, "neurolm_vq": NeuroLMVQConfig}
        if kind not in known:
            raise ValueError(f"{options.model} is a {kind}: --model is a NeuroLM or a neural tokenizer.")
        config = known[kind].from_pretrained(options.model)
    if options.text_model is not None and isinstance(config, NeuroLMConfig):
        text_config = AutoConfig.from_pretrained(options.text_model).get_text_config()
        config = NeuroLMConfig(eeg_config=config.eeg_config, text_config=text_config, eeg_token_id=0)
    if stage == "vq":
        return getattr(config, "eeg_config", config)
    if not isinstance(config, NeuroLMConfig):
        raise ValueError(f"{options.model} is a neural tokenizer, without a language model to train.")
    config.freeze_eeg_encoder = not recipe.get("tune_eeg_encoder", False)
    return config


def devices_of(options: Arguments) -> Devices:
    """What the GPUs can do: the data sheet's figures, and what the command line says otherwise."""
    gpu = GPUS[options.gpu]
    return Devices(
        per_node=options.gpus_per_node,
        flops=1e12 * (options.tflops or (gpu.fp32 if options.fp32 else gpu.bf16)),
        utilisation=options.utilisation,
        memory=1e9 * (options.memory_gb or gpu.memory),
        link=1e9 * (options.link_gbs or gpu.link),
        node_link=1e9 * options.node_link_gbs,
        host_link=1e9 * options.host_link_gbs,
    )


def as_json(one: Estimate) -> dict[str, Any]:
    """All figures of a stage: bytes, seconds, FLOPs."""
    schedule = one.schedule
    return {
        "stage": one.setup.stage,
        "parameters": one.step.sizes.total,
        "trained": one.step.sizes.trained,
        "windows": schedule.windows,
        "steps": schedule.steps,
        "eeg_tokens": one.windows_seen * schedule.step.patches,
        "text_tokens": schedule.steps * schedule.step.texts * schedule.step.text_tokens,
        "micro_batch": asdict(schedule.batch(schedule.devices)),
        "micro_batches": schedule.micro_batches(schedule.devices),
        "flops_of_a_step": {name: asdict(part) for name, part in one.step.flops.items()},
        "flops": one.step_flops * schedule.steps,
        "strategies": {name: asdict(cost) | {"memory": cost.rank.memory} for name, cost in one.costs.items()},
    }


def report(estimates: list[Estimate], gpu: Devices, options: Arguments) -> str:
    """All stages as Markdown, and what they assume."""
    name = options.gpu if options.tflops is None else "GPU"
    lines = [
        f"{options.devices} × {name}: {gpu.flops / 1e12:g} TFLOP/s in {'float32' if options.fp32 else 'bfloat16'}, of "
        f"which {gpu.utilisation:.0%} are taken to be reached, {gpu.memory / 1e9:g} GB, "
        f"{gpu.bandwidth(options.devices) / 1e9:g} GB/s between GPUs.",
    ]
    for one in estimates:
        lines += ["", f"## {TITLES[one.setup.stage]}", "", *describe(one), "", *flops_table(one), ""]
        lines += memory_table(one, gpu)
    return "\n".join([*lines, "", LEFT_OUT])


def describe(one: Estimate) -> list[str]:
    """Model, corpus and steps in three sentences."""
    schedule, step, sizes = one.schedule, one.schedule.step, one.step.sizes
    at_once, count = schedule.batch(schedule.devices), schedule.micro_batches(schedule.devices)
    how = "; activation checkpointing" * one.setup.activation_checkpointing
    how += f"; LoRA of rank {one.setup.lora_rank}" if one.setup.lora_rank else ""
    texts = f" and {step.texts} texts of {step.text_tokens} tokens" if step.texts else ""
    text_tokens = schedule.steps * step.texts * step.text_tokens
    beside = f" beside {text_tokens / 1e9:.3g}·10⁹ tokens of text" if step.texts else ""
    return [
        f"{sizes.total / 1e6:,.0f} million numbers, {sizes.trained / 1e6:,.4g} million of them trained{how}. "
        f"{schedule.hours:,.6g} hours of {step.channels} channels in windows of {step.seconds} s: "
        f"{schedule.windows:,} windows. {schedule.steps:,} steps of {step.windows} windows{texts}, each device "
        f"{count} × {at_once.windows} windows: {one.windows_seen * step.patches / 1e9:.3g}·10⁹ patches of EEG{beside}."
    ]


def flops_table(one: Estimate) -> list[str]:
    """FLOPs by part of the model."""
    step, total = one.schedule.step, one.step_flops
    lines = [
        "| 10¹² FLOPs of a step | forward | backward | of it attention | share |",
        "| --- | --: | --: | --: | --: |",
    ]
    for name, part in one.step.flops.items():
        figures = (f"{value / 1e12:,.1f}" for value in (part.forward, part.backward, part.attention))
        lines.append(f"| {name} | {' | '.join(figures)} | {part.total / total:.1%} |")
    a_patch = total / (step.windows * step.patches)
    together = f"{total:.3g} FLOPs a step, {a_patch:.3g} a patch of EEG, {total * one.schedule.steps:.3g} in all."
    return [*lines, "", together]


def memory_table(one: Estimate, gpu: Devices) -> list[str]:
    """Memory of a GPU, communication and time by strategy."""
    lines = [
        "| GB of a GPU | weights | gradients | optimiser | activations | buffers | together | fits | on the host | "
        "sent a step | s computing | s sending | days | GPU hours |",
        "| --- |" + " --: |" * 13,
    ]
    for name, cost in one.costs.items():
        rank = cost.rank
        held = (rank.weights, rank.gradients, rank.optimiser, rank.activations, rank.buffers, rank.memory)
        fits = "yes" if rank.memory <= (1 - RESERVED) * gpu.memory else "no"
        figures = [f"{value / 1e9:.1f}" for value in held] + [fits]
        figures += [f"{value / 1e9:.1f}" for value in (rank.host, rank.sent)]
        figures += [f"{cost.compute_seconds:.3g}", f"{cost.communication_seconds:.2g}", f"{cost.hours / 24:.3g}"]
        lines.append(f"| {name} | {' | '.join(figures)} | {cost.device_hours:,.0f} |")
    return lines


if __name__ == "__main__":
    main()
