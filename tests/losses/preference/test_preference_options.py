"""Options that cannot work are refused, with one sentence that names the method and the option."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

from trimtab.errors import ConfigError
from trimtab.registry import PREFERENCE_LOSSES

ABOVE_0 = ("beta", "tau")
SHARES = ("label_smoothing",)
EVERY = [
    (name, option)
    for name, entry in PREFERENCE_LOSSES.items()
    for option, parameter in entry.options.items()
    if isinstance(parameter.default, float)
]


def call(name: str, **options: float) -> None:
    entry = PREFERENCE_LOSSES[name]
    names = [p for p in inspect.signature(entry.function).parameters if p not in entry.options]
    shape = (1, 1) if "scores" in names else (1,)
    entry.function(*(torch.ones(() if p == "baseline" else shape, dtype=torch.float64) for p in names), **options)


@pytest.mark.parametrize(("name", "option"), EVERY)
@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_no_option_takes_these(name: str, option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: {option} must be .*, not {value}$"):
        call(name, **{option: value})


@pytest.mark.parametrize(("name", "option"), EVERY)
def test_zero(name: str, option: str) -> None:
    if option not in ABOVE_0:
        call(name, **{option: 0.0})
        return
    with pytest.raises(ConfigError, match=rf"^{name}: {option} must be a number above 0, not 0.0$"):
        call(name, **{option: 0.0})


@pytest.mark.parametrize(("name", "option"), [pair for pair in EVERY if pair[1] in SHARES])
def test_half_of_the_labels_wrong(name: str, option: str) -> None:
    call(name, **{option: 0.49})
    for value in (0.5, 0.9):
        with pytest.raises(ConfigError, match=rf"^{name}: {option} must be at least 0 and below 0.5, not {value}$"):
            call(name, **{option: value})
