"""Bake-offs from the bare model, judged by rules and by a reward model: what is understood, what makes a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from trimtab.bakeoff import Bakeoff, identify, load_bakeoff, read_rows
from trimtab.bakeoff.run import measured
from trimtab.cli import app
from trimtab.config import check_recipe
from trimtab.errors import ConfigError
from trimtab.records.read import read_groups

RECIPE = """
model: tiny
dtype: float32
output: runs

bakeoff:
  start: base
  seeds: [0]
  common:
    stage: policy
    prompts: quickstart/sums
    rules: {number: {}}
    steps: 2
    batch: 2
    answers: 3
    kl: {beta: 0.0}
    sampling: {max_tokens: 4}
    lora: {rank: 2}
  methods:
    grpo: {method: grpo}
    remax: {method: remax, answers: 2}
  evaluate:
    prompts: quickstart/sums_heldout
    rules: {number: {}}
    limit: 3
    sampling: {max_tokens: 4}
    base_max_tokens: 4
"""
DATA = (
    {"id": "p0", "prompt": [{"role": "user", "content": "Why?"}], "answers": [{"text": "Yes."}, {"text": "No"}]},
    {"id": "p1", "prompt": [{"role": "user", "content": "Who?"}], "answers": [{"text": "I."}, {"text": "Nobody"}]},
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tasting.yaml").write_text(RECIPE)
    rows = [{**row, "verdicts": [{"kind": "pair", "better": 0, "worse": 1}]} for row in DATA]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides: str) -> Bakeoff:
    return load_bakeoff(Path("tasting.yaml"), overrides)


def stages(plan: Bakeoff, method: str) -> list[str]:
    return list(plan.recipe(method, 0)["stages"])


# --- from the bare model ----------------------------------------------------------------------------------------------


def test_methods_may_start_from_the_base_with_no_stages_at_all(work: Path) -> None:
    plan = load("name=other", "dtype=bfloat16", "bakeoff.common.lr=1e-3")
    assert plan.entrants == ("base", "grpo", "remax")
    assert (stages(plan, "base"), stages(plan, "grpo")) == (["evaluate-base"], ["grpo", "evaluate-grpo"])
    recipe = plan.recipe("grpo", 3)
    assert (recipe["name"], recipe["seed"], recipe["dtype"]) == ("other-3", 3, "bfloat16")
    assert (recipe["stages"]["grpo"]["init"], recipe["stages"]["grpo"]["lr"]) == ("base", 1e-3)
    assert recipe["stages"]["evaluate-grpo"]["start"] == "base"
    assert plan.recipe("base", 0, evaluate=False)["stages"] == {}
    checked = check_recipe(recipe, "r")
    assert checked.stages["evaluate-grpo"].settings["models"] == ("grpo",)


def test_stages_beside_the_base_are_there_for_who_needs_them(work: Path) -> None:
    raw = yaml.safe_load(RECIPE)
    raw["stages"] = {"reward": {"data": "pairs.jsonl"}}
    Path("tasting.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    plan = load("reward.epochs=2", "bakeoff.methods.paid={method: grpo, reward: reward, rules: null}")
    assert stages(plan, "paid") == ["reward", "paid", "evaluate-paid"]
    assert stages(plan, "grpo") == ["grpo", "evaluate-grpo"]
    by_it = load("bakeoff.evaluate.reward=reward")
    assert stages(by_it, "base") == ["reward", "evaluate-base"]
    assert stages(by_it, "grpo") == ["reward", "grpo", "evaluate-grpo"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("base.epochs=3", "tasting.yaml: 'base' is the model itself; it has no options to override"),
        ("sft.epochs=3", "override 'sft.epochs=3': no stage 'sft' in this recipe"),
        ("bakeoff.start=bas", "tasting.yaml: 'stages' is missing or empty"),
        ("bakeoff.methods.base={}", "tasting.yaml: bakeoff.methods: two stages would be called 'evaluate-base'"),
        ("outptu=x", "override 'outptu=x': no key 'outptu'; did you mean 'output'?"),
        (
            "bakeoff.evaluate.rules={numbr: {}}",
            "tasting.yaml: bakeoff.evaluate.rules.numbr: no rule 'numbr'; did you mean 'number'?",
        ),
    ],
)
def test_what_does_not_fit(override: str, sentence: str, work: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(override)
    assert str(error.value).startswith(sentence)


def test_a_row_rests_on_the_rules_that_judge_it(work: Path) -> None:
    mine = identify(load(), "grpo")
    assert identify(load("bakeoff.evaluate.rules.number={weight: 2.0}"), "grpo").key != mine.key
    assert identify(load("bakeoff.methods.remax.lr=1"), "grpo") == mine
    assert list(mine.asked["stages"]["evaluate-grpo"]["rules"]) == ["number"]


# --- rows -------------------------------------------------------------------------------------------------------------


def test_what_answers_got_by_its_name() -> None:
    one = {"rule_scores": {"grpo": [1.0, 0.0]}, "reward_scores": {"grpo": [0.123456, -1.0]}}
    assert measured(one, "grpo", {"number": {}}) == {"number": [1.0, 0.0], "reward model": [0.12346, -1.0]}
    assert measured({"rule_scores": {"grpo": [2.5]}}, "grpo", {"number": {}, "length": {"most": 9}}) == {"rules": [2.5]}
    assert measured({"head_to_head": []}, "grpo", {}) == {}


@pytest.mark.slow
def test_a_whole_one(work: Path) -> None:
    raw = yaml.safe_load(RECIPE)
    raw["stages"] = {"reward": {"data": "pairs.jsonl", "lora": {"rank": 2}}}
    raw["bakeoff"]["evaluate"]["reward"] = "reward"
    Path("tasting.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    result = CliRunner().invoke(app, ["bakeoff", "tasting.yaml", "--rows", "rows.jsonl"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    rows = {row["method"]: row for row in read_rows(Path("rows.jsonl"))}
    assert list(rows) == ["base", "grpo", "remax"]
    assert (rows["base"]["steps"], rows["base"]["peak_gb"], rows["base"]["kl"]) == (0, None, [0.0] * 3)
    assert rows["grpo"]["steps"] == rows["remax"]["steps"] == 2
    assert rows["grpo"]["sampled"] == rows["remax"]["sampled"] == 12  # 2 x 2 x 3, and 2 x 2 x (2 + a greedy one)
    assert 0 < rows["grpo"]["sampled_tokens"] <= 48
    truths = {group.id: str(group.meta["truth"]) for group in read_groups("quickstart/sums_heldout").groups}
    for row in rows.values():
        assert list(row["measured"]) == ["number", "reward model"]
        assert len(row["measured"]["reward model"]) == len(row["prompts"]) == 3
        said = [sample["answer"] for sample in row["samples"]]
        assert row["measured"]["number"] == right(said, [truths[name] for name in row["prompts"]])
    assert "number: base has" in result.output
    page = Path("runs/tasting/bakeoff.md").read_text()
    assert "| number over base (95 %) |" in page
    assert "| reward model | base |" in page
    assert "judge" not in page
    assert "Every method that samples has sampled 12 answers" in page
    assert not Path("runs/tasting/frontier.svg").exists()


def right(answers: Sequence[str], truths: Sequence[str]) -> list[float]:
    """Whether the last number of an answer is the truth, without the rule."""
    found = ["".join(c if c.isdigit() else " " for c in answer).split() for answer in answers]
    return [float(bool(own) and own[-1] == truth) for own, truth in zip(found, truths, strict=True)]
