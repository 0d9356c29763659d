"""Simple preference optimisation: mean log-probabilities and a target margin, without a reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_not_negative, check_positive, per_token


def simpo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_tokens: Tensor,
    rejected_tokens: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """Logistic loss on the difference of mean log-probabilities less a target margin, per pair, (P,).

        l = -log sigmoid(beta (chosen / chosen_tokens - rejected / rejected_tokens) - gamma)

    ``beta``: what a nat per token counts. ``gamma``: the margin asked for, taken off outside beta; elsewhere it is
    written gamma_beta_ratio, which is gamma / beta (0.5 at the defaults), and taken off inside.
    Equal means give log(1 + exp(gamma)), so the start is not ln 2. Saying every token twice changes nothing.

    Source: Meng et al. 2024 (arXiv:2405.14734), eq. 6
    Confirmed by: TRL 1.16, CPOTrainer loss_type=simpo (experimental); hand-worked numbers
    """
    check_positive("simpo", beta=beta)
    check_not_negative("simpo", gamma=gamma)
    difference = per_token(chosen, chosen_tokens) - per_token(rejected, rejected_tokens)  # (P,)
    return -logsigmoid(beta * difference - gamma)
