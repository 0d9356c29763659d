"""Every reward loss in the folder obeys the laws of ``trimtab.laws``; a new file is tested at once."""

from __future__ import annotations

import math

import pytest
import torch

from trimtab.laws import Law, name_of
from trimtab.laws.reward import LAWS, RANKS, losses
from trimtab.registry import REWARD_LOSSES

every_loss = pytest.mark.parametrize("name", list(REWARD_LOSSES))


def test_the_folder_holds_what_it_should() -> None:
    assert {"bradley_terry", "plackett_luce", "mse", "bce"} <= set(REWARD_LOSSES)
    assert not any(name.startswith("_") for name in REWARD_LOSSES)


@every_loss
@pytest.mark.parametrize("law", LAWS, ids=name_of)
def test_it_obeys(name: str, law: Law) -> None:
    law(REWARD_LOSSES[name])


@every_loss
def test_it_says_what_an_item_is_and_has_no_options(name: str) -> None:
    """What a loss is told of an item is a column; an option would be one of the stage's."""
    entry = REWARD_LOSSES[name]
    assert entry.summary.rstrip(".").endswith(("(P,)", "(R,)", "(N,)"))
    assert entry.columns == REWARD_LOSSES.columns[REWARD_LOSSES.item(entry)]
    assert not entry.options


def test_zero_scores_of_two_answers_cost_ln_2() -> None:
    zero = torch.zeros(4, 3)
    assert losses(REWARD_LOSSES["bradley_terry"], zero)[0].item() == pytest.approx(math.log(2), rel=1e-6)
    two = torch.tensor([[True, True, False]])
    plackett_luce = REWARD_LOSSES["plackett_luce"].function
    assert plackett_luce(zero[:1], RANKS[:1], two).item() == pytest.approx(math.log(2), rel=1e-6)
