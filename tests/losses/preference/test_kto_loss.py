"""KTO: numbers by hand, the baseline, the weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.preference.kto import kto


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


LIKED = torch.tensor([1.0, 0.0], dtype=torch.float64)


def test_numbers_and_gradients() -> None:
    """Baseline .5: liked, R 2: 1 - sigmoid(.15) = .462570; disliked, R -3: 1 - sigmoid(.35) = .413382.

    Slopes -+.1 sigmoid (1 - sigmoid): .1 * .462570 * .537430 and .1 * .413382 * .586618.
    """
    logps, ref_logps, baseline = f64(-8.0, -13.0), f64(-10.0, -10.0), number(0.5)
    loss = kto(logps, ref_logps, LIKED, baseline)
    assert loss.tolist() == pytest.approx([0.462570, 0.413382], abs=1e-6)
    loss.sum().backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == pytest.approx([-0.0248599, 0.0242497], abs=1e-7)
    assert ref_logps.grad is None
    assert baseline.grad is None


def test_the_start_costs_half_the_weight() -> None:
    start = kto(f64(-3.0, -9.0), f64(-3.0, -9.0), LIKED, number(0.0), desirable_weight=4.0, undesirable_weight=0.5)
    assert start.tolist() == [2.0, 0.25]


def test_a_weight_is_for_its_own_kind_only() -> None:
    logps = f64(-8.0, -13.0)
    plain = kto(logps, f64(-10.0, -10.0), LIKED, number(0.5))
    doubled = kto(logps, f64(-10.0, -10.0), LIKED, number(0.5), desirable_weight=2.0)
    torch.testing.assert_close(doubled / plain, f64(2.0, 1.0))
    (slopes,) = torch.autograd.grad(plain.sum(), logps)
    (more,) = torch.autograd.grad(doubled.sum(), logps)
    torch.testing.assert_close(more / slopes, f64(2.0, 1.0))
    halved = kto(logps, f64(-10.0, -10.0), LIKED, number(0.5), undesirable_weight=0.5)
    torch.testing.assert_close(halved / plain, f64(1.0, 0.5))


@settings(max_examples=60, deadline=None)
@given(gain=st.floats(-1e4, 1e4), baseline=st.floats(0, 100))
def test_bounded_and_mirrored(gain: float, baseline: float) -> None:
    """Between 0 and the weight; a liked answer above the baseline costs what a disliked one costs as far below."""
    up, down = f64(gain + baseline), f64(baseline - gain)
    zero = f64(0.0)
    liked = kto(up, zero, torch.ones(1), number(baseline))
    disliked = kto(down, zero, torch.zeros(1), number(baseline))
    assert 0 <= liked.item() <= 1
    torch.testing.assert_close(liked, disliked, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_a_thumb_may_be_any_kind_of_number(kind: torch.dtype) -> None:
    logps, ref_logps = f64(-8.0, -13.0), f64(-10.0, -10.0)
    assert torch.equal(kto(logps, ref_logps, LIKED.to(kind), number(0.5)), kto(logps, ref_logps, LIKED, number(0.5)))
