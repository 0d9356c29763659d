"""The hinge on DPO's margin, as SLiC has it."""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.preference._shared import check_positive, margin


def hinge(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """Hinge loss on DPO's margin: pairs that are apart by enough push no more, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = max(0, 1 - beta h)

    ``beta``: one over the margin, in nats, at which a pair is done.
    At the start 1, with gradient -beta on h; from beta h = 1 on both are 0.

    Source: Zhao et al. 2023, SLiC-HF (arXiv:2305.10425); on the log-ratios: Liu et al. 2023, RSO (arXiv:2309.06657)
    Confirmed by: TRL 1.16, DPOTrainer loss_type=hinge; hand-worked numbers
    """
    check_positive("hinge", beta=beta)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return (1 - beta * h).relu()
