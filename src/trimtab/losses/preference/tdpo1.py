"""Token-level DPO, the first form."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_positive, margin


def tdpo1(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_kl: Tensor,
    rejected_kl: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """DPO whose margin counts how far each answer's places are from the reference, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -log sigmoid(beta (h - (rejected_kl - chosen_kl)))

    ``beta``: as in DPO. The gradient flows through both divergences, KL(reference || policy) summed over the places.
    At the start both are 0 and l = ln 2.

    Source: Zeng et al. 2024 (arXiv:2404.11999), TDPO1
    Confirmed by: hand-worked numbers, a slow loop
    """
    check_positive("tdpo1", beta=beta)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return -logsigmoid(beta * (h - (rejected_kl - chosen_kl)))
