"""REINFORCE leave-one-out: the mean of the prompt's other answers is the baseline.

Shapes: B answers, T the longest answer; ``group`` holds the number of each answer's prompt.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.tensors.shaping import leave_one_out


def rloo(rewards: Tensor, mask: Tensor, group: Tensor) -> Tensor:
    """Return how much better each answer is than the others to its prompt: (B, T), (B, T), (B,) -> (B, T).

        R_i = sum_t r_it        A_it = R_i - mean_{j in G, j != i} R_j    for every token t of answer i

    Unbiased, since the baseline does not depend on answer i; k / (k - 1) times GRPO's without the deviation. A Group of
    one has nothing to be compared with and no advantage. Zero off the mask, no gradient, whatever stands off the mask
    is passed over.

    Source: Ahmadian et al. 2024 (arXiv:2402.14740), section 3; Kool et al. 2019, "Buy 4 REINFORCE samples".
    Confirmed by: numbers by hand, enumeration of a bandit: unbiased.
    """
    on = mask.bool()
    returns = rewards.detach().masked_fill(~on, 0).sum(-1)  # (B,)
    alone = (group[:, None] == group[None, :]).sum(-1) == 1
    advantages = (returns - leave_one_out(returns, group)).masked_fill(alone, 0)
    return advantages.unsqueeze(1).expand_as(mask).masked_fill(~on, 0)
