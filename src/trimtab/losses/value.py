"""The critic's loss.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_value(values: Tensor, old_values: Tensor, targets: Tensor, *, clip: float | None) -> Tensor:
    """Half the squared error of the critic, not rewarded for leaving the rollout's value, per token, (B, T) -> (B, T).

        1/2 max((V - target)^2, (clip(V, V_old - c, V_old + c) - target)^2)

    Without ``clip``, half the squared error. No gradient where the clipped branch is the larger one, and none ever into
    ``old_values`` or ``targets``. The width is in units of the reward: with rewards of size 10, 0.2 freezes the critic.

    Source: OpenAI baselines' ppo2; Ziegler et al. 2019 (arXiv:1909.08593), code.
    """
    assert values.shape == old_values.shape == targets.shape
    targets, old_values = targets.detach(), old_values.detach()
    error = (values - targets).square()  # (B, T)
    if clip is not None:
        held = values.clamp(old_values - clip, old_values + clip)
        error = torch.maximum(error, (held - targets).square())
    return error / 2
