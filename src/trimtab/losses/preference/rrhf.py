"""Rank responses to align with human feedback: a list of scored answers to one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.preference._shared import check_not_negative, per_token


def rrhf(logps: Tensor, tokens: Tensor, scores: Tensor, mask: Tensor, *, weight: float = 1.0) -> Tensor:
    """Hinges that rank the answers' mean log-probabilities as their scores, plus the best one's loss, (G, K) -> (G,).

        p = logps / tokens
        l = weight sum over i, j with scores_i < scores_j of max(0, p_i - p_j)  -  logps of the best answer

    ``weight``: of the ranking. The last term is a sum over tokens, not a mean. Equal scores make no pair; of equally
    best answers the first is taken. Only the order of the scores counts. One answer: its NLL; none: 0. A ranking
    that is right already has no gradient, nor has a tie of p (the kink has slope 0).

    Source: Yuan et al. 2023 (arXiv:2304.05302), the ranking and the fine-tuning loss
    Confirmed by: hand-worked numbers, a slow loop
    """
    check_not_negative("rrhf", weight=weight)
    there = mask.bool()  # (G, K)
    logps = logps.masked_fill(~there, 0)  # off the mask anything may stand, a length of zero too
    p = per_token(logps, tokens.masked_fill(~there, 1))
    worse = scores.unsqueeze(2) < scores.unsqueeze(1)  # (G, K, K), answer i below answer j
    pair = worse & there.unsqueeze(2) & there.unsqueeze(1)
    ranking = ((p.unsqueeze(2) - p.unsqueeze(1)).relu() * pair).sum((1, 2))  # (G,)
    best = scores.masked_fill(~there, -torch.inf).argmax(1, keepdim=True)  # (G, 1)
    return weight * ranking - logps.gather(1, best).squeeze(1)
