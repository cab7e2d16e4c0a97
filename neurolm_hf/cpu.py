"""What makes training and inference on CPUs faster without changing a model: settings of this process.

**Float32 matrix products** on processors by AMD that have AVX-512: PyTorch's library for them (MKL) uses half of the
vector width there. oneDNN, which PyTorch carries as well, uses all of it: the same products, as exact, in about half
the time. They are swapped underneath, by the means that `torch.library` has for it, so that modules, gradients and
adapters need not know.

**Freed memory**: the C library gives large blocks back to Linux at once, and Linux fills them with zeros, page by
page, when the next step asks for them again. It can keep them.

docs/performance.md has the figures.
"""

import ctypes
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


# Multiplications from which the detour through Python is not felt.
SMALLEST = 2**21
# The products that training consists of; attention has its own.
OPERATORS = ("mm", "addmm", "addmm_")

# Of glibc's `mallopt` (malloc.h).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Bytes of the largest blocks that are kept: activations. With gradients among them memory falls to pieces, and grows.
LARGEST_KEPT = 2**26

_library: Any = None
_own: dict[str, Any] = {}


def make_cpu_fast() -> None:
    """All of it, for a process that trains or answers on a CPU. Does no harm where it does not help."""
    use_onednn()
    keep_freed_memory()


def use_onednn() -> bool:
    """Lets oneDNN multiply the float32 matrices of this process, where that pays. Does no harm where it does not.

    Returns:
        whether it does from now on.
    """
    global _library
    if _library is None and _is_slow():
        _own.update({name: torch.library.get_kernel(f"aten::{name}", "CPU") for name in OPERATORS})
        _library = torch.library.Library("aten", "IMPL")
        with warnings.catch_warnings():
            # PyTorch says that a kernel is replaced, which is what we want
            warnings.filterwarnings("ignore", message="Warning only once for all operators")
            for name, kernel in zip(OPERATORS, (_mm, _addmm, _addmm_), strict=True):
                _library.impl(name, kernel, "CPU", with_keyset=True)
    return _library is not None


def keep_freed_memory() -> bool:
    """Has this process keep what it freed for its next use: it goes on holding what it held at its peak.

    Returns:
        whether the C library can (glibc).
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallopt"):
        return False
    # before 2.35 half as much was the most
    kept = any(library.mallopt(M_MMAP_THRESHOLD, size) for size in (LARGEST_KEPT, LARGEST_KEPT // 2))
    return bool(library.mallopt(M_TRIM_THRESHOLD, -1)) and kept


def leave_onednn() -> None:
    """Gives the products back to PyTorch."""
    global _library
    if _library is not None:
        _library._destroy()
        _library = None


def _is_slow() -> bool:
    """Whether MKL is at work on a processor that it takes for less than it is."""
    processors = Path("/proc/cpuinfo")
    vendor = processors.read_text(encoding="utf-8") if processors.exists() else platform.processor()
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return (
        "AuthenticAMD" in vendor
        and wide
        and hasattr(torch.library, "get_kernel")  # of torch 2.9
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
    )


def _mm(keys: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return _product(left, right) if _pays(left, right) else _own["mm"].call_boxed(keys, left, right)


def _addmm(
    keys: Any, bias: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    plain = bias.dtype == left.dtype and bias.shape == right.shape[1:] and bias.is_contiguous()
    if plain and beta == alpha == 1 and _pays(left, right):
        return _product(left, right, bias)
    return _own["addmm"].call_boxed(keys, bias, left, right, beta=beta, alpha=alpha)


def _addmm_(
    keys: Any, total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    plain = total.dtype == left.dtype and total.shape == (left.shape[0], right.shape[1])
    if plain and beta == alpha == 1 and _pays(left, right):
        return total.add_(_product(left, right))
    return _own["addmm_"].call_boxed(keys, total, left, right, beta=beta, alpha=alpha)


def _pays(left: torch.Tensor, right: torch.Tensor) -> bool:
    fits = left.dtype == right.dtype == torch.float32 and left.shape[1] == right.shape[0]
    return fits and left.shape[0] * left.shape[1] * right.shape[1] >= SMALLEST


def _product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
