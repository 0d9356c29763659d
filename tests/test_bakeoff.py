"""Bake-offs: what is understood and refused, what makes a row, and a whole one that is killed on the way."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.bakeoff import Bakeoff, Contest, affordable, load_bakeoff, read_rows, rows_of, run_bakeoff
from trimtab.config import load_recipe
from trimtab.errors import ConfigError, DataError

RECIPE = """
model: tiny
dtype: float32
output: runs

stages:
  sft: {data: demonstrations.jsonl, epochs: 1, batch: 4, lora: {rank: 2}}

bakeoff:
  start: sft
  seeds: [0, 1]
  common: {stage: preference, data: preferences.jsonl, batch: 4}
  methods:
    dpo: {method: dpo, beta: 0.2}
    orpo: {method: orpo, lr: 1e-4}
  evaluate: {prompts: prompts.jsonl, limit: 2, sampling: {max_tokens: 4}}
"""
QUESTIONS = ("What is tea?", "Why?", "Who was it?", "Where is the tower?", "When?", "How tall is the tree?")


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the recipe and its data."""
    ask = [[{"role": "user", "content": question}] for question in QUESTIONS]
    pair = {"verdicts": [{"kind": "pair", "better": 0, "worse": 1}]}
    rows = {
        "demonstrations": [{"id": f"d{i}", "prompt": p, "answers": [{"text": "So it is."}]} for i, p in enumerate(ask)],
        "preferences": [
            {"id": f"p{i}", "prompt": p, "answers": [{"text": "Yes."}, {"text": "No" * (i + 1)}], **pair}
            for i, p in enumerate(ask)
        ],
        "prompts": [{"id": f"q{i}", "prompt": p, "answers": []} for i, p in enumerate(ask)],
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "tasting.yaml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(*overrides: str) -> Bakeoff:
    return load_bakeoff(Path("tasting.yaml"), overrides)


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(*overrides)
    text = str(error.value)
    assert "\n" not in text
    return text


# --- what is understood -----------------------------------------------------------------------------------------------


def test_a_bakeoff_from_a_file(work: Path) -> None:
    plan = load()
    assert plan.name == "tasting"
    assert plan.entrants == ("sft", "dpo", "orpo")
    assert plan.contest.seeds == (0, 1)
    recipe = plan.recipe("dpo", 1, steps=3)
    assert (recipe["name"], recipe["seed"], recipe["model"]) == ("tasting-1", 1, "tiny")
    assert list(recipe["stages"]) == ["sft", "dpo", "evaluate-dpo"]
    assert recipe["stages"]["dpo"] == {
        "init": "sft", "stage": "preference", "data": "preferences.jsonl", "batch": 4, "method": "dpo", "beta": 0.2,
        "steps": 3,
    }  # fmt: skip
    assert recipe["stages"]["evaluate-dpo"] == {
        "stage": "evaluate", "models": ["dpo"], "start": "sft", "prompts": "prompts.jsonl", "limit": 2,
        "sampling": {"max_tokens": 4},
    }  # fmt: skip
    assert list(plan.recipe("sft", 0)["stages"]) == ["sft", "evaluate-sft"]


def test_the_recipe_it_leaves_is_one_that_runs_by_itself(work: Path) -> None:
    path = work / "alone.yaml"
    path.write_text(yaml.safe_dump(load().recipe("orpo", 0, steps=2), sort_keys=False))
    stages = load_recipe(path).stages
    assert stages["orpo"].settings["steps"] == 2
    assert stages["orpo"].settings["lr"] == 1e-4


def test_a_method_with_a_stage_of_its_own_takes_nothing_from_common(work: Path) -> None:
    plan = load("bakeoff.methods.more={stage: sft, data: demonstrations.jsonl}")
    assert plan.contest.settings("more") == {"init": "sft", "stage": "sft", "data": "demonstrations.jsonl"}


def test_overrides_inside_and_outside(work: Path) -> None:
    plan = load(
        "bakeoff.seeds=[4]", "sft.epochs=3", "stages.sft.lora.rank=4", "bakeoff.methods.dpo.beta=0.3", "dtype=bfloat16",
        "bakeoff.common.batch=2", "bakeoff.evaluate.sampling.max_tokens=9", "name=other", "bakeoff.tokens=1000",
    )  # fmt: skip
    assert (plan.name, plan.contest.seeds, plan.contest.tokens) == ("other", (4,), 1000)
    stages = plan.recipe("dpo", 4)["stages"]
    assert stages["sft"] == {"data": "demonstrations.jsonl", "epochs": 3, "batch": 4, "lora": {"rank": 4}}
    assert (stages["dpo"]["beta"], stages["dpo"]["batch"]) == (0.3, 2)
    assert stages["evaluate-dpo"]["sampling"] == {"max_tokens": 9}
    assert plan.recipe("dpo", 4)["dtype"] == "bfloat16"
    assert load("bakeoff.tokens=1000", "bakeoff.tokens=null").contest.limited is False


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("bakeoff.sedes=[0]", "tasting.yaml: bakeoff: no option 'sedes'; did you mean 'seeds'?"),
        ("bakeoff.seeds=[]", "tasting.yaml: bakeoff: seeds=[]: tuple should have at least 1 item"),
        ("bakeoff.seeds=[a]", "tasting.yaml: bakeoff: seeds.0='a': input should be a valid integer"),
        ("bakeoff.methods={}", "tasting.yaml: bakeoff: methods={}: dictionary should have at least 1 item"),
        ("bakeoff.methods.dpo=null", "tasting.yaml: bakeoff: methods.dpo=None: input should be a valid dictionary"),
        ("bakeoff.minutes=0", "tasting.yaml: bakeoff: minutes=0: input should be greater than 0"),
        ("bakeoff.start=stf", "tasting.yaml: bakeoff.start: no stage 'stf' in this recipe; did you mean 'sft'?"),
        (
            "bakeoff.methods.dpoo.beta=1",
            "override 'bakeoff.methods.dpoo.beta=1': no method 'dpoo'; did you mean 'dpo'?",
        ),
        ("bakeoff.methods.dpo.bta=1", "tasting.yaml: bakeoff.methods.dpo: no option 'bta'; did you mean 'beta'?"),
        ("bakeoff.methods.dpo.method=dpoo", "tasting.yaml: bakeoff.methods.dpo.method: no preference loss 'dpoo'; did"),
        ("bakeoff.methods.orpo.beta=1", "tasting.yaml: bakeoff.methods.orpo: no option 'beta'; "),
        ("bakeoff.common={}", "tasting.yaml: bakeoff.methods.dpo: no stage 'dpo'; known: "),
        ("bakeoff.common={stage: sft}", "tasting.yaml: bakeoff.methods.dpo: no option 'method'; "),
        ("bakeoff.methods.a/b={}", "tasting.yaml: bakeoff.methods.a/b: a stage's name"),
        ("bakeoff.methods.base={}", "tasting.yaml: bakeoff.methods.base: a stage's name"),
        ("bakeoff.methods.sft={}", "tasting.yaml: bakeoff.methods: two stages would be called 'sft'; rename one"),
        ("bakeoff.methods.probe-dpo={}", "tasting.yaml: bakeoff.methods: two stages would be called 'probe-dpo'; re"),
        ("bakeoff.methods.evaluate-sft={}", "tasting.yaml: bakeoff.methods: two stages would be called 'evaluate-sft'"),
        ("bakeoff.evaluate.models=[base]", "tasting.yaml: bakeoff.evaluate.models: the bake-off itself says that"),
        ("bakeoff.evaluate.limt=3", "tasting.yaml: bakeoff.evaluate: no option 'limt'; did you mean 'limit'?"),
        ("seed=3", "tasting.yaml: seed would change nothing: bakeoff.seeds are what runs"),
        ("sedd=3", "override 'sedd=3': no key 'sedd'; did you mean 'seed'?"),
        ("stf.epochs=3", "override 'stf.epochs=3': no stage 'stf' in this recipe; did you mean 'sft'?"),
        ("sft.epocs=3", "tasting.yaml: stages.sft: no option 'epocs'; did you mean 'epochs'?"),
        ("bakeoff=3", "override 'bakeoff=3': no key 'bakeoff'"),
        ("bakeoff.seeds.first=3", "override 'bakeoff.seeds.first=3': 'seeds' is a value, it has no keys below it"),
        ("bakeoff.seeds", "'bakeoff.seeds' is not of the form key=value"),
    ],
)
def test_settings_that_do_not_fit(override: str, sentence: str, work: Path) -> None:
    assert refused(override).startswith(sentence)


def test_one_budget_and_what_it_needs(work: Path) -> None:
    assert "one budget, minutes or tokens, not both" in refused("bakeoff.minutes=1", "bakeoff.tokens=5")
    for option in ("steps=3", "epochs=2"):
        said = refused("bakeoff.minutes=1", f"bakeoff.methods.dpo.{option}")
        assert said.startswith(f"tasting.yaml: bakeoff.methods.dpo.{option[:-2]}: the budget says how long")
        load(f"bakeoff.methods.dpo.{option}")  # without a budget it may
    ppo = "{stage: policy, reward: sft, prompts: prompts.jsonl, epochs: 2}"
    load("bakeoff.minutes=1", f"bakeoff.methods.ppo={ppo}")  # passes over a rollout, not over the data
    assert "bakeoff.methods.ppo.steps: the budget" in refused(
        "bakeoff.minutes=1", f"bakeoff.methods.ppo={ppo}", "bakeoff.methods.ppo.steps=3"
    )
    said = refused("bakeoff.minutes=1", "bakeoff.methods.judge={stage: reward, data: preferences.jsonl}")
    assert said.startswith("tasting.yaml: bakeoff.methods.judge: stage 'reward' has no option 'steps', by which")


@pytest.mark.parametrize("missing", ["start", "methods", "evaluate"])
def test_what_a_bakeoff_needs(missing: str, work: Path) -> None:
    raw = yaml.safe_load(RECIPE)
    del raw["bakeoff"][missing]
    Path("tasting.yaml").write_text(yaml.safe_dump(raw))
    assert refused() == f"tasting.yaml: bakeoff: option {missing!r} is missing"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages: {sft: {data: d}}", "tasting.yaml: no bake-off in it: the key 'bakeoff' says"),
        ("stages: {sft: {data: d}}\nbakeoff:", "tasting.yaml: no bake-off in it"),
        ("stages: {sft: {data: d}}\nbakeoff: [dpo]", "tasting.yaml: no bake-off in it"),
        ("bakeoff: {start: sft}", "tasting.yaml: 'stages' is missing or empty"),
        ("- bakeoff", "tasting.yaml: a recipe is a mapping"),
        ("stages: [", "tasting.yaml, line 1: not valid YAML"),
    ],
)
def test_files_that_hold_no_bakeoff(text: str, sentence: str, work: Path) -> None:
    Path("tasting.yaml").write_text(text)
    assert refused().startswith(sentence)


def test_run_says_which_command_it_is(work: Path) -> None:
    for overrides in ((), ("bakeoff.seeds=[0]",)):
        with pytest.raises(
            ConfigError, match=r"^tasting\.yaml: this recipe holds a bake-off: run it with 'trimtab bake"
        ):
            load_recipe(Path("tasting.yaml"), overrides)


# --- keys and rows ----------------------------------------------------------------------------------------------------


def test_a_key_is_the_same_wherever_and_with_whatever_seeds(work: Path) -> None:
    key = load().key("dpo")
    for other in (
        "bakeoff.seeds=[7, 8]",
        "output=elsewhere",
        "name=other",
        "checkpoint_seconds=5",
        "bakeoff.methods.orpo.lr=1",
    ):
        assert load(other).key("dpo") == key, other
    assert load("bakeoff.methods.new={method: kto}").key("dpo") == key


@pytest.mark.parametrize(
    "other",
    [
        "bakeoff.methods.dpo.beta=0.1", "bakeoff.common.batch=2", "sft.epochs=2", "model=smollm2-135m-instruct",
        "bakeoff.minutes=1", "bakeoff.tokens=1", "bakeoff.evaluate.limit=3", "dtype=bfloat16",
    ],
)  # fmt: skip
def test_another_setting_is_another_key(other: str, work: Path) -> None:
    assert load(other).key("dpo") != load().key("dpo")


@pytest.mark.parametrize("name", ["demonstrations", "preferences", "prompts"])
def test_other_data_is_another_key(name: str, work: Path) -> None:
    key = load().key("dpo")
    path = Path(f"{name}.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[0].replace("tea", "toast") + "\n")
    assert load().key("dpo") != key
    if name == "preferences":
        assert load().key("sft") != load().key("dpo")


def row(plan: Bakeoff, method: str, seed: int, **facts: Any) -> dict[str, Any]:
    return {"method": method, "seed": seed, "key": plan.key(method), **facts}


def write(path: Path, rows: Sequence[dict[str, Any]], rest: str = "") -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + rest)
    return path


def test_rows_of_this_bakeoff_in_its_order(work: Path) -> None:
    plan, other = load("bakeoff.seeds=[1, 0]"), load("bakeoff.common.batch=2")
    first, last = row(plan, "dpo", 1, steps=1), row(plan, "dpo", 1, steps=2)
    rows = [row(plan, "orpo", 0), first, row(plan, "sft", 0), row(other, "dpo", 0), row(plan, "dpo", 5), last]
    assert rows_of(plan, rows) == [row(plan, "sft", 0), last, row(plan, "orpo", 0)]


def test_half_a_last_line_is_no_row(work: Path) -> None:
    plan = load()
    rows = [row(plan, "sft", 0), row(plan, "dpo", 0, text="a\u2028b")]
    half = json.dumps(row(plan, "orpo", 0))
    path = work / "rows.jsonl"
    for rest in ("", half[:-1], half[:5], "{"):
        assert read_rows(write(path, rows, rest)) == rows, rest
    assert read_rows(write(path, rows, half)) == [*rows, row(plan, "orpo", 0)]  # whole, but for the end of the line
    assert read_rows(work / "nothing.jsonl") == []


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"prompt": "a"}', '{"method": "dpo", "seed": 0}', ""])
def test_other_lines_are_named(line: str, work: Path) -> None:
    plan = load()
    path = work / "rows.jsonl"
    path.write_text(f"{json.dumps(row(plan, 'sft', 0))}\n{line}\n{json.dumps(row(plan, 'dpo', 0))}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2: not a row of a bake-off")):
        read_rows(path)


def test_what_stands_there_is_not_run_again(work: Path) -> None:
    plan = load()
    path = write(work / "rows.jsonl", [row(plan, m, s) for m in plan.entrants for s in plan.contest.seeds])
    assert list(run_bakeoff(plan, path)) == []
    assert not Path("runs").exists()


def test_steps_that_fit_into_a_budget() -> None:
    seconds = [9.0, 9.0, 1.0, 5.0, 2.0]  # the first two are no measure; of the others the median is 2
    log = [{"train/seconds": s, "train/tokens": t} for s, t in zip(seconds, [1, 1, 100, 200, 300], strict=True)]
    told: dict[str, Any] = {"start": "sft", "methods": {}, "evaluate": {}}
    assert affordable(Contest(**told, minutes=1), log) == 30
    assert affordable(Contest(**told, minutes=0.001), log) == 1
    assert affordable(Contest(**told, tokens=1100), log) == 6  # of 200 tokens: 5.5
    with pytest.raises(ConfigError, match="does not count its tokens; give minutes"):
        affordable(Contest(**told, tokens=1), [{"train/seconds": 1.0}] * 5)


# --- a whole one ------------------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.Popen[str]:
    """``trimtab bakeoff`` in a session of its own, so that a kill reaches what it started too."""
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", "bakeoff", "tasting.yaml", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )  # fmt: skip


def end(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=1200)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output
    assert "Traceback" not in output
    return output


@pytest.mark.slow
def test_killed_and_gone_on_with(work: Path) -> None:
    rows, settings = Path("runs/tasting/rows.jsonl"), ("bakeoff.tokens=2000",)
    process = start(*settings)
    log = Path("runs/tasting-0/.work")
    while process.poll() is None and not (len(read_rows(rows)) == 1 and list(log.glob("dpo-*/metrics.jsonl"))):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert end(process, -signal.SIGKILL) is not None
    (first,) = read_rows(rows)
    assert (first["method"], first["seed"]) == ("sft", 0)
    with rows.open("a") as file:
        file.write('{"method": "dpo", "se')

    output = end(start(*settings))
    found = read_rows(rows)
    assert found[0] == first
    assert [(r["method"], r["seed"]) for r in found] == [(m, s) for s in (0, 1) for m in ("sft", "dpo", "orpo")]
    assert output.count("seed 0:") == 2  # what stood there was not run again
    for method in ("dpo", "orpo"):
        mine = [r for r in found if r["method"] == method]
        assert mine[0]["steps"] == mine[1]["steps"] == mine[0]["settings"]["steps"] > 5
        assert mine[0]["trained_tokens"] == pytest.approx(2000, rel=0.25)
        assert mine[0]["kl"] != mine[1]["kl"]
        assert not any(r["scores"] for r in mine)  # no judge
        assert len(mine[0]["samples"]) == len(mine[0]["prompts"]) == 2
        assert load_recipe(Path(f"runs/tasting-0/{method}.yaml")).seed == 0
    assert all(r["kl"] == [0.0, 0.0] for r in found if r["method"] == "sft")
    assert "No method was judged beside sft yet." in output
    assert not Path("runs/tasting/bakeoff.svg").exists()

    again = end(start(*settings, "--table"))
    assert Path("runs/tasting/bakeoff.md").read_text() in output
    assert Path("runs/tasting/bakeoff.md").read_text() in again
    assert read_rows(rows) == found
