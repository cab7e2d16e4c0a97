import ctypes
import platform
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from neurolm_hf import cpu


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that oneDNN multiplies, on whatever processor."""
    made: list[tuple[int, ...]] = []
    product = cpu._product

    def count(left: torch.Tensor, right: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        made.append((*left.shape, right.shape[1]))
        return product(left, right, *bias)

    cpu.leave_onednn()  # another test's training may have turned it on
    monkeypatch.setattr(cpu, "_product", count)
    monkeypatch.setattr(cpu, "_is_slow", lambda: True)
    yield made
    cpu.leave_onednn()


def layers() -> nn.Module:
    """A linear layer without bias, one with, and GPT-2's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(192, 256, bias=False), nn.GELU(), nn.Linear(256, 128), Conv1D(192, 128))


def outputs_and_gradients(model: nn.Module, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(3, 100, 192, dtype=dtype, requires_grad=True)
    outputs = model(inputs)
    outputs.square().sum().backward()
    return [outputs.detach(), inputs.grad, *(parameter.grad for parameter in model.parameters())]


def test_layers_and_gradients_are_the_same(products: list) -> None:
    expected = outputs_and_gradients(layers().double(), torch.float64)
    before = outputs_and_gradients(layers())
    assert cpu.use_onednn()
    assert cpu.use_onednn()
    after = outputs_and_gradients(layers())
    # forward, gradient of the input and of the weights of three layers
    assert len(products) == 9
    for exact, one, other in zip(expected, before, after, strict=True):
        worst = (one - exact).abs().max()
        assert (other - exact).abs().max() < 3 * worst + 1e-6
    cpu.leave_onednn()
    assert all(torch.equal(one, other) for one, other in zip(before, outputs_and_gradients(layers()), strict=True))
    assert len(products) == 9


def test_sums_go_where_they_belong(products: list) -> None:
    left, right = torch.randn(300, 200), torch.randn(200, 100)
    total = torch.ones(300, 100)
    cpu.use_onednn()
    same = total.addmm_(left, right)
    assert same is total
    torch.testing.assert_close(total, (1 + left.double() @ right.double()).float(), atol=1e-4, rtol=1e-5)
    scaled = torch.addmm(torch.ones(100), left, right, beta=2, alpha=0.5)
    torch.testing.assert_close(scaled, (2 + 0.5 * left.double() @ right.double()).float(), atol=1e-4, rtol=1e-5)
    assert products == [(300, 200, 100)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.randn(4, 5), torch.randn(5, 6)),
        (torch.randn(0, 768), torch.randn(768, 3072)),
        (torch.randn(300, 200).double(), torch.randn(200, 100).double()),
        (torch.randn(300, 200).bfloat16(), torch.randn(200, 100).bfloat16()),
    ],
)
def test_small_products_and_other_precisions_stay(products: list, left: torch.Tensor, right: torch.Tensor) -> None:
    expected = left @ right
    cpu.use_onednn()
    assert torch.equal(left @ right, expected)
    assert products == []


@pytest.mark.parametrize(
    "bias",
    [
        torch.ones(1).expand(100),
        torch.arange(200.0)[::2],
        torch.ones(1),
        torch.ones(300, 100),
        torch.ones(300, 1),
    ],
)
def test_whatever_is_added_is_added_rightly(products: list, bias: torch.Tensor) -> None:
    left, right = torch.randn(300, 200), torch.randn(200, 100)
    expected = torch.addmm(bias, left, right)
    cpu.use_onednn()
    torch.testing.assert_close(torch.addmm(bias, left, right), expected)
    assert products == []


def test_mistakes_are_refused_as_ever(products: list) -> None:
    cpu.use_onednn()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.randn(300, 200) @ torch.randn(100, 300)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        torch.nn.functional.linear(torch.randn(300, 200), torch.randn(300, 100), torch.randn(300))
    with pytest.raises(RuntimeError):
        torch.zeros(300, 100, dtype=torch.float64).addmm_(torch.randn(300, 200), torch.randn(200, 100))
    assert products == []


def test_nothing_changes_on_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu.leave_onednn()
    monkeypatch.setattr(cpu.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not cpu.use_onednn()
    assert cpu._library is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_freed_memory_is_kept() -> None:
    # bytes that are still resident after 16 blocks of 16 MB were filled and freed
    code = """if True:
        import resource, sys, torch
        from neurolm_hf.cpu import keep_freed_memory
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * resource.getpagesize()
        assert sys.argv[1] == "no" or keep_freed_memory()
        before = resident()
        blocks = [torch.ones(2**22) for _ in range(16)]
        del blocks
        print(resident() - before)
    """
    held = {}
    for kept in ("no", "yes"):
        done = subprocess.run([sys.executable, "-c", code, kept], capture_output=True, text=True, check=True)
        held[kept] = int(done.stdout)
    assert held["no"] < 2**26 < 2**27 < held["yes"]


def test_memory_stays_as_it_is_with_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not cpu.keep_freed_memory()
    monkeypatch.setattr(cpu.sys, "platform", "darwin")
    assert not cpu.keep_freed_memory()
