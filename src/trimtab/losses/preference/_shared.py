"""What the preference losses share: log-ratios, margins, per-token means, odds, and the checks of options.

Shapes: any, equal; P pairs or A answers as a rule.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.errors import ConfigError

MAX_LOG_P = -1e-6  # odds of a sure thing are infinite
MINUS_LN_2 = -math.log(2)


def log_ratio(logps: Tensor, ref_logps: Tensor) -> Tensor:
    """Return ``logps - ref_logps``, the policy's log-ratio to the reference; no gradient into the reference."""
    assert logps.shape == ref_logps.shape
    return logps - ref_logps.detach()


def margin(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> Tensor:
    """Return ``h``, by how much more the policy has moved to the chosen answer than to the rejected one, in nats.

    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    """
    return log_ratio(chosen, ref_chosen) - log_ratio(rejected, ref_rejected)


def per_token(total: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean over an answer's tokens of what was summed over them."""
    assert total.shape == tokens.shape
    return total / tokens.detach()


def log_odds(logps: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` of ``p = exp(logps)``; above -1e-6 it is held there, without gradient."""
    logps = logps.clamp(max=MAX_LOG_P)
    return logps - log1mexp(logps)


def log1mexp(x: Tensor) -> Tensor:
    """Return ``log(1 - exp(x))`` for x < 0, without losing digits near 0 or far from it.

    Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))", eq. 7.
    """
    return torch.where(x > MINUS_LN_2, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def check_positive(method: str, **options: float) -> None:
    """Refuse an option that is not a finite number above 0."""
    for name, value in options.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{method}: {name} must be a number above 0, not {value}")


def check_not_negative(method: str, **options: float) -> None:
    """Refuse an option that is not a finite number of 0 or more."""
    for name, value in options.items():
        if not 0 <= value < math.inf:
            raise ConfigError(f"{method}: {name} must be a number of 0 or more, not {value}")


def check_flips(method: str, label_smoothing: float) -> None:
    """Refuse a share of wrong labels outside [0, 1/2): with half of them wrong, labels say nothing."""
    if not 0 <= label_smoothing < 0.5:
        raise ConfigError(f"{method}: label_smoothing must be at least 0 and below 0.5, not {label_smoothing}")
