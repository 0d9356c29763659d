"""What every policy loss returns, and what those with a ratio per answer share.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.errors import ConfigError
from trimtab.tensors.masked import masked_mean

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this magnitude before ``exp``, as in verl: e^20 is finite in every dtype but float16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyTerms:
    """One policy loss per token, and two detached readings.

    ``clipped`` is 1 where a clip takes the token's gradient away or cuts it, else 0, in the dtype of the loss; its
    masked mean is the clip fraction. ``ratio`` is policy / old policy as the loss used it. Off the answer, all three
    are meaningless.
    """

    loss: Tensor  # (B, T)
    ratio: Tensor  # (B, T)
    clipped: Tensor  # (B, T)


def surrogate(
    log_ratio: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's clipped surrogate of any shape: the loss, the ratio, and where a clip takes the gradient away (bool).

        rho = exp(log_ratio);    l = max(-A rho, -A clip(rho, 1 - clip_low, 1 + clip_high))

    Raises ``ConfigError`` for a negative width.

    Source: Schulman et al. 2017 (arXiv:1707.06347), eq. 7.
    """
    if clip_low < 0 or clip_high < 0:
        raise ConfigError(f"clip_low and clip_high are widths around 1, not {clip_low} and {clip_high}")
    advantages = advantages.detach()
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    clipped = (held > free) | ((log_ratio.abs() > MAX_LOG_RATIO) & (advantages != 0))
    return torch.maximum(free, held), ratio, clipped


def answer_terms(
    log_ratio: Tensor, advantages: Tensor, mask: Tensor, *, clip_low: float, clip_high: float
) -> PolicyTerms:
    """The surrogate of whole answers, by one log-ratio each, (B,), (B, T) -> terms of (B, T): at every token the same.

    An answer's advantage is the mean of its tokens'.
    """
    loss, ratio, clipped = surrogate(
        log_ratio, masked_mean(advantages.detach(), mask, 1), clip_low=clip_low, clip_high=clip_high
    )
    tables = (x.unsqueeze(1).expand_as(advantages) for x in (loss, ratio.detach(), clipped.to(loss.dtype)))
    return PolicyTerms(**dict(zip(("loss", "ratio", "clipped"), tables, strict=True)))
