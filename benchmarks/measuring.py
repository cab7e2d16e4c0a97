"""What the benchmarks share: seconds, peak memory, FLOPs, this machine's rate of matrix products, and Markdown tables.

Memory is Linux's own count of one process: measure each way of doing a thing in a process of its own (`own_process`).
"""

import ctypes
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neurolm_hf.cpu import leave_onednn, use_onednn
from neurolm_hf.dry_run import FLOPS


GIB = 2**30

# Names of the rates beside that of float32 as PyTorch makes it.
ONEDNN, BFLOAT16 = "float32 by oneDNN where it is faster", "bfloat16"

# Rows, inner and outer width of the products that NeuroLM-B consists of: attention, MLP and text head on 1024 tokens.
PRODUCTS = ((1024, 768, 2304), (1024, 768, 768), (1024, 768, 3072), (1024, 3072, 768), (256, 768, 50304))


class Held(NamedTuple):
    """Bytes of memory that a process held before a piece of work, and at most while it was done."""

    before: int
    peak: int


def measure_memory(work: Callable[[], object]) -> Held:
    """Does the work once, and says what the process held."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not count as held
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far
    before = _memory("VmRSS")
    work()
    return Held(before, _memory("VmHWM"))


def measure_seconds(work: Callable[[], object]) -> float:
    """Does the work once, and says how long it took."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def own_process() -> ProcessPoolExecutor:
    """A process that inherits nothing, in which functions can be run one after the other."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of all matrix products and convolutions of the work, which is done once."""
    with _Counter() as counter:
        work()
    return counter.flops


def product_rates() -> dict[str, float]:
    """Floating-point operations a second of matrix products in the model's own shapes, on all threads."""
    leave_onednn()
    rates = {"float32": _product_rate(torch.float32)}
    use_onednn()
    return {**rates, ONEDNN: _product_rate(torch.float32), BFLOAT16: _product_rate(torch.bfloat16)}


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    return math.exp(statistics.fmean(map(math.log, values)))


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table, its first column aligned to the left."""
    print("| " + " | ".join(header) + " |")
    print("| --- |" + " ---: |" * (len(header) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def machine() -> str:
    """This machine and this torch in a line."""
    with open("/proc/cpuinfo") as file:
        name = next(
            (line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown processor"
        )
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) * 1024
    return f"{name}, {torch.get_num_threads()} threads, {memory / GIB:.0f} GiB; torch {torch.__version__}"


def _product_rate(dtype: torch.dtype, seconds: float = 0.5) -> float:
    done, taken = 0.0, 0.0
    while taken < seconds:
        for rows, inner, outer in PRODUCTS:
            left, right = torch.randn(rows, inner, dtype=dtype), torch.randn(outer, inner, dtype=dtype)
            start = time.perf_counter()
            torch.nn.functional.linear(left, right)
            taken += time.perf_counter() - start
            done += 2.0 * rows * inner * outer
    return done / taken


def _memory(kind: str) -> int:
    """Bytes of this process by Linux's count."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(kind))


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in FLOPS:
            self.flops += FLOPS[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result
