"""Kahneman-Tversky optimisation: single answers, liked or not."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.losses.preference._shared import check_not_negative, check_positive, log_ratio


def kto(
    logps: Tensor,
    ref_logps: Tensor,
    desirable: Tensor,
    baseline: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Saturating loss on a single answer's log-ratio to the reference, measured from a baseline, (A,).

        R = logps - ref_logps
        desirable:    l = desirable_weight (1 - sigmoid(beta (R - baseline)))
        undesirable:  l = undesirable_weight (1 - sigmoid(beta (baseline - R)))

    ``beta``: as in DPO. ``desirable_weight``: of the liked answers. ``undesirable_weight``: of the others; the paper
    wants the ratio of both weights times both counts between 1 and 4/3.
    ``baseline`` is one number for the whole batch, () and without gradient. At the start each loss is half its weight;
    it stays between 0 and the weight, so a hopeless answer has hardly any gradient.

    Source: Ethayarajh et al. 2024 (arXiv:2402.01306), eq. 7
    Confirmed by: TRL 1.16, KTOTrainer loss_type=kto; hand-worked numbers
    """
    check_positive("kto", beta=beta)
    check_not_negative("kto", desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    gain = beta * (log_ratio(logps, ref_logps) - baseline.detach())  # (A,)
    liked, disliked = desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain)
    return torch.where(desirable.bool(), liked, disliked)
