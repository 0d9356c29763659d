"""DPO-Positive: the chosen answer may not become less likely."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_not_negative, check_positive, log_ratio, margin


def dpop(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.3,
    penalty: float = 50.0,
) -> Tensor:
    """DPO with a penalty inside the margin where the chosen answer has become less likely, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -log sigmoid(beta (h - penalty max(0, ref_chosen - chosen)))

    ``beta``: as in DPO. ``penalty``: what a nat below the reference costs the margin; 0 is DPO.
    Equal to DPO while the chosen answer is at least as likely as under the reference, above it otherwise. At the start
    ln 2 with DPO's gradient (the kink has slope 0). Below, the gradient is up to beta (1 + penalty): clip it.

    Source: Pal et al. 2024, Smaug (arXiv:2402.13228), the DPOP loss
    Confirmed by: hand-worked numbers, a slow loop
    """
    check_positive("dpop", beta=beta)
    check_not_negative("dpop", penalty=penalty)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    lost = (-log_ratio(chosen, ref_chosen)).relu()  # (P,)
    return -logsigmoid(beta * (h - penalty * lost))
