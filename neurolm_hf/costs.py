"""What a training costs, from configuration, corpus and devices: FLOPs, memory of a rank, communication, time.

`dry_run` says what a micro-batch takes; the rest is arithmetic: how often, and who holds and sends what.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .configuration_neurolm import NeuroLMVQConfig
from .dry_run import Batch, DryRun, Flops, Setup, dry_run


# bytes of a number in float32, and in bfloat16
WIDE, NARROW = 4, 2

ONE_DEVICE = "one device"
STRATEGIES = (ONE_DEVICE, "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, offloaded", "FSDP")


@dataclass(frozen=True)
class Schedule:
    """How often a model meets a corpus.

    Attributes:
        hours: of recordings, of which every window is seen once an epoch. epochs: as often. steps: instead of epochs.
        step: windows and texts of an optimiser step, on all devices together.
        micro_batch: windows that a device takes at once, at the most.
        devices: one process each.

    Raises:
        ValueError: a step that the devices cannot share out evenly.
    """

    hours: float
    epochs: float
    step: Batch
    micro_batch: int
    devices: int
    steps: int = 0

    def __post_init__(self) -> None:
        if self.step.windows % (self.devices * self.at_once(self.devices)):
            raise ValueError(
                f"{self.step.windows} windows a step cannot be shared out evenly to {self.devices} devices that take "
                f"{self.at_once(self.devices)} at once: change one of the three."
            )
        if not self.steps:
            of_epoch = math.ceil(self.windows / self.step.windows)
            object.__setattr__(self, "steps", math.ceil(of_epoch * self.epochs))

    @property
    def windows(self) -> int:
        """Of the corpus."""
        return int(self.hours * 3600 // self.step.seconds)

    def at_once(self, devices: int) -> int:
        """Windows that a device takes: no more than there are for it."""
        return max(1, min(self.micro_batch, self.step.windows // devices))

    def micro_batches(self, devices: int) -> int:
        """Of a device in a step."""
        return math.ceil(self.step.windows / (devices * self.at_once(devices)))

    def batch(self, devices: int) -> Batch:
        """A micro-batch, with as many texts as the fullest has."""
        windows = self.at_once(devices)
        texts = math.ceil(self.step.texts * windows / self.step.windows)
        return replace(self.step, windows=windows, texts=texts)


@dataclass(frozen=True)
class Devices:
    """What devices can do.

    Attributes:
        per_node: devices in one machine.
        flops: dense products a second, in the precision of the training. utilisation: the share that is reached.
        memory: bytes.
        link: bytes a second that a device sends to another of its node. node_link: that a node sends to others.
        host_link: between a device and its host. All in one direction.
    """

    per_node: int
    flops: float
    utilisation: float
    memory: float
    link: float
    node_link: float
    host_link: float

    def bandwidth(self, count: int) -> float:
        """Of a ring over so many devices: that of its slowest piece. A node sends on what one of its devices sends."""
        return self.link if count <= self.per_node else min(self.link, self.node_link)


@dataclass(frozen=True)
class Rank:
    """What one process holds, in bytes, and what it sends in an optimiser step.

    Attributes:
        weights, gradients, optimiser, activations: on the device.
        buffers: the gradients in buckets (DDP), or the weights that are at work (where they are shared out).
        host: in the memory of the host.
        sent: to other processes. to_host: between device and host, both ways together.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float
    buffers: float = 0
    host: float = 0
    sent: float = 0
    to_host: float = 0

    @property
    def memory(self) -> float:
        """Of the device."""
        return self.weights + self.gradients + self.optimiser + self.activations + self.buffers


@dataclass(frozen=True)
class Cost:
    """A strategy's: the rank, seconds of a step, and the whole training's wall-clock and device hours."""

    rank: Rank
    compute_seconds: float
    communication_seconds: float
    hours: float
    device_hours: float


def step_of(setup: Setup, step: Batch) -> DryRun:
    """An optimiser step, whose FLOPs are those of one window and one text as often as there are some.

    Its activations are of one window and one text: `ranks_of` has those of a micro-batch.
    """
    one = replace(step, windows=1, texts=min(1, step.texts))
    run = dry_run(setup, one)
    times: dict[str, float] = {name: step.texts if name.endswith("text") else step.windows for name in run.flops}
    if "heads" in run.flops:
        times["heads"] = step.targets / one.targets
    return replace(run, flops={name: flops.times(times[name]) for name, flops in run.flops.items()})


def costs_of(
    flops: Mapping[str, Flops], ranks: Mapping[str, Rank], schedule: Schedule, devices: Devices
) -> dict[str, Cost]:
    """What the training costs by strategy. Sending is not taken to overlap with computing.

    Args:
        flops: of an optimiser step by part, from `step_of`. ranks: from `ranks_of`.
    """
    found = {}
    for name, rank in ranks.items():
        count = 1 if name == ONE_DEVICE else schedule.devices
        compute = sum(part.total for part in flops.values()) / count / (devices.flops * devices.utilisation)
        communication = rank.sent / devices.bandwidth(count) + rank.to_host / devices.host_link
        hours = schedule.steps * (compute + communication) / 3600
        found[name] = Cost(rank, compute, communication, hours, hours * count)
    return found


def ranks_of(setup: Setup, schedule: Schedule, moments: int) -> dict[str, Rank]:
    """Memory and communication of a rank by strategy; one device alone does the whole step.

    With DeepSpeed the weights have the precision of the training, beside a float32 copy for the optimiser; with FSDP
    they are float32, and so is what autocast makes bfloat16 copies of. Of N ranks each sends (N-1)/N of what is
    reduced to its owners (R) or gathered from them (G), and DDP's ring both, for an all-reduce:

    - DDP: float32 gradients, R + G a step.
    - ZeRO-1: gradients, R a step; weights, G a step. ZeRO-2: R in every micro-batch.
    - ZeRO-3: gradients, R in every micro-batch; weights, G for each pass over them, forward and backward. Offloaded:
      shares of weights, gradients and optimiser lie with the host.
    - FSDP: as ZeRO-3, but gradients R once a step: whole until then where there are several micro-batches.
    """
    n = schedule.devices
    batch, micro_batches = schedule.batch(n), schedule.micro_batches(n)
    narrow = NARROW if setup.bf16 else WIDE
    copied = dry_run(setup, batch)
    cast = dry_run(setup, batch, cast_weights=True) if setup.bf16 else copied
    sizes, kept = copied.sizes, cast.activations
    weights, gradients = narrow * sizes.total, narrow * sizes.trained
    master = (WIDE + moments) * sizes.trained
    share = (n - 1) / n
    always = share * _codebook_bytes(setup)
    gathered = narrow * _numbers_gathered(copied, batch) * micro_batches
    whole = Rank(WIDE * sizes.total, WIDE * sizes.trained, moments * sizes.trained, copied.activations)
    alone, of_one = whole, schedule.batch(1)
    if of_one != batch:
        alone = replace(whole, activations=dry_run(setup, of_one).activations)
    if n == 1:
        return {ONE_DEVICE: alone}
    ddp = replace(whole, buffers=WIDE * sizes.trained, sent=2 * share * WIDE * sizes.trained + always)
    zero1 = Rank(weights, gradients, master / n, kept, sent=2 * share * gradients + always)
    zero2 = replace(zero1, gradients=gradients / n, sent=share * gradients * (micro_batches + 1) + always)
    zero3 = replace(
        zero2,
        weights=weights / n,
        buffers=narrow * sizes.at_work,
        sent=share * (gradients * micro_batches + gathered) + always,
    )
    offloaded = replace(
        zero3,
        weights=0,
        gradients=0,
        optimiser=0,
        host=(weights + gradients + master) / n,
        # gradients down to the optimiser, weights up for each pass
        to_host=(gradients * micro_batches + gathered) / n,
    )
    fsdp = Rank(
        WIDE * sizes.total / n,
        WIDE * sizes.trained / n + (gradients if micro_batches > 1 else 0),
        moments * sizes.trained / n,
        kept,
        buffers=zero3.buffers,
        sent=share * (gradients + gathered) + always,
    )
    return dict(zip(STRATEGIES, (alone, ddp, zero1, zero2, zero3, offloaded, fsdp), strict=True))


def _numbers_gathered(run: DryRun, batch: Batch) -> int:
    """In a micro-batch: all weights forward and backward, those that read text once more, frozen ones forward only."""
    text = run.sizes.language_model if batch.texts else 0
    return 2 * (run.sizes.total + text) - run.sizes.frozen_encoder


def _codebook_bytes(setup: Setup) -> int:
    """What is all-reduced beside the gradients: the sums and counts that move the codebook."""
    if not isinstance(setup.config, NeuroLMVQConfig):
        return 0
    return 2 * WIDE * setup.config.codebook_size * (setup.config.codebook_dim + 1)
