"""Odds ratio preference optimisation: supervised fine-tuning and preference in one loss, without a reference."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from trimtab.losses.preference._shared import check_not_negative, log_odds, per_token


def orpo(
    chosen: Tensor, rejected: Tensor, chosen_tokens: Tensor, rejected_tokens: Tensor, *, weight: float = 0.1
) -> Tensor:
    """Mean token loss of the chosen answer plus a logistic loss on the ratio of the answers' odds, per pair, (P,).

        p = logps / tokens,    log odds(p) = p - log(1 - exp(p))
        l = -p_chosen - weight log sigmoid(log odds(p_chosen) - log odds(p_rejected))

    ``weight``: of the odds-ratio loss (the paper's lambda); 0 is supervised fine-tuning on the chosen answers.
    Equal means give NLL + weight ln 2, so the start is not ln 2. A mean above -1e-6 nats has no gradient in the odds.
    Only the answer's tokens count in the first term, not the prompt's.

    Source: Hong et al. 2024 (arXiv:2403.07691), eqs. 6 and 7
    Confirmed by: TRL 1.16, ORPOTrainer (experimental); hand-worked numbers
    """
    check_not_negative("orpo", weight=weight)
    up, down = per_token(chosen, chosen_tokens), per_token(rejected, rejected_tokens)  # (P,)
    return -up - weight * logsigmoid(log_odds(up) - log_odds(down))
