"""Every preference loss in the folder obeys the laws of ``trimtab.laws``; a new file is tested at once."""

from __future__ import annotations

import re

import pytest

from trimtab.laws import Law, name_of
from trimtab.laws.preference import LAWS, SEES_THE_LIKELIHOOD, STOPPED
from trimtab.registry import PREFERENCE_LOSSES

every_loss = pytest.mark.parametrize("name", list(PREFERENCE_LOSSES))


def test_all_are_there() -> None:
    expected = "dpo cdpo rdpo ipo hinge rpo dpop tdpo1 tdpo2 orpo simpo kto rrhf"
    assert set(expected.split()) <= set(PREFERENCE_LOSSES)
    assert {*STOPPED, *SEES_THE_LIKELIHOOD} <= set(PREFERENCE_LOSSES)


@every_loss
@pytest.mark.parametrize("law", LAWS, ids=name_of)
def test_it_obeys(name: str, law: Law) -> None:
    law(PREFERENCE_LOSSES[name])


@every_loss
def test_it_names_a_paper_and_numbers_that_confirmed_it(name: str) -> None:
    entry = PREFERENCE_LOSSES[name]
    assert entry.path is not None
    assert entry.path.name == f"{name}.py"
    assert re.search(r"arXiv:\d{4}\.\d{5}|no arXiv number", entry.paper)
    assert "hand-worked numbers" in entry.confirmed
    assert re.search(r"TRL 1\.16|a slow loop", entry.confirmed)
