"""Group-relative advantages: the other answers to the prompt are the baseline.

Shapes: B answers, T the longest answer; ``group`` holds the number of each answer's prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor


def grpo(
    rewards: Tensor, mask: Tensor, group: Tensor, *, scale: bool = True, eps: float = 1e-4, ddof: int = 1
) -> Tensor:
    """Return how much better each answer is than its Group's mean, in deviations: (B, T), (B, T), (B,) -> (B, T).

        R_i = sum_t r_it        A_it = (R_i - mean_G R) / (std_G R + eps)     for every token t of answer i

    ``scale=False`` leaves the division out (Dr.GRPO, arXiv:2503.20783). The deviation divides by k - ``ddof``: 1, that
    of a sample, as most do; 0, that of a population. A Group whose answers all have the same return, or a Group of one,
    has no advantage: its gradient is zero. Zero off the mask, no gradient, whatever stands off the mask is passed over.

    Source: Shao et al. 2024, DeepSeekMath (arXiv:2402.03300), section 4.1.2 (outcome supervision).
    Confirmed by: numbers by hand, enumeration of a bandit: what the division biases.
    """
    on = mask.bool()
    returns = rewards.detach().masked_fill(~on, 0).sum(-1)  # (B,)
    advantages = torch.zeros_like(returns)
    for number in group.unique():
        members = group == number
        own = returns[members]
        centred = own - own.mean()
        if scale and len(own) > 1 and bool((own != own[0]).any()):
            centred = centred / (own.std(correction=ddof) + eps)
        advantages[members] = centred
    return advantages.unsqueeze(1).expand_as(mask).masked_fill(~on, 0)
