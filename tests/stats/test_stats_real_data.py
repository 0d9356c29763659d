"""Real verdicts of people and judges: known facts of two data sets come out."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trimtab.stats.agreement import krippendorff_alpha, leave_one_out, majority
from trimtab.stats.battles import battles
from trimtab.stats.bradley_terry import choose_ties, fit
from trimtab.stats.dawid_skene import dawid_skene
from trimtab.stats.judges import agreement, length_slope, self_preference
from trimtab.stats.raters import position_bias
from trimtab.stats.rating_intervals import ranks, sandwich

OUTCOME = {0: 0.5, 1: 1.0, 2: 0.0, "a": 1.0, "n": 0.5, "b": 0.0}


@pytest.fixture(scope="module")
def pandalm(shared_data: Path) -> list[dict[str, Any]]:
    return read(shared_data / "pandalm_human" / "train.jsonl.gz")


@pytest.fixture(scope="module")
def webis(shared_data: Path) -> list[dict[str, Any]]:
    return read(shared_data / "webis_rag_utility" / "pairs_train.jsonl.gz")


def read(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        pytest.skip(f"real samples are not here ({path})")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def votes(rows: list[dict[str, Any]], dimension: str = "quality_overall") -> np.ndarray:
    """Outcomes of the first answer, (N, R)."""
    if "models" in rows[0]:
        return np.array([[OUTCOME[v] for v in row["human"]] for row in rows])
    return np.array([[OUTCOME[v] for v in row["human"][dimension]["votes"]] for row in rows])


def test_three_careful_annotators(pandalm: list[dict[str, Any]]) -> None:
    """PandaLM's authors kept what three people agreed on: alpha .88, far above what preferences reach."""
    table = votes(pandalm)
    found = krippendorff_alpha(table, resamples=100)
    assert found.alpha == pytest.approx(0.878, abs=0.005)
    assert 0.84 < found.lo < found.alpha < found.hi < 0.91
    assert leave_one_out(table)[0] == pytest.approx(0.928, abs=0.005)
    for rater in table.T:
        assert not position_bias(rater).flag


def test_dawid_skene_is_their_majority(pandalm: list[dict[str, Any]]) -> None:
    found = dawid_skene(
        [row["id"] for row in pandalm for _ in range(3)],
        ["h1", "h2", "h3"] * len(pandalm),
        [said for row in pandalm for said in row["human"]],
        classes=(1, 0, 2),
    )
    known = [(mine, row["human_majority"]) for mine, row in zip(found.labels, pandalm, strict=True)]
    assert all(mine == theirs for mine, theirs in known if theirs is not None)
    assert found.accuracy == pytest.approx([0.96, 0.95, 0.98], abs=0.015)


def test_llama_is_first_and_cerebras_last(pandalm: list[dict[str, Any]]) -> None:
    """Three votes on a pair are one opinion in three voices: clustered errors are 1.65 times the naive ones."""
    first, second, outcome, pair = [], [], [], []
    for row in pandalm:
        a, b = row["models"].split("_")
        for said in row["human"]:
            first, second = [*first, a], [*second, b]
            outcome, pair = [*outcome, OUTCOME[said]], [*pair, row["id"]]
    rows = battles(first, second, outcome, clusters=(pair,))
    ratings = fit(rows, ties="davidson")
    order = [ratings.names[i] for i in np.argsort(-ratings.theta)]
    assert order == ["llama-7b", "pythia-6.9b", "bloom-7b", "opt-7b", "cerebras-gpt-6.7B"]
    clustered = sandwich(rows, ratings)
    assert ranks(clustered) == [2, 4, 1, 3, 2]
    naive = sandwich(battles(first, second, outcome), ratings)
    assert clustered.standard_error / naive.standard_error == pytest.approx(np.full(5, 1.65), abs=0.12)
    assert next(iter(choose_ties(rows))) == "davidson"


@pytest.mark.parametrize(("judge", "accuracy"), [("gpt-3.5-turbo", 0.748), ("pandalm-7b", 0.684)])
def test_judges_of_pandalm(pandalm: list[dict[str, Any]], judge: str, accuracy: float) -> None:
    usable = [row for row in pandalm if row["judge"].get(judge) is not None and row["human_majority"] is not None]
    said = np.array([OUTCOME[row["judge"][judge]] for row in usable])
    people = np.array([OUTCOME[row["human_majority"]] for row in usable])
    assert agreement(said, people).mean == pytest.approx(accuracy, abs=0.012)
    assert not position_bias(said).flag
    gap = [len(str(row["response_1"])) - len(str(row["response_2"])) for row in usable]
    assert length_slope(said, gap).lo > 0.4  # the judge follows length,
    assert length_slope(people, gap).value > length_slope(said, gap).value  # and so do people, more


def test_crowd_workers(webis: list[dict[str, Any]]) -> None:
    """Five votes by 420 workers: alpha .18, one agrees with the others in 61 of 100, nobody is always left."""
    table = votes(webis)
    found = krippendorff_alpha(table)
    assert found.alpha == pytest.approx(0.179, abs=0.004)
    assert leave_one_out(table)[0] == pytest.approx(0.612, abs=0.004)
    raters = np.array([row["annotators"] for row in webis])
    flagged = [position_bias(table[raters == one]).flag for one in np.unique(raters)]
    assert (len(flagged), sum(flagged)) == (420, 0)


def test_dawid_skene_is_nearer_to_the_gold_than_the_majority(webis: list[dict[str, Any]]) -> None:
    gold = [row["human"]["quality_overall"]["gold"] for row in webis]
    found = dawid_skene(
        [row["id"] for row in webis for _ in range(5)],
        [rater for row in webis for rater in row["annotators"]],
        [said for row in webis for said in row["human"]["quality_overall"]["votes"]],
        classes=("a", "n", "b"),
        tolerance=1e-5,
    )
    mine = float(np.mean([x == y for x, y in zip(found.labels, gold, strict=True)]))
    counted = majority(votes(webis))
    plain = float(np.mean([x == OUTCOME[y] for x, y in zip(counted, gold, strict=True)]))
    assert mine == pytest.approx(0.881, abs=0.01)
    assert mine > plain == pytest.approx(0.871, abs=0.004)


def test_the_judge_favours_the_machine(webis: list[dict[str, Any]]) -> None:
    """GPT-4o's answers win 67 % before people, and 97 % before the judge: 30 points beyond what people say."""
    mixed = [row for row in webis if "combined" in row["judge"] and len(set(row["author"])) == 2]
    sign = np.array([row["author"][0] == "gpt-4o" for row in mixed])
    judge = np.array([OUTCOME[row["judge"]["combined"]["quality_overall"]] for row in mixed])
    gold = np.array([OUTCOME[row["human"]["quality_overall"]["gold"]] for row in mixed])
    found = self_preference(
        np.where(sign, judge, 1 - judge), np.where(sign, gold, 1 - gold), prompts=[row["topic"] for row in mixed]
    )
    assert found.value == pytest.approx(0.299, abs=0.03)
    assert found.lo > 0.2
