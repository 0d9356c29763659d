"""Group sequence policy optimisation: one ratio an answer, the geometric mean of its tokens'.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.policy._terms import PolicyTerms, answer_terms
from trimtab.tensors.masked import masked_mean


def gspo(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> PolicyTerms:
    """Clipped surrogate of the answer's length-normalised ratio, (B, T) -> terms of (B, T).

        s_i = exp(mean_t (logps_it - old_logps_it))
        l_i = max(-A_i s_i, -A_i clip(s_i, 1 - clip_low, 1 + clip_high))    at every token t of answer i

    To be averaged over an answer's tokens, then over answers. s moves far less than a token's ratio: PPO's 0.2 would
    never clip. The advantage of an answer is the mean of its tokens'. An answer of one token is PPO's. Raises
    ``ConfigError`` for a negative width.

    Source: Zheng et al. 2025 (arXiv:2507.18071), eq. 5 and 7; widths: section 5.1.
    Confirmed by: TRL 1.16 (GRPOTrainer, ratio of the sequence), numbers by hand.
    """
    assert logps.shape == old_logps.shape == advantages.shape == mask.shape
    log_ratio = masked_mean(logps - old_logps.detach(), mask, 1)  # (B,)
    return answer_terms(log_ratio, advantages, mask, clip_low=clip_low, clip_high=clip_high)
