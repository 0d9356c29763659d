"""Several methods from one start, on the same data and budget, over several seeds: one row a (method, seed), one table.

    stages:                         # up to the start, as in any recipe
      sft: {data: mine.jsonl}
    bakeoff:
      start: sft
      seeds: [0, 1, 2]
      common: {stage: preference, data: pairs.jsonl}       # for every method that names no stage of its own
      methods: {dpo: {method: dpo}, more: {stage: sft, data: mine.jsonl}}
      evaluate: {prompts: heldout.jsonl, judge: judge.jsonl}
      minutes: 5                    # each method's steps are chosen so that training takes as long (or: tokens)

Every method runs in a process of its own, so that its peak memory is its own, and leaves the very recipe that was run.
Rows are appended to a file as they are finished; what stands there is not run again.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import yaml
from pydantic import Field

from trimtab import __version__
from trimtab.artifacts import digest_of, revision
from trimtab.config import (
    DataRef,
    check_options,
    check_recipe,
    check_stage,
    override_recipe,
    put,
    read_recipe,
    read_setting,
    references,
)
from trimtab.errors import ConfigError, DataError, UserError, did_you_mean
from trimtab.records.read import source_digest
from trimtab.registry import STAGES

PROBE_STEPS = 5
PROBE_WARMUP = 2  # the first steps of a process are slower
NUM_SAMPLES = 5
OURS = frozenset({"stage", "models", "start"})  # options of the evaluation that the bake-off itself fills in
Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The key ``bakeoff`` of a recipe."""

    start: str
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    evaluate: dict[str, Any]
    common: dict[str, Any] = field(default_factory=dict)
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    minutes: Annotated[float, Field(gt=0)] | None = None
    tokens: Annotated[int, Field(gt=0)] | None = None

    @property
    def limited(self) -> bool:
        """Whether a budget decides how many steps a method does."""
        return self.minutes is not None or self.tokens is not None

    def settings(self, method: str) -> dict[str, Any]:
        """What a method's stage is told, but for the number of steps; another stage has no use for ``common``."""
        own = self.methods[method]
        return {"init": self.start, **({} if "stage" in own else self.common), **own}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bakeoff:
    """A checked bake-off: the recipe's own part, and what is compared."""

    name: str
    raw: Mapping[str, Any]  # the recipe without ``bakeoff``
    contest: Contest
    where: str

    @property
    def output(self) -> Path:
        """Where runs go."""
        return Path(str(self.raw.get("output", "runs")))

    @property
    def entrants(self) -> tuple[str, ...]:
        """The start, which is not trained further, and the methods."""
        return (self.contest.start, *self.contest.methods)

    def recipe(self, method: str, seed: int, *, steps: int | None = None, evaluate: bool = True) -> dict[str, Any]:
        """The recipe, as parsed YAML, that trains one method from the start with one seed and evaluates it."""
        stages = dict(self.raw["stages"])
        if method != self.contest.start:
            stages[method] = {**self.contest.settings(method), **({} if steps is None else {"steps": steps})}
        if evaluate:
            stages[f"evaluate-{method}"] = self.evaluation(method)
        return {**self.raw, "name": f"{self.name}-{seed}", "seed": seed, "stages": stages}

    def evaluation(self, method: str) -> dict[str, Any]:
        """What the stage is told that evaluates a method."""
        return {"stage": "evaluate", "models": [method], "start": self.contest.start, **self.contest.evaluate}

    def key(self, method: str) -> str:
        """The identity of what a row tells: its recipe whatever the seed and the folder, the data, budget, version."""
        recipe = self.recipe(method, 0)
        stages = check_recipe(recipe, self.where).stages.values()
        data = sorted({word for stage in stages for _, kind, word in references(stage) if kind is DataRef})
        told = {key: value for key, value in recipe.items() if key not in ("name", "output", "checkpoint_seconds")}
        budget = [self.contest.minutes, self.contest.tokens]
        return digest_of([told, budget, [source_digest(word) for word in data], __version__])


def load_bakeoff(path: Path, overrides: Sequence[str] = ()) -> Bakeoff:
    """Read a recipe with a ``bakeoff``, apply overrides (``sft.epochs=1``, ``bakeoff.common.lr=1e-5``), check it."""
    raw = read_recipe(path)
    given = raw.pop("bakeoff", None)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: no bake-off in it: the key 'bakeoff' says which methods to compare")
    inside = [override for override in overrides if override.startswith("bakeoff.")]
    raw = override_recipe(raw, str(path), [override for override in overrides if override not in inside])
    for override in inside:
        _apply(given, override)
    settings = check_options(Contest, given, f"{path}: bakeoff")
    for needed in ("start", "methods", "evaluate"):
        if needed not in settings:
            raise ConfigError(f"{path}: bakeoff: option {needed!r} is missing")
    name = str(raw.pop("name", path.stem))
    plan = Bakeoff(name=name, raw=raw, contest=Contest(**settings), where=str(path))
    _check(plan)
    return plan


def _apply(given: dict[str, Any], override: str) -> None:
    """Apply ``bakeoff.KEY=value``; below ``methods`` a new method may be given whole, but not by one of its options."""
    key, value = read_setting(override)
    parts = key.split(".")[1:]
    methods = given.get("methods")
    if parts[0] == "methods" and len(parts) > 2 and isinstance(methods, dict) and parts[1] not in methods:
        raise ConfigError(f"override {override!r}: no method {parts[1]!r}{did_you_mean(parts[1], methods)}")
    put(given, parts, value, override)


def _check(plan: Bakeoff) -> None:
    """Refuse what could not be run, or would not mean what it says, before anything has run."""
    contest, where, stages = plan.contest, f"{plan.where}: bakeoff", plan.raw["stages"]
    if "seed" in plan.raw:
        raise ConfigError(f"{plan.where}: seed would change nothing: bakeoff.seeds are what runs")
    check_recipe(plan.raw, plan.where)
    if contest.start not in stages:
        raise ConfigError(
            f"{where}.start: no stage {contest.start!r} in this recipe{did_you_mean(contest.start, stages)}"
        )
    if contest.minutes is not None and contest.tokens is not None:
        raise ConfigError(f"{where}: one budget, minutes or tokens, not both")
    names = Counter([*stages, *contest.methods])
    names.update(f"{work}-{name}" for work in ("evaluate", "probe") for name in plan.entrants)
    for name, count in names.items():
        if count > 1:
            raise ConfigError(f"{where}.methods: two stages would be called {name!r}; rename one")
    for key in OURS & contest.evaluate.keys():
        raise ConfigError(f"{where}.evaluate.{key}: the bake-off itself says that")
    for method in contest.methods:
        _check_method(contest, method, f"{where}.methods.{method}")
    check_stage("evaluate", plan.evaluation(contest.start), f"{where}.evaluate")
    for method in plan.entrants:
        check_recipe(plan.recipe(method, contest.seeds[0]), plan.where)  # what refers to what


def _check_method(contest: Contest, method: str, where: str) -> None:
    settings = contest.settings(method)
    stage = check_stage(method, settings, where).stage
    if not contest.limited:
        return
    known = STAGES[stage].options
    if "steps" not in known:
        raise ConfigError(f"{where}: stage {stage!r} has no option 'steps', by which a budget is kept")
    clashing = {"steps", "epochs"} if known["steps"].default is None else {"steps"}  # PPO's epochs are something else
    for key in clashing & settings.keys():
        raise ConfigError(f"{where}.{key}: the budget says how long; leave out the one or the other")


def run_bakeoff(plan: Bakeoff, rows: Path) -> Iterator[Row]:
    """Run what is missing, seed by seed, and yield each new row once it stands in the file."""
    keys = {method: plan.key(method) for method in plan.entrants}
    for seed in plan.contest.seeds:
        for method, key in keys.items():
            done = [row for row in read_rows(rows) if row["key"] == key]
            if any(row["seed"] == seed for row in done):
                continue
            steps = None
            if plan.contest.limited and method != plan.contest.start:  # as many for every seed
                steps = done[0]["settings"]["steps"] if done else _affordable(plan, method, seed)
            recipe = plan.recipe(method, seed, steps=steps)
            _run(plan, recipe, method)
            row = {"method": method, "seed": seed, "key": key, **_facts(plan, recipe, method)}
            _append(rows, row)
            yield row


def read_rows(path: Path) -> list[Row]:
    """All rows of a file; none when there is no such file. Half a last line is no row: somebody was killed."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines):
                break
            row = None
        if not isinstance(row, dict) or not {"method", "seed", "key"} <= row.keys():
            raise DataError(f"{path}, line {number}: not a row of a bake-off")
        rows.append(row)
    return rows


def rows_of(plan: Bakeoff, rows: Sequence[Row]) -> list[Row]:
    """The rows of this very bake-off: methods in the recipe's order, each one's by seed; of two alike the last."""
    place = {plan.key(method): place for place, method in enumerate(plan.entrants)}
    seeds = plan.contest.seeds
    mine = {(place[row["key"]], row["seed"]): row for row in rows if row["key"] in place and row["seed"] in seeds}
    return [mine[which] for which in sorted(mine)]


def affordable(contest: Contest, log: Sequence[Row]) -> int:
    """Steps that fit into the budget, at least one, by the log of a few steps; the first ones are left out."""
    log = log[PROBE_WARMUP:]
    if contest.minutes is not None:
        return max(1, round(contest.minutes * 60 / median(float(row["train/seconds"]) for row in log)))
    assert contest.tokens is not None
    if "train/tokens" not in log[0]:
        raise ConfigError("bakeoff.tokens: a stage among the methods does not count its tokens; give minutes")
    return max(1, round(contest.tokens * len(log) / sum(float(row["train/tokens"]) for row in log)))


def _append(path: Path, row: Row) -> None:
    """Add a row at once, so that a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(one) + "\n" for one in [*read_rows(path), row]), encoding="utf-8")
    partial.replace(path)


def _folder(plan: Bakeoff, recipe: Mapping[str, Any]) -> Path:
    return plan.output / str(recipe["name"])


def _run(plan: Bakeoff, recipe: Mapping[str, Any], name: str) -> None:
    """Run a recipe in a process of its own; the recipe stays in the run folder as ``name.yaml``."""
    folder = _folder(plan, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
    code = subprocess.run([sys.executable, "-m", "trimtab", "run", str(path)], check=False).returncode
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"stopped with exit code {code}"
        raise UserError(f"'trimtab run {path}' {how}; once that is put right, the same bake-off goes on")


def _affordable(plan: Bakeoff, method: str, seed: int) -> int:
    """Steps that fit into the budget, from a few steps done for the purpose."""
    recipe = plan.recipe(method, seed, steps=PROBE_STEPS, evaluate=False)
    stages, name = recipe["stages"], f"probe-{method}"
    stages[name] = {"stage": method} | stages.pop(method)
    stages[name].pop("heldout", None)  # only time is measured
    _run(plan, recipe, name)
    return affordable(plan.contest, _log(_folder(plan, recipe) / name))


def _log(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _facts(plan: Bakeoff, recipe: Mapping[str, Any], method: str) -> Row:
    """What a finished run says of its method."""
    folder = _folder(plan, recipe)
    manifest = json.loads((folder / method / "manifest.json").read_text())
    evaluation = json.loads((folder / f"evaluate-{method}" / "evaluation.json").read_text())
    log = _log(folder / method)
    prompts = evaluation["prompts"]
    said = [prompt["answers"][method] for prompt in prompts]
    judge = evaluation.get("judge", {})
    sampled = range(0, len(prompts), max(1, len(prompts) // NUM_SAMPLES))[:NUM_SAMPLES]
    return {
        "revision": revision(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {platform.python_implementation()} {platform.python_version()}",
        "settings": recipe["stages"][method],
        "steps": len(log),
        "seconds": round(sum(row["train/seconds"] for row in log), 1),
        "stage_seconds": manifest["seconds"],
        "peak_gb": manifest["peak_rss_gb"],
        "trained_tokens": round(sum(row.get("train/tokens", 0) for row in log)),
        "metrics": manifest["metrics"],
        "notes": manifest["notes"],
        "prompts": [prompt["id"] for prompt in prompts],
        "scores": [round(score, 5) for score in judge.get("scores", {}).get(method, [])],
        "judge": {name: value for name, value in judge.items() if name != "scores"},
        "tokens": [answer["tokens"] for answer in said],
        "ended": [answer["finish"] == "stop" for answer in said],
        "kl": [round(answer["kl"], 4) for answer in said],
        "samples": [{"prompt": prompts[i]["prompt"], "answer": said[i]["text"]} for i in sampled],
    }
