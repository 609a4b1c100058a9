"""Which cross entropy a plain head takes; Liger is a stand-in that has its function's name and arguments."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs triton, which does not come with every build of torch")

from seeklet.modeling import head_cross_entropy
from seeklet.modeling.kernels.linear_cross_entropy.reference import linear_cross_entropy as expected
from tests.kernels.devices import kernels_on

# The arguments of liger_kernel 0.8.5 as far as they are used; it says so by a loss that is 1,000 too large.
LIGER = """
from torch.nn import functional as F

def liger_fused_linear_cross_entropy(
    input, weight, target, bias=None, ce_weight=None, ignore_index=-100, lse_square_scale=0.0, label_smoothing=0.0,
    reduction="mean", softcap=None, return_z_loss=False, accum_dtype=None,
):
    assert not weight.requires_grad and input.dtype == weight.dtype
    return F.cross_entropy(F.linear(input, weight), target, ignore_index=ignore_index, reduction=reduction) + 1000
"""


@pytest.fixture
def liger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "liger_kernel" / "transformers"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").touch()
    (folder / "functional.py").write_text(LIGER, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        del sys.modules[name]


def draw(head_trained: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    targets = torch.randint(0, 31, (9,))
    targets[::3] = -7
    return torch.randn(9, 8, requires_grad=True), torch.randn(31, 8, requires_grad=head_trained), targets


def test_a_frozen_head_takes_liger_where_it_is_installed(liger: None) -> None:
    hidden, weight, targets = draw(head_trained=False)
    with kernels_on("cpu"):
        loss = head_cross_entropy.linear_cross_entropy(hidden, weight, targets, -7)
        (gradient,) = torch.autograd.grad(loss, hidden)
    other = expected(hidden, weight, targets, -7)
    torch.testing.assert_close(loss, other + 1000)
    torch.testing.assert_close(gradient, torch.autograd.grad(other, hidden)[0])


def test_a_frozen_head_takes_ours_where_it_is_not() -> None:
    if head_cross_entropy.find_spec("liger_kernel"):
        pytest.skip("liger_kernel is installed")
    hidden, weight, targets = draw(head_trained=False)
    with kernels_on("cpu"):
        loss = head_cross_entropy.linear_cross_entropy(hidden, weight, targets, -7)
    torch.testing.assert_close(loss, expected(hidden, weight, targets, -7))


@pytest.mark.parametrize("why", ["trained head", "no gradient", "no rows", "cpu"])
def test_ours_is_taken_where_liger_is_no_better(liger: None, why: str) -> None:
    hidden, weight, targets = draw(head_trained=why == "trained head")
    if why == "no rows":
        hidden, targets = hidden[:0], targets[:0]
    with torch.set_grad_enabled(why != "no gradient"):
        if why == "cpu":
            loss = head_cross_entropy.linear_cross_entropy(hidden, weight, targets, -7)
        else:
            with kernels_on("cpu"):
                loss = head_cross_entropy.linear_cross_entropy(hidden, weight, targets, -7)
    torch.testing.assert_close(loss, expected(hidden, weight, targets, -7))


def test_autocast_is_obeyed(liger: None) -> None:
    hidden, weight, targets = draw(head_trained=False)
    with kernels_on("cpu"), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = head_cross_entropy.linear_cross_entropy(hidden, weight, targets, -7)
    torch.testing.assert_close(loss.float() - 1000, expected(hidden, weight, targets, -7), rtol=0.1, atol=8)
