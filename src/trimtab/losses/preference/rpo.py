"""DPO with the likelihood of the chosen answer beside it."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_not_negative, check_positive, margin, per_token


def rpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    chosen_tokens: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.2,
) -> Tensor:
    """DPO plus the chosen answer's mean token loss, so that its likelihood does not fall, per pair, (P,).

        h = (chosen - ref_chosen) - (rejected - ref_rejected)
        l = -log sigmoid(beta h) - alpha chosen / chosen_tokens

    ``beta``: as in DPO. ``alpha``: the weight of the chosen answer's mean token loss; 0 is DPO.
    At the start ln 2 + alpha NLL.

    Source: Pang et al. 2024 (arXiv:2404.19733), eq. 1; alpha 0.2: Llama 3 (arXiv:2407.21783), section 4.1.4
    Confirmed by: TRL 1.16, DPOTrainer loss_type=[sigmoid, sft]; hand-worked numbers
    """
    check_positive("rpo", beta=beta)
    check_not_negative("rpo", alpha=alpha)
    h = margin(chosen, rejected, ref_chosen, ref_rejected)  # (P,)
    return -logsigmoid(beta * h) - alpha * per_token(chosen, chosen_tokens)
