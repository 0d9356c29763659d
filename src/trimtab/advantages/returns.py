"""REINFORCE's returns, with no baseline but the one that whitening over the step takes off.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from torch import Tensor

from trimtab.tensors.shaping import reward_to_go


def returns(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Return what is still to come after each token, (B, T), (B, T) -> (B, T).

        A_t = r_t + gamma A_{t+1}

    Standardised over all tokens of the step afterwards, it is REINFORCE++. Zero off the mask, no gradient.

    Source: Williams 1992; REINFORCE++ (arXiv:2501.03262), section 3.
    Confirmed by: numbers by hand, enumeration of a bandit: unbiased.
    """
    return reward_to_go(rewards, mask, gamma=gamma)
