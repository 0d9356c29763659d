"""What every policy loss returns.

Shapes: B answers, T the longest answer.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this magnitude before ``exp``, as in verl: e^20 is finite in every dtype but float16."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PolicyTerms:
    """One policy loss per token, and two detached readings.

    ``clipped`` is 1 where a clip takes the token's gradient away, else 0, in the dtype of the loss; its masked mean is
    the clip fraction. ``ratio`` is policy / old policy as the loss used it. Off the answer, all three are meaningless.
    """

    loss: Tensor  # (B, T)
    ratio: Tensor  # (B, T)
    clipped: Tensor  # (B, T)
