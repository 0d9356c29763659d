"""Run what is missing of a bake-off, one process a method, and say what each run found as a row."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from trimtab.artifacts import revision
from trimtab.bakeoff.identity import Identity, all_code, identify
from trimtab.bakeoff.plan import Bakeoff, Contest
from trimtab.bakeoff.rows import Row, append, read_rows, rows_of
from trimtab.config import BASE
from trimtab.errors import ConfigError, UserError

PROBE_STEPS = 10
PROBE_WARMUP = 2  # the first steps of a process are slower
NUM_SAMPLES = 5
UNTRAINED: Row = {
    "steps": 0, "seconds": 0.0, "peak_gb": None, "trained_tokens": 0, "sampled": 0, "sampled_tokens": 0, "metrics": {},
    "notes": [],
}  # fmt: skip


def run_bakeoff(plan: Bakeoff, path: Path, *, any_code: bool = False) -> Iterator[Row]:
    """Run what is missing, seed by seed, and yield each new row once it stands in the file.

    Where there is a budget, the steps of every method without a row are chosen first, in one go, so that they are
    chosen on the same machine at nearly the same time; a method that has rows does as many steps as they tell of.
    """
    identities = {method: identify(plan, method) for method in plan.entrants}
    seeds = plan.contest.seeds
    done = rows_of(identities, None, read_rows(path), any_code=any_code)
    have = {(row["method"], row["seed"]) for row in done}
    missing = [(seed, method) for seed in seeds for method in plan.entrants if (method, seed) not in have]
    paces = {row["method"]: row["pace"] for row in reversed(done)}
    work = _Work(plan, all_code(), set())
    if plan.contest.limited:
        for method in dict.fromkeys(method for _, method in missing if method != plan.contest.start):
            if method not in paces:
                paces[method] = work.pace(method, seeds[0])
    for seed, method in missing:
        pace = paces.get(method)
        recipe = work.run(method, seed, None if pace is None else pace["steps"])
        if (now := identify(plan, method)) != identities[method]:
            raise UserError(
                f"while {method} ran, what it rests on was changed (data, a model or the code), so its row is not "
                "kept; the same command starts it anew"
            )
        row = {"method": method, "seed": seed, **_basis(now), "pace": pace, **work.facts(recipe, method)}
        append(path, row)
        yield row


def affordable(contest: Contest, log: Sequence[Row], *, before: int = 0) -> tuple[int, float]:
    """Steps that fit into the budget, at least one, and what one of them costs (seconds or tokens), by a short log.

    ``before`` lines tell of steps that come before those that are counted (a critic's warm-up): their cost is taken off
    the budget. Of the others, those among a process's first ones are left out.
    """
    if contest.minutes is not None:
        budget, what = contest.minutes * 60, "train/seconds"
    else:
        assert contest.tokens is not None
        budget, what = contest.tokens, "train/tokens"
        if what not in log[0]:
            raise ConfigError("bakeoff.tokens: a stage among the methods does not count its tokens; give minutes")
    cost = [float(row[what]) for row in log]
    counted = cost[max(before, PROBE_WARMUP) :]
    each = median(counted) if contest.minutes is not None else sum(counted) / len(counted)
    return max(1, round((budget - sum(cost[:before])) / each)), each


@dataclass(frozen=True, slots=True)
class _Work:
    """Where runs of one state of the code lie, and which stages have been made ready by this process."""

    plan: Bakeoff
    code: str
    ready: set[tuple[int, tuple[str, ...]]]

    def run(self, method: str, seed: int, steps: int | None) -> dict[str, Any]:
        """Train and evaluate a method; return the recipe that was run."""
        self._make_ready(method, seed)
        recipe = self._recipe(method, seed, steps=steps)
        self._start(recipe, method)
        if method == self.plan.contest.start:
            self.ready.add((seed, tuple(name for name in recipe["stages"] if name != f"evaluate-{method}")))
        return recipe

    def pace(self, method: str, seed: int) -> Row:
        """How many steps a method may do, from a few done for the purpose."""
        self._make_ready(method, seed)
        recipe = self._recipe(method, seed, steps=PROBE_STEPS, evaluate=False)
        stages, name = recipe["stages"], f"probe-{method}"
        stages[name] = {"stage": method} | stages.pop(method)
        stages[name].pop("heldout", None)  # only time is measured
        self._start(recipe, name)
        log = _log(self._folder(recipe) / name)
        steps, each = affordable(self.plan.contest, log, before=len(log) - PROBE_STEPS)
        return {"steps": steps, "each": round(each, 4), "machine": _machine(self._folder(recipe))}

    def facts(self, recipe: Mapping[str, Any], method: str) -> Row:
        """What a finished run says of its method."""
        folder = self._folder(recipe)
        evaluation = json.loads((folder / f"evaluate-{method}" / "evaluation.json").read_text())
        prompts = evaluation["prompts"]
        said = [prompt["answers"][method] for prompt in prompts]
        judge = evaluation.get("judge", {})
        picked = range(0, len(prompts), max(1, len(prompts) // NUM_SAMPLES))[:NUM_SAMPLES]
        return {
            "revision": revision(),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "machine": _machine(folder),
            "start": _weights(folder / self.plan.contest.start),
            **(UNTRAINED if method == BASE.name else _trained(folder / method)),
            "prompts": [prompt["id"] for prompt in prompts],
            "scores": [round(score, 5) for score in judge.get("scores", {}).get(method, [])],
            "measured": measured(evaluation, method, self.plan.contest.evaluate.get("rules") or {}),
            "judge": {name: value for name, value in judge.items() if name != "scores" and value == value},  # no NaN
            "tokens": [answer["tokens"] for answer in said],
            "ended": [answer["finish"] == "stop" for answer in said],
            "kl": [round(answer["kl"], 4) for answer in said],
            "samples": [{"prompt": prompts[i]["prompt"], "answer": said[i]["text"]} for i in picked],
        }

    def _make_ready(self, method: str, seed: int) -> None:
        """Train what a method and its evaluation rest on in another process: its memory is not the method's.

        What a start is evaluated by may rest on the start itself, so that is trained after it, in one process.
        """
        recipe = self._recipe(method, seed, evaluate=method != self.plan.contest.start)
        for name in (method, f"evaluate-{method}"):
            recipe["stages"].pop(name, None)
        names = tuple(recipe["stages"])
        if names and (seed, names) not in self.ready:
            self._start(recipe, f"before-{method}")
            self.ready.add((seed, names))

    def _recipe(self, method: str, seed: int, **how: Any) -> dict[str, Any]:
        """The recipe in a folder of this code: an artifact's key says nothing of the code that made it."""
        name = f"{self.plan.name}-{self.code[:8]}-{seed}"
        return {**self.plan.recipe(method, seed, **how), "name": name}

    def _folder(self, recipe: Mapping[str, Any]) -> Path:
        return self.plan.output / str(recipe["name"])

    def _start(self, recipe: Mapping[str, Any], name: str) -> None:
        """Run a recipe in a process of its own; the recipe stays in the run folder as ``name.yaml``."""
        folder = self._folder(recipe)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(dict(recipe), sort_keys=False), encoding="utf-8")
        code = subprocess.run([sys.executable, "-m", "trimtab", "run", str(path)], check=False).returncode
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"stopped with exit code {code}"
            raise UserError(f"'trimtab run {path}' {how}; once that is put right, the same bake-off goes on")


def measured(evaluation: Mapping[str, Any], method: str, rules: Mapping[str, Any]) -> dict[str, list[float]]:
    """What the rules and the reward model give to each of a method's answers, by what the table calls them.

    One rule goes by its name; the weighted sum of several is ``rules``.
    """
    (name,) = rules if len(rules) == 1 else ("rules",)
    found = {name: evaluation.get("rule_scores", {}), "reward model": evaluation.get("reward_scores", {})}
    return {name: [round(score, 5) for score in by[method]] for name, by in found.items() if by}


def _trained(folder: Path) -> Row:
    """What a method's training did and cost; of what was sampled, also the answers that nothing was learned from."""
    manifest, log = json.loads((folder / "manifest.json").read_text()), _log(folder)
    return {
        "steps": len(log),
        "seconds": round(sum(row["train/seconds"] for row in log), 1),
        "peak_gb": manifest["peak_rss_gb"],
        "trained_tokens": round(sum(row.get("train/tokens", 0) for row in log)),
        "sampled": round(sum(row.get("rollout/sampled", 0) for row in log)),
        "sampled_tokens": round(sum(row.get("rollout/sampled", 0) * row.get("rollout/length", 0) for row in log)),
        "metrics": manifest["metrics"],
        "notes": manifest["notes"],
    }


def _basis(identity: Identity) -> Row:
    return {"key": identity.key, "code": identity.code, "asked": dict(identity.asked)}


def _log(folder: Path) -> list[Row]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _machine(folder: Path) -> str:
    """The machine that a run was on, as far as it decides numbers and times."""
    found = json.loads((folder / "run.json").read_text())["hardware"]
    parts = [found["cpu"], f"{found['num_threads']} threads", *(device["name"] for device in found["cuda"])]
    if found["cpu_bf16"]:
        parts.append("bf16")
    return ", ".join([*parts, f"torch {found['versions']['torch']}"])


def _weights(folder: Path) -> str:
    """The digest of a model's weights: two trainings of one start may differ in the last bits."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
