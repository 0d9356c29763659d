"""DPO and the losses on its margin: numbers by hand, gradients, identities.

The pair of most tests: log-probabilities -40 and -55, under the reference -42 and -50, so h = 2 - (-5) = 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.losses.preference.cdpo import cdpo
from trimtab.losses.preference.dpo import dpo
from trimtab.losses.preference.hinge import hinge
from trimtab.losses.preference.ipo import ipo
from trimtab.losses.preference.rdpo import rdpo
from trimtab.losses.preference.rpo import rpo

LN_2 = math.log(2)


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def at(loss: Callable[..., Tensor], h: float, **options: float) -> tuple[float, float]:
    """Return a loss at a margin, and its gradient on the margin."""
    chosen, nothing = f64(h), f64(0.0)
    value = loss(chosen, nothing, nothing.detach(), nothing.detach(), **options)
    (gradient,) = torch.autograd.grad(value.sum(), chosen)
    return value.item(), gradient.item()


@pytest.mark.parametrize(
    ("loss", "expected", "slope"),
    [(dpo, 0.403186, -0.0331812), (cdpo, 0.473186, -0.0231812), (rdpo, 0.315686, -0.0456812), (hinge, 0.3, -0.1)],
)
def test_numbers_and_gradients_at_a_margin_of_7(loss: Callable[..., Tensor], expected: float, slope: float) -> None:
    """-ln sigmoid(.7) = .403186, -ln sigmoid(-.7) = 1.103186; the weight sigmoid(-.7) = .331812."""
    policy, reference = (f64(-40), f64(-55)), (f64(-42), f64(-50))
    value = loss(*policy, *reference)
    assert value.item() == pytest.approx(expected, abs=1e-6)
    value.sum().backward()
    assert policy[0].grad is not None
    assert policy[0].grad.item() == pytest.approx(slope, abs=1e-7)
    assert policy[1].grad is not None
    assert policy[1].grad.item() == pytest.approx(-slope, abs=1e-7)
    assert reference[0].grad is None
    assert reference[1].grad is None


@pytest.mark.parametrize("loss", [dpo, cdpo, rdpo])
@pytest.mark.parametrize("beta", [0.1, 0.5, 3.0])
def test_the_start_costs_ln_2(loss: Callable[..., Tensor], beta: float) -> None:
    value, slope = at(loss, 0.0, beta=beta)
    assert value == pytest.approx(LN_2, abs=1e-12)
    if loss is dpo:
        assert slope == pytest.approx(-beta / 2, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(h=st.floats(-200, 200), beta=st.floats(0.01, 5))
def test_swapped_sides_cost_beta_h_more(h: float, beta: float) -> None:
    assert at(dpo, h, beta=beta)[0] - at(dpo, -h, beta=beta)[0] == pytest.approx(-beta * h, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(h=st.floats(-200, 200))
def test_without_flips_there_is_one_loss(h: float) -> None:
    plain = at(dpo, h)
    assert at(cdpo, h, label_smoothing=0.0) == pytest.approx(plain, abs=1e-12)
    assert at(rdpo, h, label_smoothing=0.0) == pytest.approx(plain, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(h=st.floats(-200, 200), e=st.floats(0, 0.45))
def test_rdpo_is_unbiased_under_flips(h: float, e: float) -> None:
    """(1 - e) rdpo(h) + e rdpo(-h) = dpo(h), whatever the margin."""
    mean = (1 - e) * at(rdpo, h, label_smoothing=e)[0] + e * at(rdpo, -h, label_smoothing=e)[0]
    assert mean == pytest.approx(at(dpo, h)[0], abs=1e-9)


def test_rdpo_may_be_negative() -> None:
    """beta h = 10, e = .1: (.9 * .0000454 - .1 * 10.0000454) / .8 = -1.249955."""
    assert at(rdpo, 100.0)[0] == pytest.approx(-1.249955, abs=1e-6)


def test_cdpo_is_least_at_its_log_odds() -> None:
    """beta h = ln(.9 / .1) = 2.197225, so h = 21.97225; beyond it the gradient pulls back."""
    least = 10 * math.log(9)
    assert least == pytest.approx(21.97225, abs=1e-5)
    assert at(cdpo, least)[1] == pytest.approx(0.0, abs=1e-12)
    assert at(cdpo, least - 1)[1] < 0 < at(cdpo, least + 1)[1]


def test_cdpo_is_dpo_with_the_soft_label_written_out() -> None:
    """A pair's soft label P makes P l(chosen, rejected) + (1 - P) l(rejected, chosen); with 1 - e that is cDPO."""
    policy, reference = (f64(-40), f64(-55)), (f64(-42), f64(-50))
    soft = 0.9 * dpo(*policy, *reference) + 0.1 * dpo(*policy[::-1], *reference[::-1])
    torch.testing.assert_close(cdpo(*policy, *reference), soft)


def test_ipo_by_hand() -> None:
    """2/4 - (-5)/2 = 3 against 1/(2 * .1) = 5: 4; slopes 2 * (3 - 5) / T. With sums 7 - 5: 4 again, slopes 4."""
    policy, tokens = (f64(-40), f64(-55)), (torch.tensor([4]), torch.tensor([2]))
    reference = (f64(-42), f64(-50))
    mean = ipo(*policy, *reference, *tokens)
    assert mean.item() == pytest.approx(4.0, abs=1e-12)
    assert [g.item() for g in torch.autograd.grad(mean.sum(), policy)] == pytest.approx([-1.0, 2.0], abs=1e-12)
    total = ipo(*policy, *reference, *tokens, average=False)
    assert total.item() == pytest.approx(4.0, abs=1e-12)
    assert [g.item() for g in torch.autograd.grad(total.sum(), policy)] == pytest.approx([4.0, -4.0], abs=1e-12)


@pytest.mark.parametrize("average", [True, False])
def test_ipo_at_the_start_and_at_its_target(average: bool) -> None:
    """Start: (1/(2 tau))^2 = 25 for .1, 1 for .5. One token: means are sums."""
    zero, one = f64(0.0), torch.tensor([1])
    assert ipo(zero, zero, zero, zero, one, one, average=average).item() == pytest.approx(25.0, abs=1e-12)
    assert ipo(zero, zero, zero, zero, one, one, tau=0.5, average=average).item() == pytest.approx(1.0, abs=1e-12)
    done = f64(5.0)
    loss = ipo(done, zero, zero, zero, one, one, average=average)
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss.sum(), done)[0].item() == 0.0


def test_ipo_counts_each_side_by_its_own_length() -> None:
    """The same text said twice, log-ratio and length doubled: the mean stays, the sum does not."""
    zero, four = f64(0.0), torch.tensor([4])
    once = ipo(f64(2.0), f64(-5.0), zero, zero, four, four)
    twice = ipo(f64(4.0), f64(-5.0), zero, zero, 2 * four, four)
    assert once.item() == twice.item()
    assert ipo(f64(4.0), f64(-5.0), zero, zero, 2 * four, four, average=False).item() == 16.0


def test_hinge_is_done_at_one_over_beta() -> None:
    assert at(hinge, 0.0) == pytest.approx((1.0, -0.1), abs=1e-12)
    assert at(hinge, 10.0) == pytest.approx((0.0, 0.0), abs=1e-12)
    assert at(hinge, 25.0) == (0.0, 0.0)
    assert at(hinge, -10.0) == pytest.approx((2.0, -0.1), abs=1e-12)


def test_rpo_by_hand() -> None:
    """-40 over 8 tokens is 5 a token: .403186 + .2 * 5 = 1.403186; slopes -.0331812 - .2/8 and +.0331812."""
    policy, eight = (f64(-40), f64(-55)), torch.tensor([8])
    loss = rpo(*policy, f64(-42), f64(-50), eight)
    assert loss.item() == pytest.approx(1.403186, abs=1e-6)
    slopes = [g.item() for g in torch.autograd.grad(loss.sum(), policy)]
    assert slopes == pytest.approx([-0.0581812, 0.0331812], abs=1e-7)
    torch.testing.assert_close(rpo(*policy, f64(-42), f64(-50), eight, alpha=0.0), dpo(*policy, f64(-42), f64(-50)))


@pytest.mark.parametrize(
    ("loss", "wide", "narrow"),
    [(dpo, 0.0, 1e4), (cdpo, 1e3, 9e3), (rdpo, -1.25e3, 1.125e4), (hinge, 0.0, 1e4 + 1)],
)
def test_far_out(loss: Callable[..., Tensor], wide: float, narrow: float) -> None:
    """beta h = +-1e4: the loss is linear on one side, its slope flat on the other."""
    assert at(loss, 1e5)[0] == pytest.approx(wide, rel=1e-12, abs=1e-12)
    assert at(loss, -1e5)[0] == pytest.approx(narrow, rel=1e-12)
    assert math.isfinite(at(loss, 1e5)[1])
    assert math.isfinite(at(loss, -1e5)[1])
    assert at(dpo, -1e5)[1] == pytest.approx(-0.1, abs=1e-12)


def test_the_best_policy_for_dpo_has_the_rewards_that_made_the_labels() -> None:
    """Four answers; labels are drawn as sigmoid(r_i - r_j). At the optimum beta (D_i - D_j) = r_i - r_j, every pair."""
    beta, rewards = 0.5, torch.tensor([1.0, -0.5, 0.3, 2.0], dtype=torch.float64)
    reference = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    first, second = torch.cartesian_prod(torch.arange(4), torch.arange(4)).T
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logps = logits.log_softmax(0)
        each = dpo(logps[first], logps[second], reference[first], reference[second], beta=beta)
        loss = (torch.sigmoid(rewards[first] - rewards[second]) * each).sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    moved = beta * (logits.log_softmax(0).detach() - reference)
    torch.testing.assert_close(moved[first] - moved[second], rewards[first] - rewards[second], rtol=0, atol=1e-6)
