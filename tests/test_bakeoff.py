"""Bake-offs: what is understood and refused, what makes a row, and a whole one that is killed on the way."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file, save_file

from trimtab import registry
from trimtab.bakeoff import (
    Bakeoff,
    Contest,
    Identity,
    affordable,
    identify,
    left_out,
    load_bakeoff,
    read_rows,
    rows_of,
    run_bakeoff,
)
from trimtab.bakeoff.identity import PACKAGE, bare, deciding
from trimtab.bakeoff.rows import append
from trimtab.config import check_recipe, load_recipe
from trimtab.errors import ConfigError, DataError
from trimtab.model.source import resolve
from trimtab.registry import ADVANTAGES, Folder

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


def test_a_method_runs_only_the_stages_that_it_rests_on(work: Path) -> None:
    raw = yaml.safe_load(RECIPE)
    raw["stages"] |= {
        "early": {"stage": "sft", "data": "demonstrations.jsonl"},
        "reward": {"init": "early", "data": "preferences.jsonl"},
    }
    raw["bakeoff"]["methods"]["ppo"] = {"stage": "policy", "reward": "reward", "prompts": "prompts.jsonl"}
    Path("tasting.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    plan = load()
    assert list(plan.recipe("dpo", 0)["stages"]) == ["sft", "dpo", "evaluate-dpo"]
    assert list(plan.recipe("ppo", 0)["stages"]) == ["sft", "early", "reward", "ppo", "evaluate-ppo"]
    assert list(plan.recipe("sft", 0, evaluate=False)["stages"]) == ["sft"]


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
        ("bakeoff.seeds=[1, 2, 1]", "tasting.yaml: bakeoff.seeds: seed 1 stands twice"),
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


# --- what a row rests on ----------------------------------------------------------------------------------------------


def key(method: str, *overrides: str) -> str:
    return identify(load(*overrides), method).key


def test_a_key_is_the_same_wherever_and_with_whatever_seeds_and_other_methods(work: Path) -> None:
    mine = key("dpo")
    for other in (
        "bakeoff.seeds=[7, 8]",
        "output=elsewhere",
        "name=other",
        "checkpoint_seconds=5",
        "bakeoff.methods.orpo.lr=1",
        "bakeoff.methods.new={method: kto}",
        "bakeoff.methods.dpo.epochs=1.0",  # the default, written out
        "bakeoff.methods.dpo.heldout=null",
    ):
        assert key("dpo", other) == mine, other
    Path("moved.jsonl").write_bytes(Path("preferences.jsonl").read_bytes())
    assert key("dpo", "bakeoff.common.data=moved.jsonl") == mine
    for budget in ("minutes", "tokens"):  # no matter to the start, which is trained as its recipe says
        assert key("sft", f"bakeoff.{budget}=1") == key("sft")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("bakeoff.methods.dpo.beta=0.1", "stages.dpo.beta 0.2, not 0.1"),
        ("bakeoff.common.batch=2", "stages.dpo.batch 4, not 2"),
        ("bakeoff.common.lora.rank=2", "stages.dpo.lora.rank 16, not 2"),
        ("sft.epochs=2", "stages.sft.epochs 1.0, not 2.0"),
        ("model=smollm2-135m-instruct", "other contents of model"),
        ("bakeoff.minutes=1", "budget.minutes null, not 1.0"),
        ("bakeoff.tokens=1", "budget.tokens null, not 1"),
        ("bakeoff.evaluate.limit=3", "stages.evaluate-dpo.limit 2, not 3"),
        ("dtype=bfloat16", "dtype float32, not bfloat16"),
        ("bakeoff.methods.dpo.data=prompts.jsonl", "other contents of stages.dpo.data"),
        ("bakeoff.methods.dpo.data=preferences.jsonl@0:0.5", "other contents of stages.dpo.data"),
    ],
)
def test_another_setting_is_another_key_and_is_named(other: str, said: str, work: Path) -> None:
    assert key("dpo", other) != key("dpo")
    now = {"dpo": identify(load(other), "dpo")}
    assert left_out(now, [row(load(), "dpo", 0)], []) == {said: ["dpo 0"]}


@pytest.mark.parametrize("name", ["demonstrations", "preferences", "prompts"])
def test_other_data_is_another_key(name: str, work: Path) -> None:
    mine, start = key("dpo"), key("sft")
    path = Path(f"{name}.jsonl")
    path.write_text(path.read_text() + path.read_text().splitlines()[0].replace("tea", "toast") + "\n")
    assert key("dpo") != mine
    assert (key("sft") == start) is (name == "preferences")  # which the start does not read


def test_other_weights_in_the_same_folder_are_another_key(work: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(resolve("tiny").path, tmp_path / "mine"))
    before = key("dpo", f"model={folder}")
    assert key("dpo", f"model={folder}") == before
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    weights[name] = weights[name] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert key("dpo", f"model={folder}") != before


def test_code_without_what_says_nothing() -> None:
    source = '''"""Of the module."""
import x  # why

def f(a):
    """Of f.

    More of f.
    """
    # said
    text = """no # comment

    """
    return a + 1  # "not code"


class C(Error): """One line."""
'''
    assert bare(source).split("\n") == [
        "import x", "def f(a):", '    text = """no # comment', '    """', "    return a + 1",
        'class C(Error): """One line."""',
    ]  # fmt: skip
    assert bare(source.replace("Of f", "Another").replace("# said", "")) == bare(source)
    for old, new in (("a + 1", "a + 2"), ("no #", "yes #"), ("    return", "return")):
        assert bare(source.replace(old, new)) != bare(source)


def code(method: str) -> dict[str, str]:
    """The files that decide a method's rows, by their places in the package, and their bare text."""
    recipe = check_recipe(load().recipe(method, 0), "r")
    return {path.relative_to(PACKAGE).as_posix(): bare(path.read_text()) for path in deciding(recipe)}


def test_the_code_that_decides(work: Path) -> None:
    mine, other = set(code("dpo")), set(code("orpo"))
    assert mine ^ other == {"losses/preference/dpo.py", "losses/preference/orpo.py"}
    assert {"stages/preference.py", "stages/sft.py", "stages/evaluate.py", "stages/__init__.py"} <= mine
    assert {"seeds.py", "train/loop.py", "stages/_preference.py", "losses/preference/_shared.py"} <= mine
    assert {"model/sampler.py", "rewards/encoder_judge.py", "records/read.py", "tensors/tree.py"} <= mine
    assert not {"stages/reward.py", "stages/_online.py", "advantages/gae.py"} & mine  # another stage's
    assert not {"cli.py", "report/bakeoff.py", "bakeoff/run.py"} & mine
    assert set(code("sft")) < mine
    assert identify(load(), "dpo").code != identify(load(), "orpo").code


LOSS = """
def mine(chosen, rejected, *, beta: float = 0.1):
    return -beta * (chosen - rejected)
"""


def test_the_code_of_a_users_own_method_counts_wherever_it_lies(work: Path) -> None:
    def code_with(folder: str, source: str) -> tuple[str, str]:
        (work / folder / "preference").mkdir(parents=True, exist_ok=True)
        (work / folder / "preference" / "mine.py").write_text(source)
        plan = load("bakeoff.methods.new={method: mine}", f"plugins={folder}")
        load()  # a recipe without plugins is checked in between
        assert identify(plan, "dpo") == identify(load(), "dpo")
        return identify(plan, "new").key, identify(plan, "new").code

    found = code_with("own", LOSS)
    assert code_with("moved", LOSS + "# why\n") == found
    assert code_with("own", LOSS.replace("-beta", "beta"))[0] == found[0]
    assert code_with("own", LOSS.replace("-beta", "beta"))[1] != found[1]


def test_a_method_file_imports_no_other_so_none_but_the_named_count() -> None:
    folders = [value for value in vars(registry).values() if isinstance(value, Folder)]
    assert len(folders) >= 5
    for folder in folders:
        for path in (PACKAGE.parent / folder.package.replace(".", "/")).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                for name in [node.module] if isinstance(node, ast.ImportFrom) else []:
                    assert not str(name).startswith(f"{folder.package}.") or "._" in str(name), path


def test_a_registry_of_which_a_recipe_names_nothing_counts_whole() -> None:
    told = {"method": "grpo", "reward": "rm", "prompts": "quickstart/prompts"}
    stages = {"rm": {"stage": "reward", "data": "quickstart/preferences"}, "policy": told}
    recipe = check_recipe({"model": "tiny:0", "stages": stages}, "r")
    files = {path.relative_to(PACKAGE).as_posix() for path in deciding(recipe)}
    assert {f"advantages/{name}.py" for name in ADVANTAGES} <= files
    assert {"losses/policy/ppo.py", "losses/reward/bradley_terry.py", "stages/_rollout.py"} <= files
    assert "losses/reward/mse.py" not in files


# --- rows -------------------------------------------------------------------------------------------------------------


def row(plan: Bakeoff, method: str, seed: int, **facts: Any) -> dict[str, Any]:
    found = identify(plan, method)
    return {
        "method": method, "seed": seed, "key": found.key, "code": found.code, "asked": dict(found.asked), "pace": None,
        **facts,
    }  # fmt: skip


def write(path: Path, rows: Sequence[dict[str, Any]], rest: str = "") -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + rest)
    return path


def identities(plan: Bakeoff) -> dict[str, Identity]:
    return {method: identify(plan, method) for method in plan.entrants}


def test_rows_of_this_bakeoff_in_its_order(work: Path) -> None:
    plan, other = load("bakeoff.seeds=[1, 0]"), load("bakeoff.common.batch=2")
    first, last = row(plan, "dpo", 1, steps=1), row(plan, "dpo", 1, steps=2)
    rows = [row(plan, "orpo", 0), first, row(plan, "sft", 0), row(other, "dpo", 0), row(plan, "dpo", 5), last]
    mine = rows_of(identities(plan), (1, 0), rows)
    assert mine == [row(plan, "sft", 0), last, row(plan, "orpo", 0)]
    assert left_out(identities(plan), rows, mine) == {
        "stages.dpo.batch 2, not 4": ["dpo 0"],
        "of a seed that is not asked for": ["dpo 5"],
    }
    assert row(plan, "dpo", 5) in rows_of(identities(plan), None, rows)


def test_rows_of_other_code_are_counted_only_when_asked_for(work: Path) -> None:
    plan = load()
    old = [row(plan, "dpo", seed, code="old", revision="0.0.9") for seed in (0, 1)]
    new = row(plan, "dpo", 0)
    rows = [old[0], new, old[1]]
    assert rows_of(identities(plan), (0, 1), rows) == [new]
    assert left_out(identities(plan), rows, [new]) == {"made by other code (0.0.9)": ["dpo 0", "dpo 1"]}
    for some in (rows, [new, *old], [*old, new]):
        assert rows_of(identities(plan), (0, 1), some, any_code=True) == [new, old[1]]
    assert left_out(identities(plan), rows, [new, old[1]]) == {"made by other code (0.0.9)": ["dpo 0"]}


def test_half_a_last_line_is_no_row(work: Path) -> None:
    plan = load()
    rows = [row(plan, "sft", 0), row(plan, "dpo", 0, text="a\u2028b")]
    half = json.dumps(row(plan, "orpo", 0))
    path = work / "rows.jsonl"
    for rest in ("", half[:-1], half[:5], "{"):
        assert read_rows(write(path, rows, rest)) == rows, rest
    assert read_rows(write(path, rows, half)) == [*rows, row(plan, "orpo", 0)]  # whole, but for the end of the line
    assert read_rows(work / "nothing.jsonl") == []


def test_lines_that_stand_there_are_kept_to_the_byte(work: Path) -> None:
    plan = load()
    line = json.dumps(row(plan, "sft", 0, number=1.50), separators=(",", ":"), ensure_ascii=False)
    path = work / "rows.jsonl"
    path.write_text(f'{line}\n{{"method": "dpo", "se')
    append(path, row(plan, "dpo", 0))
    assert path.read_text() == f"{line}\n{json.dumps(row(plan, 'dpo', 0))}\n"
    append(work / "new" / "rows.jsonl", row(plan, "dpo", 0))
    assert read_rows(work / "new" / "rows.jsonl") == [row(plan, "dpo", 0)]


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"prompt": "a"}', '{"method": "dpo", "seed": 0}', ""])
def test_other_lines_are_named(line: str, work: Path) -> None:
    plan = load()
    path = work / "rows.jsonl"
    path.write_text(f"{json.dumps(row(plan, 'sft', 0))}\n{line}\n{json.dumps(row(plan, 'dpo', 0))}\n")
    with pytest.raises(DataError, match=re.escape(f"{path}, line 2: not a row of a bake-off")):
        read_rows(path)


def test_what_stands_there_is_not_run_again(work: Path) -> None:
    plan = load()
    path = write(work / "rows.jsonl", [row(plan, m, s, code="old") for m in plan.entrants for s in plan.contest.seeds])
    assert list(run_bakeoff(plan, path, any_code=True)) == []
    assert not Path("runs").exists()


def test_steps_that_fit_into_a_budget() -> None:
    seconds = [9.0, 9.0, 1.0, 5.0, 2.0]  # the first two are no measure; of the others the median is 2
    log = [{"train/seconds": s, "train/tokens": t} for s, t in zip(seconds, [1, 1, 100, 200, 300], strict=True)]
    told: dict[str, Any] = {"start": "sft", "methods": {}, "evaluate": {}}
    assert affordable(Contest(**told, minutes=1), log) == (30, 2.0)
    assert affordable(Contest(**told, minutes=0.001), log) == (1, 2.0)
    assert affordable(Contest(**told, tokens=1100), log) == (6, 200.0)  # 5.5
    with pytest.raises(ConfigError, match="does not count its tokens; give minutes"):
        affordable(Contest(**told, tokens=1), [{"train/seconds": 1.0}] * 5)


def test_a_warm_up_is_paid_from_the_budget_and_is_no_measure_of_a_step() -> None:
    log = [{"train/seconds": s} for s in [4.0, 3.0, 3.0, 8.0, 5.0, 5.0]]  # three rounds of the critic alone
    told: dict[str, Any] = {"start": "sft", "methods": {}, "evaluate": {}}
    assert affordable(Contest(**told, minutes=1), log, before=3) == (10, 5.0)  # (60 - 10) / 5
    assert affordable(Contest(**told, minutes=0.1), log, before=3) == (1, 5.0)  # the warm-up alone is too long
    assert affordable(Contest(**told, minutes=1), log[2:], before=1) == (11, 5.0)  # (60 - 3) / 5; 8 is the second step


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


def kill_at(place: str, *arguments: str) -> None:
    """Start, and kill everything with -9 as soon as a file is there."""
    process = start(*arguments)
    while process.poll() is None and not any(Path().glob(place)):
        time.sleep(0.02)
    assert process.poll() is None, f"it ended before there was a file {place}"
    os.killpg(process.pid, signal.SIGKILL)
    end(process, -signal.SIGKILL)


def without_times(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what two runs may differ in: times, memory, and what was said on the way."""
    return [{k: v for k, v in one.items() if k not in ("date", "seconds", "peak_gb", "notes")} for one in found]


@pytest.mark.slow
def test_killed_and_gone_on_with(work: Path) -> None:
    rows, budget = Path("runs/tasting/rows.jsonl"), "bakeoff.tokens=2000"
    run = "runs/tasting-*-0"
    kill_at(f"{run}/.work/dpo-*/metrics.jsonl", budget)
    assert [r["method"] for r in read_rows(rows)] == ["sft"]
    kill_at(f"{run}/artifacts/evaluate-orpo-*/manifest.json", budget)  # done, but for its row
    with rows.open("a") as file:
        file.write('{"method": "orpo", "se')
    before = read_rows(rows)
    assert [r["method"] for r in before] == ["sft", "dpo"]

    output = end(start(budget))
    found = read_rows(rows)
    assert found[:2] == before
    assert [(r["method"], r["seed"]) for r in found] == [(m, s) for s in (0, 1) for m in ("sft", "dpo", "orpo")]
    assert output.count("seed 0:") == 1  # what stood there was not run again
    for method in ("dpo", "orpo"):
        mine = [r for r in found if r["method"] == method]
        assert mine[0]["steps"] == mine[1]["steps"] == mine[0]["pace"]["steps"] > 5
        assert mine[0]["pace"] == mine[1]["pace"]
        assert mine[0]["trained_tokens"] == pytest.approx(2000, rel=0.25)
        assert mine[0]["kl"] != mine[1]["kl"]
        assert not any(r["scores"] for r in mine)  # no judge
        assert len(mine[0]["samples"]) == len(mine[0]["prompts"]) == 2
        (recipe,) = Path().glob(f"{run}/{method}.yaml")
        assert load_recipe(recipe).seed == 0
    assert all(r["kl"] == [0.0, 0.0] for r in found if r["method"] == "sft")
    for seed in (0, 1):
        assert len({r["start"] for r in found if r["seed"] == seed}) == 1
    assert "No method was judged beside sft yet." in output
    assert Path("runs/tasting/bakeoff.svg").exists()

    page = Path("runs/tasting/bakeoff.md").read_text()
    end(start(budget, "--table"))
    assert Path("runs/tasting/bakeoff.md").read_text() == page
    assert read_rows(rows) == found

    end(start(budget, "bakeoff.seeds=[0]", "output=clean"))  # never killed: the same rows
    assert without_times(read_rows(Path("clean/tasting/rows.jsonl"))) == without_times(found[:3])
