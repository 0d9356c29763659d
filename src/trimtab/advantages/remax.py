"""ReMax: the score of the greedy answer is the baseline.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.tensors.masked import last_true
from trimtab.tensors.shaping import reward_to_go


def remax(
    rewards: Tensor,
    mask: Tensor,
    scores: Tensor,
    baseline: Tensor,
    *,
    gamma: float = 1.0,
    kl_credit: Literal["rest", "token"] = "rest",
) -> Tensor:
    """Return each token's return less the greedy answer's score, (B, T), (B, T), (B,), (B,) -> (B, T).

        rest     A_t = sum_{s >= t} gamma^{s-t} r_s - baseline           the gradient of the shaped reward
        token    A_t = gamma^{T-t} (score - baseline) - beta kl_t        the release: a token's own penalty alone

    ``rewards`` hold the KL penalty of every token and, at the last one, the answer's score too; ``scores`` are those
    scores, ``baseline`` that of the greedy answer to the prompt. The baseline depends on the prompt alone, so ``rest``
    with gamma 1 is unbiased. An answer that is the greedy one, without a KL penalty, has no advantage. Zero off the
    mask, no gradient.

    Source: Li et al. 2024 (arXiv:2310.10505), algorithm 1; ``token`` as its authors' code does it.
    Confirmed by: numbers by hand, enumeration of a bandit: unbiased.
    """
    on = mask.bool()
    baseline = baseline.detach().unsqueeze(1)  # (B, 1)
    if kl_credit == "rest":
        return (reward_to_go(rewards, mask, gamma=gamma) - baseline).masked_fill(~on, 0)
    place = torch.arange(mask.shape[1], device=mask.device)
    last = last_true(mask).unsqueeze(1)  # (B, 1)
    scores = scores.detach().unsqueeze(1)
    penalties = rewards.detach() - torch.where(place == last, scores, torch.zeros_like(scores))
    faded = (scores - baseline) * gamma ** (last - place).clamp_min(0).to(rewards.dtype)
    return (faded + penalties).masked_fill(~on, 0)
