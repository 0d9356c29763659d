from __future__ import annotations

import json
import re
from math import nan
from pathlib import Path

import pytest
from synthetic_run import write_run

from trimtab.errors import DataError
from trimtab.report.summary import KEYS, sentences, summarise, write_report


def strict(text: str) -> dict[str, object]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_every_key_is_documented_and_every_pattern_is_used(tmp_path: Path) -> None:
    summary = summarise(write_run(tmp_path, prompts=30, steps=8))
    unknown = [key for key in summary if not any(re.fullmatch(pattern, key) for pattern in KEYS)]
    assert unknown == []
    unused = [pattern for pattern in KEYS if not any(re.fullmatch(pattern, key) for key in summary)]
    assert unused == []
    assert all(value is None or isinstance(value, str | int | float | bool) for value in summary.values())


def test_numbers_are_the_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, prompts=30, steps=10)
    summary = summarise(folder)
    stored = json.loads((folder / "evaluate" / "evaluation.json").read_text())["head_to_head"][0]
    assert summary["win/policy/sft/rate"] == stored["win_rate"]
    assert summary["win/policy/sft/always_valid_lo"] == stored["always_valid_lo"]
    assert summary["win/policy/sft/matched_n"] == stored["length_matched"]["n"]
    assert summary["run/seconds"] == pytest.approx(352 + 118.4 + 940.2 + 205)
    assert summary["run/peak_rss_gb"] == pytest.approx(3.1)
    assert summary["metric/reward/heldout/accuracy"] == 0.765
    assert (summary["role/final"], summary["role/start"], summary["role/base"]) == ("policy", "sft", "base")
    rows = [json.loads(line) for line in (folder / "policy" / "metrics.jsonl").read_text().splitlines()]
    first = [row["rollout/score"] for row in rows[:2]]
    assert summary["curve/policy/rollout/score/start"] == pytest.approx(sum(first) / 2)
    assert summary["judge/accuracy"] == 0.805


def test_sentences_come_back_from_the_file(tmp_path: Path) -> None:
    folder = write_run(tmp_path, prompts=30, steps=8)
    write_report(folder)
    said = sentences(strict((folder / "summary.json").read_text()))  # type: ignore[arg-type]
    assert said == sentences(summarise(folder))
    assert 4 <= len(said) <= 10
    assert "sft" in said[0]
    assert all(sentence.endswith(".") for sentence in said)
    assert sentences({}) == []


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("sft", "reward"), steps=4)
    with (folder / "sft" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 99, "train/loss": nan, "train/odd": float("inf")}) + "\n")
    manifest = json.loads((folder / "reward" / "manifest.json").read_text())
    manifest["metrics"]["heldout/accuracy"] = nan
    (folder / "reward" / "manifest.json").write_text(json.dumps(manifest))
    write_report(folder)
    summary = strict((folder / "summary.json").read_text())
    assert summary["metric/reward/heldout/accuracy"] is None
    assert summary["curve/sft/train/odd/end"] is None
    assert summary["health/sft/Numbers"] == "bad"
    assert summary["health/worst"] == "bad"


@pytest.mark.parametrize("stages", [(), ("sft",), ("sft", "reward"), ("sft", "reward", "policy")])
def test_a_recipe_may_hold_less(tmp_path: Path, stages: tuple[str, ...]) -> None:
    folder = write_run(tmp_path, stages=stages, steps=5)
    page = write_report(folder)
    assert page == folder / "report.html"
    summary = strict((folder / "summary.json").read_text())
    assert not any(key.startswith(("win/", "judge/", "role/")) for key in summary)
    assert "does not show whether the answers got better" in str(summary["said/1"])


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("sft", "reward"), steps=5)
    (folder / "reward" / "manifest.json").unlink()
    page = write_report(folder).read_text(encoding="utf-8")
    assert summarise(folder)["run/finished"] is False
    assert "Not finished yet: reward." in page


def test_files_are_published_whole(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("sft",), steps=3)
    (folder / "report.html").write_text("old")
    write_report(folder)
    write_report(folder)
    assert {path.name for path in folder.iterdir()} == {"run.json", "sft", "summary.json", "report.html"}


def test_not_a_run_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
