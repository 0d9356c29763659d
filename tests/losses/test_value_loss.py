"""The critic's loss: numbers by hand and which branch has a gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab.losses.value import clipped_value


def one(value: float, old: float, target: float, clip: float | None) -> tuple[float, float]:
    """Loss and gradient of a single value."""
    values = torch.tensor([[value]], dtype=torch.float64, requires_grad=True)
    others = [torch.tensor([[x]], dtype=torch.float64) for x in (old, target)]
    loss = clipped_value(values, *others, clip=clip)
    assert loss.shape == (1, 1)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    return loss.item(), gradient.item()


def test_numbers_by_hand() -> None:
    """V 1, old .5, clip .2: V_c = .7. Target 2: max(1, 1.69)/2, no gradient. Target .4: max(.36, .09)/2."""
    assert one(1.0, 0.5, 2.0, 0.2) == pytest.approx((0.845, 0.0))
    assert one(1.0, 0.5, 0.4, 0.2) == pytest.approx((0.18, 0.6))


def test_inside_the_range_and_without_a_clip_it_is_half_the_squared_error() -> None:
    assert one(0.6, 0.5, 2.0, 0.2) == pytest.approx((0.98, -1.4))
    assert one(1.0, 0.5, 2.0, None) == pytest.approx((0.5, -1.0))
    assert one(0.4, 0.4, 0.4, 0.2) == (0.0, 0.0)


numbers = st.floats(-3, 3)


@given(value=numbers, old=numbers, target=numbers, clip=st.floats(0.01, 2))
def test_slow_formula_agrees_and_is_a_pessimistic_bound(value: float, old: float, target: float, clip: float) -> None:
    held = min(max(value, old - clip), old + clip)
    expected = max((value - target) ** 2, (held - target) ** 2) / 2
    loss, _ = one(value, old, target, clip)
    assert loss == pytest.approx(expected, abs=1e-12)
    assert loss >= one(value, old, target, None)[0] - 1e-12


def test_no_gradient_into_rollout_values_or_targets() -> None:
    values, old, targets = (torch.zeros(2, 3, requires_grad=True) for _ in range(3))
    clipped_value(values, old, targets, clip=0.2).sum().backward()
    assert values.grad is not None
    assert old.grad is None
    assert targets.grad is None


def test_finite_far_out_in_float32() -> None:
    values = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = clipped_value(values, torch.zeros(1, 2), torch.zeros(1, 2), clip=0.2)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
