"""Anchored preference optimisation, where chosen answers are better than the model's own."""

from __future__ import annotations

from torch import Tensor


def apo_zero(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1
) -> Tensor:
    """Each side on its own: the chosen answer up from the reference, the rejected one down, per pair, (P,).

        l = 1 - sigmoid(beta (chosen - ref_chosen)) + sigmoid(beta (rejected - ref_rejected))

    ``beta``: what a nat of log-ratio counts.
    Between 0 and 2, and 1 at the start, with gradients -beta / 4 and beta / 4. The paper leaves the constant 1 away.

    Source: D'Oosterlinck et al. 2024 (arXiv:2408.06266), eq. 7
    Confirmed by: hand-worked numbers
    """
    up = beta * (chosen - ref_chosen.detach())  # (P,)
    down = beta * (rejected - ref_rejected.detach())
    return 1 - up.sigmoid() + down.sigmoid()
