"""Robust DPO: unbiased when labels flip at random."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_flips, check_positive, margin


def rdpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Tensor:
    """DPO whose mean over randomly flipped labels is DPO on the true ones, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = [-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)] / (1 - 2 e),    e = label_smoothing

    ``beta``: as in DPO. ``label_smoothing``: the share e of flipped labels, in [0, 0.5); 0 is DPO.
    At the start ln 2. It may be negative, and falls without bound as h grows: a wide margin still has a gradient.

    Source: Chowdhury et al. 2024 (arXiv:2403.00409), the unbiased loss
    Confirmed by: TRL 1.16, DPOTrainer loss_type=robust; hand-worked numbers
    """
    check_positive("rdpo", beta=beta)
    check_flips("rdpo", label_smoothing)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    as_labelled, flipped = -logsigmoid(beta * h), -logsigmoid(-beta * h)
    return ((1 - label_smoothing) * as_labelled - label_smoothing * flipped) / (1 - 2 * label_smoothing)
