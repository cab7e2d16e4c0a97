from collections.abc import Iterator

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from neurolm_hf import cpu_matmul


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes that oneDNN multiplies, on whatever processor."""
    made: list[tuple[int, ...]] = []
    product = cpu_matmul._product

    def count(left: torch.Tensor, right: torch.Tensor, *bias: torch.Tensor) -> torch.Tensor:
        made.append((*left.shape, right.shape[1]))
        return product(left, right, *bias)

    cpu_matmul.leave_onednn()  # another test's training may have turned it on
    monkeypatch.setattr(cpu_matmul, "_product", count)
    monkeypatch.setattr(cpu_matmul, "_is_slow", lambda: True)
    yield made
    cpu_matmul.leave_onednn()


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
    assert cpu_matmul.use_onednn()
    assert cpu_matmul.use_onednn()
    after = outputs_and_gradients(layers())
    # forward, gradient of the input and of the weights of three layers
    assert len(products) == 9
    for exact, one, other in zip(expected, before, after, strict=True):
        worst = (one - exact).abs().max()
        assert (other - exact).abs().max() < 3 * worst + 1e-6
    cpu_matmul.leave_onednn()
    assert all(torch.equal(one, other) for one, other in zip(before, outputs_and_gradients(layers()), strict=True))
    assert len(products) == 9


def test_sums_go_where_they_belong(products: list) -> None:
    left, right = torch.randn(300, 200), torch.randn(200, 100)
    total = torch.ones(300, 100)
    cpu_matmul.use_onednn()
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
    cpu_matmul.use_onednn()
    assert torch.equal(left @ right, expected)
    assert products == []


def test_nothing_changes_on_other_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_matmul.leave_onednn()
    monkeypatch.setattr(cpu_matmul.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert not cpu_matmul.use_onednn()
    assert cpu_matmul._library is None
