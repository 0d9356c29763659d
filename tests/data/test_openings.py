"""The shipped openings of texts: of no tone of their own, in one file each, and told apart from each other."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from trimtab.environments.tasks._fixtures import fixture
from trimtab.records.read import read_groups
from trimtab.rewards.rules.sentiment import sentiment

FILES = {"openings": 64, "openings_heldout": 60}


def prefixes(name: str) -> list[str]:
    return [str(group.meta["prefix"]) for group in read_groups(f"quickstart/{name}").groups]


@pytest.mark.parametrize(("name", "count"), FILES.items())
def test_they_ask_to_go_on_with_a_neutral_start(name: str, count: int) -> None:
    groups = read_groups(f"quickstart/{name}").groups
    assert len(groups) == count
    for group in groups:
        start = str(group.meta["prefix"])
        assert [message.content for message in group.prompt] == [f"Continue this text with one sentence.\n\n{start}"]
        assert start[-1] not in ".!?"  # the sentence is not at its end
        assert sentiment(start) == 0.0, start


def test_none_is_nearly_another() -> None:
    """Word overlap as the other quickstart files have it, also with the environment's own 30."""
    every = [*(p for name in FILES for p in prefixes(name)), *(str(g.meta["prefix"]) for g in fixture("sentiment"))]
    words = [set(re.findall(r"\w+", text.lower())) for text in every]
    for (i, mine), (j, theirs) in combinations(enumerate(words), 2):
        if max(i, j) < sum(FILES.values()) or min(i, j) < sum(FILES.values()):
            assert 2 * len(mine & theirs) / (len(mine) + len(theirs)) <= 0.62, (every[i], every[j])


def test_their_names_are_their_own() -> None:
    names = [group.id for name in FILES for group in read_groups(f"quickstart/{name}").groups]
    assert len(set(names)) == len(names)
