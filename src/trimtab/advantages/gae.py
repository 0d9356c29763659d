"""Generalised advantage estimation: the critic's estimator.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Return the advantages and the critic's targets, (B, T) -> (B, T), (B, T).

        delta_t  = r_t + gamma V_{t+1} - V_t,    V = 0 past the last answer token
        A_t      = delta_t + gamma lam A_{t+1}
        target_t = A_t + V_t

    lam = 1: A = return - V; lam = 0: A = delta. ``values`` are those of the rollout, each from before its token. A cut
    answer is treated as ended. Whiten the advantages afterwards, over the whole batch; the targets never.

    Whatever stands off the mask is passed over: padding gives no bootstrap value even when it holds ``nan``, and "next"
    is the next *answer* token, also across a gap (a tool's turn in the middle). Both results are zero off the mask and
    carry no gradient.

    Source: Schulman et al. 2016 (arXiv:1506.02438), eq. 16; gamma 1 and lam 0.95 as Ziegler et al. 2019.
    Confirmed by: numbers by hand, a slow loop of the definition.
    """
    assert rewards.shape == values.shape == mask.shape
    on = mask.bool()
    rewards, values = (x.detach().masked_fill(~on, 0) for x in (rewards, values))
    advantages = torch.zeros_like(values)
    next_value = next_advantage = values.new_zeros(values.shape[0])  # (B,)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantages[:, t] = delta + gamma * lam * next_advantage
        next_value = torch.where(on[:, t], values[:, t], next_value)
        next_advantage = torch.where(on[:, t], advantages[:, t], next_advantage)
    advantages = advantages.masked_fill(~on, 0)
    return advantages, advantages + values
