"""REINFORCE: the score function, weighed by the advantage.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.policy._terms import MAX_LOG_RATIO, PolicyTerms


def reinforce(logps: Tensor, old_logps: Tensor, advantages: Tensor) -> PolicyTerms:
    """Log-probability times advantage per token, (B, T) -> terms of (B, T).

        l = -A logps

    Right for one update on answers of the policy itself; nothing makes good that it has moved since, and nothing is
    clipped. The ratio is only read off. No gradient into ``advantages``.

    Source: Williams 1992, "Simple statistical gradient-following algorithms", eq. 11.
    Confirmed by: enumeration of a bandit.
    """
    assert logps.shape == old_logps.shape == advantages.shape
    ratio = (logps - old_logps).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return PolicyTerms(loss=-advantages.detach() * logps, ratio=ratio, clipped=torch.zeros_like(ratio))
