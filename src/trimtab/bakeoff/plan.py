"""What a bake-off compares: the key ``bakeoff`` of a recipe, checked before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from trimtab.config import (
    BASE,
    ModelRef,
    check_options,
    check_recipe,
    check_stage,
    override_recipe,
    put,
    read_plugins,
    read_recipe,
    read_setting,
    references,
)
from trimtab.errors import ConfigError, did_you_mean
from trimtab.registry import STAGES

OURS = frozenset({"stage", "models", "start"})  # options of the evaluation that the bake-off itself fills in


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """The key ``bakeoff`` of a recipe; ``start`` is one of its stages, or ``base``."""

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
        """The recipe, as parsed YAML, that trains one method from the start with one seed and evaluates it.

        Of the recipe's own stages it holds those that the method needs, so that one method's reward model is no
        business of the others.
        """
        read_plugins(self.raw.get("plugins", ()), f"{self.where}: ")  # another recipe may have been checked since
        stages = dict(self.raw["stages"])
        if method != self.contest.start:
            stages[method] = {**self.contest.settings(method), **({} if steps is None else {"steps": steps})}
        last = method
        if evaluate:
            last = f"evaluate-{method}"
            stages[last] = self.evaluation(method)
        return {**self.raw, "name": f"{self.name}-{seed}", "seed": seed, "stages": _needed(stages, last, self.where)}

    def evaluation(self, method: str) -> dict[str, Any]:
        """What the stage is told that evaluates a method."""
        return {"stage": "evaluate", "models": [method], "start": self.contest.start, **self.contest.evaluate}


def _needed(stages: dict[str, Any], last: str, where: str) -> dict[str, Any]:
    """The stages that the last one rests on, and itself, in their order; a stage can only refer to earlier ones."""
    found = {last}
    for name in reversed(stages):
        if name in found:
            config = check_stage(name, stages[name], f"{where}: stages.{name}")
            found |= {word for _, kind, word in references(config) if kind is ModelRef}
    return {name: settings for name, settings in stages.items() if name in found}


def load_bakeoff(path: Path, overrides: Sequence[str] = ()) -> Bakeoff:
    """Read a recipe with a ``bakeoff``, apply overrides (``sft.epochs=1``, ``bakeoff.common.lr=1e-5``), check it."""
    raw = read_recipe(path)
    given = raw.pop("bakeoff", None)
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: no bake-off in it: the key 'bakeoff' says which methods to compare")
    inside = [override for override in overrides if override.startswith("bakeoff.")]
    for override in inside:
        _apply(given, override)
    raw = _override(
        raw, str(path), [o for o in overrides if o not in inside], from_base=given.get("start") == BASE.name
    )
    settings = check_options(Contest, given, f"{path}: bakeoff")
    for needed in ("start", "methods", "evaluate"):
        if needed not in settings:
            raise ConfigError(f"{path}: bakeoff: option {needed!r} is missing")
    name = str(raw.pop("name", path.stem))
    plan = Bakeoff(name=name, raw=raw, contest=Contest(**settings), where=str(path))
    _check(plan)
    return plan


def _override(raw: dict[str, Any], where: str, overrides: Sequence[str], *, from_base: bool) -> dict[str, Any]:
    """Apply overrides to the recipe's own part, which needs no stages where methods start from the base."""
    if not from_base or raw.get("stages"):
        return override_recipe(raw, where, overrides)
    tree = override_recipe({**raw, "stages": {BASE.name: {}}}, where, overrides)
    if tree["stages"].pop(BASE.name):
        raise ConfigError(f"{where}: {BASE.name!r} is the model itself; it has no options to override")
    return tree


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
    if stages:
        check_recipe(plan.raw, plan.where)
    twice = [seed for seed, count in Counter(contest.seeds).items() if count > 1]
    if twice:
        raise ConfigError(f"{where}.seeds: seed {twice[0]} stands twice")
    if contest.start not in (*stages, BASE.name):
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
