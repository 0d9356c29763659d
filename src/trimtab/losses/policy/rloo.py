"""RLOO's loss: one ratio an answer, that of its whole probability.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from trimtab.losses.policy._terms import PolicyTerms, answer_terms
from trimtab.tensors.masked import masked_sum


def rloo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> PolicyTerms:
    """Clipped surrogate of the answer's ratio, shared out over its tokens, (B, T) -> terms of (B, T).

        s_i = exp(sum_t (logps_it - old_logps_it));    |y_i| the answer's tokens
        l_it = max(-A_i s_i, -A_i clip(s_i, 1 - clip_low, 1 + clip_high)) / |y_i|

    To be summed over an answer's tokens, then averaged over answers: the action is the whole answer. On the first
    update the gradient is that of -A_i sum_t logps_it. The log-ratio is clamped to +-20, and answers beyond have no
    gradient. The advantage of an answer is the mean of its tokens'. Raises ``ConfigError`` for a negative width.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740), section 3; the clip for further updates as in TRL.
    Confirmed by: TRL 1.16 (RLOOTrainer), numbers by hand, enumeration of a bandit.
    """
    assert logps.shape == old_logps.shape == advantages.shape == mask.shape
    log_ratio = masked_sum(logps - old_logps.detach(), mask, 1)  # (B,)
    terms = answer_terms(log_ratio, advantages, mask, clip_low=clip_low, clip_high=clip_high)
    return replace(terms, loss=terms.loss / mask.sum(1, keepdim=True).clamp_min(1))
