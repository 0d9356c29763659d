"""Proximal policy optimisation: the clipped surrogate.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.losses.policy._terms import PolicyTerms, surrogate


def ppo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> PolicyTerms:
    """Clipped surrogate per token, (B, T) -> terms of (B, T).

        rho = exp(logps - old_logps)
        l   = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))
        dual clip c, where A < 0:  l = min(l, -A c)

    The bounds are those of rho, so an asymmetric clip (DAPO: 0.2, 0.28) is asymmetric for both signs of A. On the first
    update rho = 1 and the gradient is REINFORCE's, -A. The log-ratio is clamped to +-20: tokens beyond have no gradient
    and count as clipped. A = 0 gives 0 and counts as not clipped. No gradient into ``old_logps`` or ``advantages``.
    Raises ``ConfigError`` for a negative width or a dual clip that is not above 1.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7; dual clip: Ye et al. 2019 (arXiv:1912.09729), c = 3;
    clip-higher: DAPO (arXiv:2503.14476), section 3.1.
    Confirmed by: TRL 1.16 (GRPOTrainer, losses grpo, bnpo, dapo, dr_grpo), numbers by hand, a toy with a known optimum.
    """
    if dual_clip is not None and not dual_clip > 1:
        raise ConfigError(f"dual_clip bounds the ratio from above, so it must be above 1, not {dual_clip}")
    assert logps.shape == old_logps.shape == advantages.shape
    log_ratio = logps - old_logps.detach()  # (B, T)
    loss, ratio, clipped = surrogate(log_ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    if dual_clip is not None:
        ceiling = -advantages.detach() * dual_clip
        beyond = (advantages < 0) & (loss > ceiling)
        loss = torch.where(beyond, ceiling, loss)
        clipped = clipped | beyond
    return PolicyTerms(loss=loss, ratio=ratio.detach(), clipped=clipped.to(loss.dtype))
