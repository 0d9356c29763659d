"""Conservative DPO: some labels are the wrong way round."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_flips, check_positive, margin


def cdpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> Tensor:
    """DPO that expects a share of the labels to be wrong and so stops at a finite margin, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h),    e = label_smoothing

    ``beta``: as in DPO. ``label_smoothing``: the share e of wrong labels, in [0, 0.5); 0 is DPO.
    Least at beta h = log((1 - e) / e), 2.197 for 0.1; beyond, the gradient pulls the margin back. At the start ln 2.

    Source: Mitchell 2023, "A note on DPO with noisy preferences and relationship to IPO" (no arXiv number)
    Confirmed by: TRL 1.16, CPOTrainer loss_type=sigmoid with label_smoothing; hand-worked numbers; a slow loop
    """
    check_positive("cdpo", beta=beta)
    check_flips("cdpo", label_smoothing)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)
