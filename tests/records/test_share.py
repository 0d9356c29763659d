"""A share of a source: ``SOURCE@LOW:HIGH``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.errors import DataError
from trimtab.records.read import iter_groups, read_groups, source_digest
from trimtab.records.sources import resolve


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"Question {i}?", "chosen": f"a{j}", "rejected": "b"} for i in range(60) for j in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prompts(source: str) -> list[str]:
    return [group.prompt[0].content for group in read_groups(source).groups]


def test_shares_divide_the_prompts(rows: Path) -> None:
    low, high = prompts(f"{rows}@0:0.8"), prompts(f"{rows}@0.8:1")
    assert sorted(low + high) == sorted(prompts(str(rows)))  # every row once
    assert not set(low) & set(high)  # a prompt's rows stay together
    assert 6 <= len(high) <= 48  # of 120; 24 on average
    assert prompts(f"{rows}@:0.8") == low
    assert prompts(f"{rows}@0.8:") == high
    assert [group.prompt[0].content for group in iter_groups(f"{rows}@0.8:")] == high


def test_a_share_does_not_depend_on_what_else_is_there(rows: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.jsonl"
    fewer.write_text("".join(rows.read_text().splitlines(keepends=True)[::3]))
    assert set(prompts(f"{fewer}@0.5:")) == set(prompts(str(fewer))) & set(prompts(f"{rows}@0.5:"))


def test_the_bytes_are_those_of_the_whole(rows: Path) -> None:
    assert source_digest(f"{rows}@0:0.5") == source_digest(str(rows))  # the share is in the recipe's own words


@pytest.mark.parametrize("share", ["0.8:0.2", "0:1.5", "0.5:0.5"])
def test_what_is_no_share_is_refused(rows: Path, share: str) -> None:
    with pytest.raises(DataError, match="a share is LOW:HIGH"):
        read_groups(f"{rows}@{share}")


def test_an_empty_share_says_so(rows: Path) -> None:
    with pytest.raises(DataError, match="no rows in this share"):
        read_groups(f"{rows}@0.999999:1")


def test_a_file_of_that_name_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "odd@0:1.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n')
    assert resolve(str(path)).share == (0.0, 1.0)
    assert len(read_groups(str(path)).groups) == 1


def test_a_share_of_the_hub_and_of_what_comes_with_the_package() -> None:
    found = resolve("owner/name:train@0:0.9")
    assert (found.kind, found.name, found.split, found.share) == ("hub", "owner/name", "train", (0.0, 0.9))
    assert len(read_groups("quickstart/prompts@0:0.5").groups) < len(read_groups("quickstart/prompts").groups)
