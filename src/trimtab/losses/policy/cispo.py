"""CISPO: the importance weight is clipped, the token's gradient never is.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.losses.policy._terms import MAX_LOG_RATIO, PolicyTerms


def cispo(logps: Tensor, old_logps: Tensor, advantages: Tensor, *, clip_high: float = 4.0) -> PolicyTerms:
    """Log-probability times advantage times a capped weight per token, (B, T) -> terms of (B, T).

        rho = exp(logps - old_logps);    l = -sg[min(rho, 1 + clip_high)] A logps

    A token beyond the cap keeps a gradient, of the cap's size; PPO would drop it. There is no lower bound. ``clipped``
    is where the cap holds. No gradient into the weight, ``old_logps`` or ``advantages``. Raises ``ConfigError`` for a
    negative width.

    Source: MiniMax-M1 (arXiv:2506.13585), eq. 4 and 5 (without a lower bound, as there).
    Confirmed by: TRL 1.16 (GRPOTrainer, loss cispo), numbers by hand.
    """
    if clip_high < 0:
        raise ConfigError(f"clip_high is a width above 1, not {clip_high}")
    assert logps.shape == old_logps.shape == advantages.shape
    advantages = advantages.detach()
    ratio = (logps - old_logps).detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    clipped = (ratio > 1 + clip_high) & (advantages != 0)
    loss = -ratio.clamp_max(1 + clip_high) * advantages * logps
    return PolicyTerms(loss=loss, ratio=ratio, clipped=clipped.to(loss.dtype))
