"""Token-level DPO, the second form: the chosen side's divergence is a constant."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_not_negative, check_positive, margin


def tdpo2(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.5,
) -> Tensor:
    """TDPO1 with a weight on the divergences and no gradient through the chosen one, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -log sigmoid(beta (h - alpha (rejected_kl - stop_gradient(chosen_kl))))

    ``beta``: as in DPO. ``alpha``: the weight of the divergences; 0 is DPO, in its gradient too.
    The stop keeps the loss from raising the chosen side's divergence to widen the margin. At the start ln 2.

    Source: Zeng et al. 2024 (arXiv:2404.11999), TDPO2
    Confirmed by: hand-worked numbers, a slow loop
    """
    check_positive("tdpo2", beta=beta)
    check_not_negative("tdpo2", alpha=alpha)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return -logsigmoid(beta * (h - alpha * (rejected_kl - chosen_kl.detach())))
