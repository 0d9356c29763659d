"""DPO-Positive: numbers by hand, where it is DPO, and its kink."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.preference.dpo import dpo
from trimtab.losses.preference.dpop import dpop


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    ("up", "expected", "plain"), [(2.0, 0.115520, 0.115520), (-0.1, 0.708260, 0.206954), (-1.0, 13.8000, 0.263282)]
)
def test_numbers(up: float, expected: float, plain: float) -> None:
    """beta .3, penalty 50, rejected down by 5: margins 7, 4.9 - 5 = -.1, and 4 - 50 = -46."""
    zero = f64(0.0)
    assert dpop(f64(up), f64(-5.0), zero, zero).item() == pytest.approx(expected, abs=2e-6)
    assert dpo(f64(up), f64(-5.0), zero, zero, beta=0.3).item() == pytest.approx(plain, abs=1e-6)


def test_below_the_reference_the_chosen_answer_counts_51_times() -> None:
    """At a margin of -.1 the weight is beta sigmoid(.03) = .3 * .5074994; the chosen side has it times 51."""
    chosen, rejected = f64(-0.1), f64(-5.0)
    loss = dpop(chosen, rejected, f64(0.0), f64(0.0))
    up, down = (g.item() for g in torch.autograd.grad(loss.sum(), (chosen, rejected)))
    assert down == pytest.approx(0.3 * 0.5074994, abs=1e-7)
    assert up == pytest.approx(-51 * down, abs=1e-12)


def test_the_start_is_dpo_in_value_and_gradient() -> None:
    """max(0, .) has slope 0 at its kink, so the first step is DPO's: ln 2 and -+beta/2."""
    sides = f64(-40.0), f64(-55.0)
    loss = dpop(*sides, f64(-40.0), f64(-55.0))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-12)
    assert [g.item() for g in torch.autograd.grad(loss.sum(), sides)] == pytest.approx([-0.15, 0.15], abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(up=st.floats(-20, 20), down=st.floats(-20, 20), penalty=st.floats(0, 100))
def test_never_below_dpo_and_equal_where_nothing_is_lost(up: float, down: float, penalty: float) -> None:
    zero = f64(0.0)
    ours, plain = dpop(f64(up), f64(down), zero, zero, penalty=penalty), dpo(f64(up), f64(down), zero, zero, beta=0.3)
    assert ours.item() >= plain.item()
    if up >= 0 or penalty == 0:
        assert ours.item() == plain.item()


def test_the_penalty_is_inside_the_sigmoid() -> None:
    """A wide enough margin pays it off: lost 1, gained 100 by the rejected one, margin 99 - 50 = 49."""
    expected = math.log1p(math.exp(-0.3 * 49))
    assert dpop(f64(-1.0), f64(-100.0), f64(0.0), f64(0.0)).item() == pytest.approx(expected, rel=1e-9)
