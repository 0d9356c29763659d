from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import RewardError
from trimtab.registry import RULES
from trimtab.rewards.rules.constraints import constraints

META = {
    "constraints": [
        {"kind": "no_comma"},
        {"kind": "number_words", "relation": "at most", "count": 4},
        {"kind": "end_phrase", "phrase": "The end."},
    ]
}


def test_the_registry_finds_it_with_its_columns() -> None:
    entry = RULES["constraints"]
    assert entry.columns == ("text", "meta")
    assert RULES.item(entry) == "text"
    assert set(entry.options) == {"strict", "loose"}
    assert "2311.07911" in entry.paper


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("It rains. The end.", 1.0),
        ("It rains, dear. The end.", 1 / 3),
        ("It rains", 2 / 3),
        ("Well, it rains again", 1 / 3),
        ("Well, it rains and rains", 0.0),
        ("", 0.0),
        (" ***\n", 0.0),
    ],
)
def test_the_share_by_hand(text: str, share: float) -> None:
    assert constraints(text, META) == pytest.approx(share)
    assert constraints(text, META, strict=True) == float(share == 1)


def test_the_loose_reading_takes_each_constraint_on_its_own() -> None:
    text = "Sure, here it is:\nIt rains. **The end.**"
    assert constraints(text, META) == 0.0
    assert constraints(text, META, loose=True) == 1.0
    assert constraints(text, META, loose=True, strict=True) == 1.0
    # the first line alone has no word too many, the second alone has no comma
    assert constraints("Well, it rains.\nIt rains every day there", META, loose=True) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({}, "reads meta['constraints'], a list such as [{'kind': 'no_comma'}]; there is none"),
        ({"constraints": []}, "there is none"),
        ({"constraints": {"kind": "no_comma"}}, "got {'kind': 'no_comma'}"),
        ({"constraints": "no_comma"}, "got 'no_comma'"),
        ({"constraints": [{"kind": "no_comas"}]}, "no constraint of the kind 'no_comas'; did you mean 'no_comma'?"),
        ({"constraints": [{"kind": "title"}, {"kind": "keywords"}]}, "'keywords': the option 'keywords' is missing"),
    ],
)
def test_what_cannot_be_judged_is_an_error_and_no_zero(meta: dict[str, Any], reason: str) -> None:
    for text in ("It rains.", ""):
        with pytest.raises(RewardError) as error:
            constraints(text, meta)
        assert reason in str(error.value)
