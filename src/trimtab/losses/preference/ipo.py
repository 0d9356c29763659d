"""Identity preference optimisation."""

from __future__ import annotations

from torch import Tensor

from trimtab.losses.preference._shared import check_positive, log_ratio, per_token


def ipo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    tau: float = 0.1,
    average: bool = True,
) -> Tensor:
    """Squared distance of the margin from a target, so that a sure pair cannot push without end, per pair, (P,).

        h = (chosen - ref_chosen) / chosen_tokens - (rejected - ref_rejected) / rejected_tokens
        l = (h - 1 / (2 tau))^2

    ``tau``: the larger, the smaller the target and the nearer the reference. ``average``: mean over each side's tokens,
    as the authors ran it; false takes the sums, as the paper writes it.
    At the start 1 / (4 tau^2), 25 for 0.1. A margin beyond the target is pulled back.

    Source: Azar et al. 2023 (arXiv:2310.12036), eq. 17
    Confirmed by: TRL 1.16, DPOTrainer loss_type=ipo (means) and CPOTrainer loss_type=ipo (sums); hand-worked numbers
    """
    check_positive("ipo", tau=tau)
    up, down = log_ratio(chosen, ref_chosen), log_ratio(rejected, ref_rejected)  # (P,)
    if average:
        up, down = per_token(up, chosen_tokens), per_token(down, rejected_tokens)
    return (up - down - 1 / (2 * tau)).square()
