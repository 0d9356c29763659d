"""PPO's clipped surrogate: the clip table with its gradients, and a toy that must reach the known optimum."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.advantages.gae import gae
from trimtab.errors import ConfigError
from trimtab.losses.policy.ppo import ppo
from trimtab.tensors.kl import exact_kl
from trimtab.tensors.masked import masked_mean, whiten
from trimtab.tensors.shaping import token_rewards


def one(advantage: float, ratio: float, **options: float | None) -> tuple[float, float, float]:
    """Loss, gradient with respect to the log-probability, and clipped, of a single token."""
    old = torch.tensor([[-1.5]], dtype=torch.float64)
    logps = (old + math.log(ratio)).requires_grad_()
    terms = ppo(logps, old, torch.full((1, 1), advantage, dtype=torch.float64), **options)
    assert terms.ratio.item() == pytest.approx(ratio)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logps)
    return terms.loss.item(), gradient.item(), terms.clipped.item()


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [(1, 1.5, -1.2, 0.0), (1, 0.5, -0.5, -0.5), (-1, 1.5, 1.5, 1.5), (-1, 0.5, 0.8, 0.0)],
)
def test_clip_table(advantage: float, ratio: float, loss: float, gradient: float) -> None:
    """Clip .2. The gradient is -A rho where the token is free, and zero where the clip holds it."""
    assert one(advantage, ratio) == pytest.approx((loss, gradient, float(gradient == 0)))


def test_dual_clip() -> None:
    """c = 3: (-1, 5) -> 3 without gradient, where the plain loss is 5; (-1, 2) and (1, 5) are as before."""
    assert one(-1, 5) == pytest.approx((5, 5, 0))
    assert one(-1, 5, dual_clip=3.0) == pytest.approx((3, 0, 1))
    assert one(-1, 2, dual_clip=3.0) == one(-1, 2)
    assert one(1, 5, dual_clip=3.0) == one(1, 5)
    assert one(-1, 0.5, dual_clip=3.0) == one(-1, 0.5)


def test_asymmetric_clip_bounds_the_ratio_for_both_signs() -> None:
    """rho 1.25, A 1: held at 1.2 by (.2, .2), free under (.2, .28). rho .75, A -1: held at .8 by both."""
    assert one(1, 1.25) == pytest.approx((-1.2, 0, 1))
    assert one(1, 1.25, clip_low=0.2, clip_high=0.28) == pytest.approx((-1.25, -1.25, 0))
    assert one(-1, 0.75, clip_low=0.2, clip_high=0.28) == pytest.approx((0.8, 0, 1))
    assert one(-1, 0.75, clip_low=0.28, clip_high=0.2) == pytest.approx((0.75, 0.75, 0))


@pytest.mark.parametrize(("advantage", "log_ratio"), [(-1, 25), (1, -25), (1, 25), (-1, -25), (0, 25)])
def test_beyond_the_clamp_counts_as_clipped(advantage: float, log_ratio: float) -> None:
    """A log-ratio of +-25 is used as +-20 and has no gradient, even where no clip holds it. A = 0 does not count."""
    old = torch.zeros(1, 1, dtype=torch.float64)
    logps = torch.full_like(old, log_ratio).requires_grad_()
    terms = ppo(logps, old, torch.full_like(old, advantage))
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logps)
    assert terms.ratio.item() == pytest.approx(math.exp(math.copysign(20, log_ratio)))
    assert (gradient.item(), terms.clipped.item()) == (0.0, float(advantage != 0))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31), dual=st.sampled_from([None, 1.5, 3.0]))
def test_slow_loop_agrees_and_clipped_means_no_gradient(seed: int, dual: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(3, 5, generator=generator, dtype=torch.float64)
    logps = (old + torch.randn(3, 5, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    terms = ppo(logps, old, advantages, clip_low=0.2, clip_high=0.3, dual_clip=dual)
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logps)
    for b in range(3):
        for t in range(5):
            a, rho = advantages[b, t].item(), math.exp((logps - old)[b, t].item())
            loss = max(-a * rho, -a * min(max(rho, 0.8), 1.3))
            if dual is not None and a < 0:
                loss = min(loss, -a * dual)
            assert terms.loss[b, t].item() == pytest.approx(loss, abs=1e-12)
    assert torch.equal(terms.clipped, (gradient == 0).double())
    free = terms.clipped == 0
    torch.testing.assert_close(gradient[free], (-advantages * terms.ratio)[free])


def test_first_update_has_no_value_but_a_gradient() -> None:
    """rho 1 and whitened advantages: the loss is -mean A = 0, the gradient is -A per token."""
    generator = torch.Generator().manual_seed(0)
    logps = (-torch.rand(4, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(6) < torch.tensor([6, 1, 3, 4]).unsqueeze(1)
    advantages = whiten(torch.randn(4, 6, generator=generator, dtype=torch.float64), mask)
    terms = ppo(logps, logps, advantages)
    loss = masked_mean(terms.loss, mask)
    (gradient,) = torch.autograd.grad(loss, logps)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(gradient, -advantages / mask.sum())
    assert gradient.abs().max() > 0.01
    assert (terms.ratio == 1).all()
    assert not terms.clipped.any()


def test_no_reward_no_update() -> None:
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    logps = torch.full((2, 3), -1.0, dtype=torch.float64, requires_grad=True)
    rewards = token_rewards(torch.zeros(2, dtype=torch.float64), logps, logps - 1, torch.ones(2, 3), beta=0.0)
    advantages, targets = gae(rewards, zeros, torch.ones(2, 3))
    (gradient,) = torch.autograd.grad(ppo(logps, logps, advantages).loss.sum(), logps)
    assert not gradient.any()
    assert not targets.any()


def test_no_gradient_into_rollout_or_advantages() -> None:
    logps, old, advantages = (torch.ones(2, 2, requires_grad=True) for _ in range(3))
    ppo(logps, old, advantages).loss.sum().backward()
    assert logps.grad is not None
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize("options", [{"clip_low": -0.1}, {"clip_high": -0.1}, {"dual_clip": 1.0}, {"dual_clip": 0.5}])
def test_options_that_make_no_sense_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        ppo(torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1, 1), **options)


def _train_toy(beta: float, steps: int = 150) -> tuple[Tensor, Tensor]:
    """One-token answers, 4 tokens, reward 1 on the third; expectations by enumeration; four epochs per rollout."""
    reference = torch.tensor([0.4, 0.3, 0.1, 0.2], dtype=torch.float64).log()
    scores = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    logits = reference.clone().requires_grad_()
    optimiser = torch.optim.SGD([logits], lr=1.0)
    mask = torch.ones(4, 1)  # every token is one answer of length 1
    for _ in range(steps):
        old = logits.detach().log_softmax(-1)
        rewards = token_rewards(scores, old.unsqueeze(1), reference.unsqueeze(1), mask, beta=beta)
        baseline = (old.exp() @ rewards).expand(4).unsqueeze(1)
        advantages, _ = gae(rewards, baseline, mask)
        for _ in range(4):
            terms = ppo(logits.log_softmax(-1).unsqueeze(1), old.unsqueeze(1), advantages)
            optimiser.zero_grad()
            (old.exp().unsqueeze(1) * terms.loss).sum().backward()
            optimiser.step()
    return logits.detach().log_softmax(-1), reference


def test_toy_reaches_the_known_optimum() -> None:
    """pi* = pi_ref exp(r / beta) / Z; a larger beta stays nearer to the reference; beta 0 takes the reward."""
    kls = []
    for beta in (0.5, 1.0):
        policy, reference = _train_toy(beta)
        optimum = (reference + torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64) / beta).log_softmax(-1)
        torch.testing.assert_close(policy.exp(), optimum.exp(), rtol=0, atol=1e-6)
        kls.append(exact_kl(policy, reference).item())
    assert kls[0] > kls[1] > 0
    assert _train_toy(0.0)[0].exp()[2] > 0.95
