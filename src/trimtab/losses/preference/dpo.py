"""Direct preference optimisation."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_positive, margin


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """Logistic loss on the margin of the two answers' log-ratios to the reference, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -log sigmoid(beta h)

    ``beta``: what a nat of margin counts; the smaller, the further the policy may go from the reference.
    At the start h = 0 and l = ln 2; the gradient on h is -beta sigmoid(-beta h). Swapped sides cost beta h more.

    Source: Rafailov et al. 2023 (arXiv:2305.18290), eq. 7
    Confirmed by: TRL 1.16, DPOTrainer loss_type=sigmoid; hand-worked numbers
    """
    check_positive("dpo", beta=beta)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return -logsigmoid(beta * h)
