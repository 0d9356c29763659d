"""The summaries of the slow benchmarks, on rows made by hand: the arithmetic is tested here, the runs are evidence."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    def load(name: str) -> ModuleType:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def row(method: str, seed: int, scores: list[float], ended: list[bool], tokens: list[int]) -> dict[str, Any]:
    curves = {"rollout/kl": [0.0, 1.0, 2.0, 4.0]}
    curves |= {"value/residual_variance": [1.0, 1.0, 1.0, 3.0], "value/return_variance": [1.0, 1.0, 2.0, 6.0]}
    return {
        "method": method, "seed": seed, "revision": "abc", "scores": scores, "ended": ended, "tokens": tokens,
        "seconds": 60 * (seed + 1), "reward_model": 0.5, "curves": curves if method == "ppo" else {},
    }  # fmt: skip


def rows() -> list[dict[str, Any]]:
    judge = {"accuracy": 0.8, "accuracy_lo": 0.7, "accuracy_hi": 0.9}
    metrics = {
        "heldout/accuracy": 0.75, "heldout/accuracy_lo": 0.7, "heldout/accuracy_hi": 0.8, "heldout/longer_wins": 0.5,
        "heldout/n": 100.0,
    }  # fmt: skip
    found = []
    for seed in (0, 1):
        found.append({"method": "reward", "seed": seed, "revision": "abc", "metrics": metrics, "judge": judge})
        found.append(row("sft", seed, [0.0, 0.0, 0.0, 0.0], [True, True, True, False], [10, 10, 10, 64]))
        # PPO wins two prompts with both seeds, the third with one; its last answer is worse, but it ends.
        third = 1.0 if seed == 0 else -1.0
        found.append(row("ppo", seed, [1.0, 2.0, third, -1.0], [True] * 4, [10, 30, 9, 60]))
        found.append(row("grpo", seed, [0.0, 0.0, 0.0, 0.0], [True] * 4, [10, 10, 10, 10]))
    return found


def test_seeds_are_averaged_before_prompts_are_counted(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("evidence").summary(rows(), "abc")
    said = capsys.readouterr().out
    line = next(line for line in said.splitlines() if line.startswith("| PPO over SFT"))
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1] == "**62.5 %**"  # (1 + 1 + 1/2 + 0) / 4
    assert cells[3].startswith("2 : 1, ")  # two prompts won, one lost, one tied between the seeds
    assert cells[4].startswith("50.0 %")  # about as long: prompts 0, 2, 3
    assert cells[4].endswith("3 prompts")
    assert cells[5].startswith("87.5 %")  # the last one ends, SFT's does not
    assert cells[6] == "75.0 %, 50.0 %"
    model = next(line for line in said.splitlines() if line.startswith("| PPO |"))
    assert [cell.strip() for cell in model.split("|")[2:-1]] == ["1.5", "100.0 %", "27.2", "+0.50", "4.00", "", "0.50"]
    assert "| 0 | 75.0 % | 70.0 % to 80.0 % | 50.0 % |" in said


def test_another_revisions_rows_are_another_experiment(benchmark: Any, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("evidence").summary(rows(), "def")
    assert capsys.readouterr().out == "no results of revision def yet\n"


def test_every_answer_meets_every_other(benchmark: Any) -> None:
    compare = benchmark("choose").compare
    mine = {"scores": [[2.0, 0.0], [0.0, 0.0]], "ended": [[True, True], [True, False]]}  # K x N
    theirs = {"scores": [[1.0, 0.0], [1.0, 0.0]], "ended": [[True, True], [False, True]]}
    assert compare(mine, theirs, cut_loses=False).tolist() == [0.5, 0.5]  # two of four; four ties
    # Prompt 0: 2 and 0 against 1 and cut: 1, 1, 0, 1. Prompt 1: 0 and cut against 0 and 0: 1/2, 1/2, 0, 0.
    assert compare(mine, theirs, cut_loses=True).tolist() == [0.75, 0.25]
