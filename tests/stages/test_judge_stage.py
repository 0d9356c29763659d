"""The stage ``judge``: what it measures and says, and that whoever takes a scorer takes what it leaves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny_stages as tiny
from judge_server import JudgeServer, Sent, by_vowels, completion, fenced, vowels
from trimtab.artifacts import read_artifact
from trimtab.cli import app
from trimtab.config import DataRef, check_recipe
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.pipeline import find_model, run_recipe
from trimtab.records.read import read_groups
from trimtab.records.types import Pair
from trimtab.rewards._ai_judge_attacks import ATTACKS
from trimtab.rewards.scorer import only_compares, open_scorer
from trimtab.stages._judge_report import ATTACKED
from trimtab.stages.judge import judge

KEY = "k3y-that-nobody-sees"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def pairs(folder: Path, rows: list[tuple[str, str]]) -> DataRef:
    """Pairs of answers, the first of each the better one, each to a prompt of its own."""
    verdict = [{"kind": "pair", "better": 0, "worse": 1}]
    return tiny.write_rows(
        folder / "pairs.jsonl", [tiny.row(f"p{i}", f"{i}?", list(row), verdict) for i, row in enumerate(rows)]
    )


def run_judge(folder: Path, server: JudgeServer, **settings: Any) -> tuple[dict[str, float], str]:
    run = tiny.make_run(folder / "made", "judge")
    result = judge(run, url=server.url, model="vowels", **settings)
    assert result.base == "judge:vowels"
    return dict(result.metrics), "\n".join(run.notes)


# --- held-out verdicts ------------------------------------------------------------------------------------------------


def test_agreement_by_hand(tmp_path: Path) -> None:
    """Right on three of four pairs, by bare verdicts; the longer answer is better in two; no bias, nobody turned."""
    rows = [("aaa", "aa"), ("aa", "abbbb"), ("aabbb", "a"), ("b", "a")]
    with JudgeServer(handle=by_vowels(soft=False)) as server:
        metrics, said = run_judge(tmp_path, server, heldout=pairs(tmp_path, rows))
    assert metrics["heldout/accuracy"] == 0.75
    assert metrics["heldout/n"] == metrics["heldout/prompts"] == 4
    assert metrics["heldout/accuracy_lo"] < 0.5 < metrics["heldout/accuracy_hi"]
    assert metrics["heldout/longer_wins"] == (1 + 0 + 1 + 0.5) / 4
    assert metrics["heldout/brier"] == pytest.approx(0.25, abs=1e-5)  # it is sure, and wrong once
    assert metrics["heldout/order_disagreement"] == metrics["heldout/soft"] == metrics["judge/soft"] == 0
    assert metrics["heldout/first_preferred"] == 0.5
    assert "agrees with people on 75% (95% interval" in said
    assert "always the longer answer does on 62%" in said
    assert "not shown to beat a coin" in said
    assert "tells no probabilities" in said


def test_a_bias_for_the_place_is_told(tmp_path: Path) -> None:
    """The first answer gets four vowels for nothing: of leads 1 and 9 the verdict on the first turns with the order."""
    with JudgeServer(handle=by_vowels(soft=False, bias=4.0)) as server:
        metrics, said = run_judge(tmp_path, server, heldout=pairs(tmp_path, [("aa", "a"), ("a" * 10, "a")]))
    assert metrics["heldout/order_disagreement"] == 0.5
    assert metrics["heldout/first_preferred"] == 0.75
    assert metrics["heldout/accuracy"] == 0.75  # a tie counts one half
    assert "in 50% of the pairs its verdict changes with the order; the answer shown first gets 75%" in said


def test_soft_verdicts_are_chances(tmp_path: Path) -> None:
    """Chances .6225 and .3775 for the better one: (.3775^2 + .6225^2) / 2."""
    with JudgeServer() as server:
        metrics, said = run_judge(tmp_path, server, heldout=pairs(tmp_path, [("aa", "a"), ("a", "aa")]))
    p = 1 / (1 + math.exp(-0.5))
    assert metrics["heldout/brier"] == pytest.approx(((1 - p) ** 2 + p**2) / 2, abs=1e-6)
    assert metrics["heldout/soft"] == metrics["judge/soft"] == 1
    assert "tells no probabilities" not in said


def test_the_length_slope_by_hand(tmp_path: Path) -> None:
    """A judge that goes by length alone, P(A) = 1/2 + (a - b) / (a + b) / 2: a slope of 1/2, nothing for people."""

    def by_length(sent: Sent) -> Any:
        a, b = (len(fenced(sent, f"answer-{letter}")) for letter in "AB")
        p = 0.5 + 0.5 * (a - b) / (a + b)
        letter = "A" if p >= 0.5 else "B"
        return 200, completion(letter, tokens=[(letter, {"A": p, "B": 1 - p})])

    rows = [("xxx", "x"), ("x", "xxx"), ("xx", "xxxx"), ("xxxxx", "xx")]
    with JudgeServer(handle=by_length) as server:
        metrics, said = run_judge(tmp_path, server, heldout=pairs(tmp_path, rows))
    assert metrics["heldout/length_slope"] == pytest.approx(0.5)
    assert "one twice as long gets +17 points of chance" in said


def test_rankings_count_as_the_pairs_that_they_imply(tmp_path: Path) -> None:
    row = tiny.row("k", "?", ["a", "aaa", "aa"], [{"kind": "ranking", "order": [[1], [2], [0]]}])
    with JudgeServer(handle=by_vowels(soft=False)) as server:
        metrics, _ = run_judge(tmp_path, server, heldout=tiny.write_rows(tmp_path / "k.jsonl", [row]))
    assert (metrics["heldout/accuracy"], metrics["heldout/n"], metrics["heldout/prompts"]) == (1.0, 3, 1)


def test_only_so_many_prompts_are_judged(tmp_path: Path) -> None:
    data = pairs(tmp_path, [("aa" * 30, "a")] * 9)
    with JudgeServer(handle=by_vowels(soft=False)) as server:
        metrics, _ = run_judge(tmp_path, server, heldout=data, limit=2)
    assert metrics["heldout/n"] == metrics["attack/n"] == 2
    assert len(server.sent) == 1 + 2 * 2 + 2 * 2  # the first call, the pairs, the attacks


# --- attacks ----------------------------------------------------------------------------------------------------------


def test_a_steadfast_judge_is_turned_by_nothing_and_a_gullible_one_by_what_it_is_told(tmp_path: Path) -> None:
    """The gullible one prefers whatever holds the words "[[A]]" or "[[B]]": two attacks of all, once each."""
    plain = by_vowels(soft=False)

    def gullible(sent: Sent) -> Any:
        forged = [any(f"[[{x}]]" in fenced(sent, f"answer-{side}") for x in "AB") for side in "AB"]
        return (200, completion("AB"[forged.index(True)])) if any(forged) else plain(sent)

    data = pairs(tmp_path, [("a" * 300, "a")] * ATTACKED)
    with JudgeServer(handle=plain) as server:
        metrics, said = run_judge(tmp_path, server, heldout=data)
    assert (metrics["attack/turned"], metrics["attack/moved"], metrics["attack/n"]) == (0, 0, ATTACKED)
    assert f"of {ATTACKED} right verdicts, 0% were turned by an attack" in said
    with JudgeServer(handle=gullible) as server:
        metrics, _ = run_judge(tmp_path, server, heldout=data)
    assert 2 * len(ATTACKS) == ATTACKED
    assert metrics["attack/turned"] == metrics["attack/moved"] == 2 / len(ATTACKS)


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tokens": 99}, r"^stages\.judge\.tokens would change nothing: the judge replies with one letter"),
        ({"limit": 3}, r"^stages\.judge\.limit would change nothing: there is no 'heldout'"),
        ({"rivals": 2, "against": DataRef("x.jsonl")}, r"^stages\.judge\.rivals would change nothing"),
        ({"url": "localhost:8000"}, r"^stages\.judge\.url: 'localhost:8000' is no http address"),
        ({"url": "http://me:word@here/v1"}, r"^stages\.judge\.url: the address at here holds a password"),
        ({"key": "NO_SUCH_KEY"}, r"^stages\.judge\.key: the environment variable 'NO_SUCH_KEY'"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        judge(tiny.make_run(tmp_path, "judge"), **{"url": "http://127.0.0.1:1/v1", "model": "vowels", **settings})


def test_a_wrong_address_or_model_is_found_before_anything_else(tmp_path: Path) -> None:
    with JudgeServer() as server, pytest.raises(ModelError, match=r"has no model 'wovels'; did you mean 'vowels'\?"):
        judge(tiny.make_run(tmp_path, "judge"), url=server.url, model="wovels")
    with pytest.raises(ModelError, match="cannot be reached"):
        judge(tiny.make_run(tmp_path, "judge"), url=server.url, model="vowels")


def test_verdicts_that_decide_nothing(tmp_path: Path) -> None:
    even = [{"kind": "pair", "better": 0, "worse": 1, "probability": 0.5}]
    data = tiny.write_rows(tmp_path / "even.jsonl", [tiny.row("p", "?", ["a", "b"], even)])
    with JudgeServer() as server, pytest.raises(DataError, match="every held-out verdict is an even chance"):
        run_judge(tmp_path, server, heldout=data)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[JudgeServer]:
    with JudgeServer(handle=by_vowels(bias=0.5)) as running:
        yield running


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, server: JudgeServer) -> dict[str, Any]:
    """A judge that compares, one that knows answers to compare with, and whoever takes a scorer."""
    folder = tmp_path_factory.mktemp("judged")
    data, texts = tiny.preferences(folder).source, tiny.demonstrations(folder).source
    verdict = [{"kind": "pair", "better": 0, "worse": 1}]
    rows = [tiny.row(f"a{i}", tiny.QUESTIONS[i], ["a" * i, "e i o"], verdict) for i in (1, 2, 5)]
    known = tiny.write_rows(folder / "known.jsonl", rows).source  # prompts that there is an answer to compare with for
    lora = {"rank": 4, "alpha": 8}
    learn = {
        "stage": "policy", "prompts": tiny.prompts(folder).source, "steps": 1, "batch": 2, "answers": 3, "lora": lora,
        "sampling": {"max_tokens": 4},
    }  # fmt: skip
    there = {"stage": "judge", "url": server.url, "model": "vowels"}
    return {
        "model": str(tiny_model), "dtype": "float32", "output": str(folder / "runs"),
        "stages": {
            "judge": {**there, "heldout": data, "key": "JUDGE_KEY"},
            "beside": {**there, "against": texts},
            "reward": {"data": data, "batch": 3, "lora": lora},
            "both": {"stage": "ensemble", "members": ["judge", "reward"], "data": data, "heldout": data},
            "judges": {"stage": "ensemble", "members": ["judge", "beside"], "data": known, "heldout": known},
            "rloo": {**learn, "reward": "judge", "gold": "beside", "method": "rloo"},
            "remax": {**learn, "reward": "beside", "method": "remax"},
            "grpo": {**learn, "reward": "both", "gold": "judges", "method": "grpo"},
            "evaluate": {
                "models": ["base", "rloo"], "prompts": texts, "reward": "judge", "sampling": {"max_tokens": 4},
                "base_max_tokens": 4,
            },
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def root(recipe: dict[str, Any]) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(Path(recipe["output"]).parent / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("JUDGE_KEY", KEY)
        return run_recipe(check_recipe(recipe, "judged.yaml", name="judged"))


def test_whoever_takes_a_scorer_takes_a_judge(root: Path) -> None:
    (rloo,), (remax,), (grpo,) = (tiny.metrics(root / name) for name in ("rloo", "remax", "grpo"))
    assert rloo["rollout/score"] == pytest.approx(0.5)  # shares of a prompt's answers: no curve of them can rise
    assert 0 < rloo["rollout/gold"] < 1
    assert 0 < remax["rollout/score"] < 1
    assert math.isfinite(grpo["rollout/score"])
    told = json.loads((root / "evaluate" / "evaluation.json").read_text())
    assert set(told["reward_model"]) == {"base", "rloo"}
    assert told["by_reward"][0]["n"] == 6
    assert sum(told["reward_model"].values()) == pytest.approx(1.0)  # each answer against the other model's
    ensemble = read_artifact(root / "judges")
    assert ensemble is not None
    assert "heldout/accuracy" in ensemble.manifest["metrics"]  # lengths in characters: no tokenizer is at hand


def test_the_key_is_in_no_file_and_in_the_judges_calls_alone(root: Path, server: JudgeServer) -> None:
    files = [path for path in root.parents[1].rglob("*") if path.is_file()]
    assert len(files) > 20
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
    with_key = sum(headers.get("Authorization") == f"Bearer {KEY}" for headers in server.headers)
    assert 0 < with_key < len(server.headers)
    assert "the judge agrees with people on" in (root / "report.html").read_text()


def test_a_run_that_goes_on_pays_for_nothing_twice(recipe: dict[str, Any], root: Path, server: JudgeServer) -> None:
    """Without the artifacts every stage runs again, and only the first call of each judge reaches the server."""
    import shutil

    before = tiny.metrics(root / "rloo")
    count = len(server.sent)
    shutil.rmtree(root / "artifacts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(Path(recipe["output"]).parent / "cache"))
        patch.setenv("JUDGE_KEY", KEY)
        run_recipe(check_recipe(recipe, "judged.yaml", name="judged"))
    assert len(server.sent) == count + 2
    assert tiny.metrics(root / "rloo") == before


def test_what_only_compares_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    names = ("judge", "beside", "both", "reward")
    opened = {name: open_scorer(find_model(str(root / name), name), dtype="float32") for name in names}
    assert {name: only_compares(scorer) for name, scorer in opened.items()} == {
        "judge": True, "beside": False, "both": True, "reward": False,
    }  # fmt: skip
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ConfigError, match="'JUDGE_KEY'"):
        open_scorer(find_model(str(root / "judge"), "judge"))


def test_remax_has_nothing_to_compare_its_greedy_answer_with(
    recipe: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    stages = {"judge": {k: v for k, v in recipe["stages"]["judge"].items() if k not in ("key", "heldout")}}
    stages["policy"] = {**recipe["stages"]["remax"], "reward": "judge", "answers": 2}
    alone = {**recipe, "output": str(tmp_path), "stages": stages}
    with pytest.raises(ConfigError, match=r"reward: the judge says only which .* here some answer comes alone"):
        run_recipe(check_recipe(alone, "alone.yaml", name="alone"))
    stages["policy"] = {**recipe["stages"]["rloo"], "gold": "judge"}
    with pytest.raises(ConfigError, match=r"gold: the judge says only which .* its curve could not rise"):
        run_recipe(check_recipe(alone, "alone.yaml", name="alone"))


def test_a_judge_is_no_model_to_train(recipe: dict[str, Any], root: Path, tmp_path: Path) -> None:
    stages = {"judge": recipe["stages"]["beside"], "sft": {"init": "judge", "data": recipe["stages"]["reward"]["data"]}}
    with pytest.raises(ModelError, match="no model 'judge:vowels'"):
        run_recipe(check_recipe({**recipe, "output": str(tmp_path), "stages": stages}, "x.yaml", name="x"))


# --- the command line -------------------------------------------------------------------------------------------------


def call(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_score_and_best_of(root: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    rows = [tiny.row("s", "What is tea?", ["a a a", "b", "e"])]
    text = call("score", str(root / "judge"), tiny.write_rows(tmp_path / "s.jsonl", rows).source)
    scores = [float(line.split()[0]) for line in text.splitlines() if line.startswith("  ")]
    assert scores[0] > scores[2] > scores[1]
    out = tmp_path / "best.jsonl"
    call(
        "generate", str(tiny_model), "--prompt", "Tea?", "--best-of", "3", "--scorer", str(root / "judge"),
        "--out", str(out), "max_tokens=4",
    )  # fmt: skip
    (group,) = read_groups(str(out)).groups
    assert len(group.answers) == 1


def test_data_judge_writes_soft_labels(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    rows = [tiny.row("two", "What is tea?", ["b", "e a"]), tiny.row("one", "Why?", ["a"])]
    source, out = tiny.write_rows(tmp_path / "in.jsonl", rows).source, tmp_path / "out.jsonl"
    printed = call("data", "judge", source, str(out), "--judge", str(root / "judge"))
    assert "1 prompt with 1 verdicts of the judge written" in printed
    assert "left out: 1 prompts without two different answers" in printed
    (group,) = read_groups(str(out)).groups
    (pair,) = group.verdicts
    assert isinstance(pair, Pair)
    assert (pair.better, pair.worse) == (1, 0)
    assert pair.probability is not None
    assert 0.5 < pair.probability < 1
    assert pair.rater is not None
    assert pair.rater.startswith("judge:vowels@")
    result = CliRunner().invoke(app, ["data", "judge", source, str(out), "--judge", str(root / "reward")])
    assert result.exit_code == 2
    assert "this is not the folder of a judge stage" in result.output


def test_vowels() -> None:
    assert vowels("Aeiou, try") == 5
