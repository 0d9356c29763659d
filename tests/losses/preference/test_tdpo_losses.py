"""Token-level DPO: numbers by hand and where the gradient stops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trimtab.losses.preference.dpo import dpo
from trimtab.losses.preference.tdpo1 import tdpo1
from trimtab.losses.preference.tdpo2 import tdpo2


def f64(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64, requires_grad=True)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_tdpo1_by_hand() -> None:
    """h 3, divergences .4 and 1: margin 3 - .6 = 2.4, -ln sigmoid(.24) = .580330; all four columns get a gradient."""
    sides, kls = (f64(2.0), f64(-1.0)), (f64(0.4), f64(1.0))
    loss = tdpo1(*sides, f64(0.0), f64(0.0), *kls)
    assert loss.item() == pytest.approx(0.580330, abs=1e-6)
    weight = 0.1 * sigmoid(-0.24)
    slopes = [g.item() for g in torch.autograd.grad(loss.sum(), (*sides, *kls))]
    assert slopes == pytest.approx([-weight, weight, -weight, weight], abs=1e-12)


def test_tdpo2_by_hand() -> None:
    """Margin 3 - .5 * .6 = 2.7, -ln sigmoid(.27) = .567232; nothing flows through the chosen divergence."""
    sides, kls = (f64(2.0), f64(-1.0)), (f64(0.4), f64(1.0))
    loss = tdpo2(*sides, f64(0.0), f64(0.0), *kls)
    assert loss.item() == pytest.approx(0.567232, abs=1e-6)
    loss.sum().backward()
    weight = 0.1 * sigmoid(-0.27)
    assert sides[0].grad is not None
    assert sides[0].grad.item() == pytest.approx(-weight, abs=1e-12)
    assert kls[0].grad is None
    assert kls[1].grad is not None
    assert kls[1].grad.item() == pytest.approx(0.5 * weight, abs=1e-12)


def test_dpo_beside_them() -> None:
    assert dpo(f64(2.0), f64(-1.0), f64(0.0), f64(0.0)).item() == pytest.approx(0.554355, abs=1e-6)


@pytest.mark.parametrize("loss", [tdpo1, tdpo2])
def test_the_start_costs_ln_2(loss: object) -> None:
    assert callable(loss)
    zero = f64(0.0)
    assert loss(f64(-3.0), f64(-7.0), f64(-3.0), f64(-7.0), zero, zero).item() == pytest.approx(math.log(2), abs=1e-12)


def test_a_larger_rejected_divergence_costs_more() -> None:
    zero = f64(0.0)
    for loss in (tdpo1, tdpo2):
        assert loss(zero, zero, zero, zero, zero, f64(1.0)).item() > loss(zero, zero, zero, zero, zero, zero).item()
        assert loss(zero, zero, zero, zero, f64(1.0), zero).item() < loss(zero, zero, zero, zero, zero, zero).item()


class Logits:
    """One pair as logits over 5 tokens, 4 places a side: both columns of a side come out of the same numbers."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(5)
        draw = torch.randn(4, 4, 5, generator=generator, dtype=torch.float64)
        self.chosen, self.rejected = draw[0].clone().requires_grad_(), draw[1].clone().requires_grad_()
        self.ref_chosen, self.ref_rejected = draw[2], draw[3]
        self.tokens = torch.tensor([[0], [3], [2], [4]])

    def columns(self) -> tuple[Tensor, ...]:
        logps = [self._logps(x) for x in (self.chosen, self.rejected, self.ref_chosen, self.ref_rejected)]
        return (*logps, self._kl(self.chosen, self.ref_chosen), self._kl(self.rejected, self.ref_rejected))

    def _logps(self, logits: Tensor) -> Tensor:
        return logits.log_softmax(1).gather(1, self.tokens).sum().reshape(1)

    @staticmethod
    def _kl(logits: Tensor, reference: Tensor) -> Tensor:
        logp, ref = logits.log_softmax(1), reference.log_softmax(1)
        return (ref.exp() * (ref - logp)).sum().reshape(1)


def test_with_weight_0_it_is_dpo_to_the_last_logit() -> None:
    pair = Logits()
    columns = pair.columns()
    ours, plain = tdpo2(*columns, alpha=0.0), dpo(*columns[:4])
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    sides = (pair.chosen, pair.rejected)
    here = torch.autograd.grad(ours.sum(), sides, retain_graph=True)
    torch.testing.assert_close(here, torch.autograd.grad(plain.sum(), sides), rtol=0, atol=1e-15)


def test_the_stop_leaves_dpos_direction_on_the_chosen_logits() -> None:
    """With the stop, the gradient on the chosen side's logits is DPO's times one number; without it, it is not."""
    pair = Logits()
    columns = pair.columns()
    grads = {
        loss.__name__: torch.autograd.grad(value.sum(), pair.chosen, retain_graph=True)[0]
        for loss, value in ((dpo, dpo(*columns[:4])), (tdpo1, tdpo1(*columns)), (tdpo2, tdpo2(*columns)))
    }
    ratio = grads["tdpo2"] / grads["dpo"]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio))
    h = (columns[0] - columns[2] - columns[1] + columns[3]).item()
    less = 0.5 * (columns[5] - columns[4]).item()
    assert ratio[0, 0].item() == pytest.approx(sigmoid(-0.1 * (h - less)) / sigmoid(-0.1 * h), rel=1e-12)
    apart = grads["tdpo1"] / grads["dpo"]
    assert (apart - apart[0, 0]).abs().max() > 0.1


def test_the_divergence_meant_is_from_the_reference() -> None:
    """Reference (.5, .3, .2), policy (.6, .3, .1): KL(reference || policy) is .047469; the other way .040078."""
    policy, reference = (torch.tensor([p], dtype=torch.float64).log() for p in ((0.6, 0.3, 0.1), (0.5, 0.3, 0.2)))
    assert Logits._kl(policy, reference).item() == pytest.approx(0.047469, abs=1e-6)
    assert Logits._kl(reference, policy).item() == pytest.approx(0.040078, abs=1e-6)
