"""How far the policy is from the reference: estimates from the sampled token, and the exact sum over the vocabulary.

Shapes: B answers, T the longest answer, V tokens in the vocabulary.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.errors import ConfigError, did_you_mean

KLKind = Literal["k1", "k2", "k3", "k3+"]
KL_KINDS: tuple[KLKind, ...] = get_args(KLKind)
MAX_LOG_RATIO = 20.0


def kl_estimate(logps: Tensor, ref_logps: Tensor, kind: KLKind) -> Tensor:
    """Estimate KL(policy || reference) per token from the sampled tokens, (B, T) -> (B, T).

    With ``q = ref_logps - logps`` and tokens drawn from the policy::

        k1  = -q              unbiased, may be negative;    as a loss E grad = 0: of use in the reward only
        k2  = q^2 / 2         biased, low variance;         as a loss E grad = grad KL(policy || reference)
        k3  = exp(q) - 1 - q  unbiased, never negative;     as a loss E grad = grad KL(reference || policy)
        k3+ = the value of k3 with the gradient of k2

    ``q`` is clamped to +-20 where it meets the exponential, so k3 is finite and has no gradient beyond; k1, k2 and the
    gradient of k3+ are not clamped. No gradient flows into the reference. Raises ``ConfigError`` for an unknown kind.

    Source: Schulman, "Approximating KL divergence" (2020); k3+ as in verl.
    """
    q = ref_logps.detach() - logps  # (B, T)
    match kind:
        case "k1":
            return -q
        case "k2":
            return q.square() / 2
        case "k3":
            return _k3(q)
        case "k3+":
            k2 = q.square() / 2
            return _k3(q).detach() + _only_gradient(k2)
        case _:
            raise ConfigError(f"no KL estimator {kind!r}{did_you_mean(str(kind), KL_KINDS)}")


def exact_kl(logps_full: Tensor, ref_logps_full: Tensor) -> Tensor:
    """Sum KL(policy || reference) over the vocabulary, (..., V) -> (...).

        sum_v exp(logps_v) (logps_v - ref_logps_v)

    Both sides are log-softmaxed. A token that the policy never emits (``-inf``) counts 0, in value and gradient; one
    that only the reference never emits makes the KL infinite, as it should.
    """
    difference = torch.where(logps_full > -torch.inf, logps_full - ref_logps_full, torch.zeros_like(logps_full))
    return (logps_full.exp() * difference).sum(-1)


def _k3(q: Tensor) -> Tensor:
    q = q.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.expm1(q) - q  # expm1 keeps the digits near q = 0, where training starts


def _only_gradient(x: Tensor) -> Tensor:
    """Return zeros that carry the gradient of ``x``."""
    return x - x.detach()
