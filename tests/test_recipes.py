"""Every recipe that comes with Trimtab parses, checks, and names what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trimtab.bakeoff import load_bakeoff
from trimtab.config import DataRef, ModelRef, Recipe, check_recipe, find_recipe, load_recipe, read_recipe, references
from trimtab.model.bundled import BUNDLED
from trimtab.records.sources import resolve

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+:[\w\[\]:]+@[\d.]*:[\d.]*")  # with its split and a share of its prompts

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def recipes(path: Path) -> list[Recipe]:
    """What a file runs: one recipe, or one for every method of a bake-off."""
    if "bakeoff" not in read_recipe(path):
        return [load_recipe(path)]
    plan = load_bakeoff(path)
    steps = 5 if plan.contest.limited else None  # a budget is kept by steps
    recipes = [
        plan.recipe(method, 0, steps=None if method == plan.contest.start else steps) for method in plan.entrants
    ]
    return [check_recipe({**recipe, "name": plan.name}, str(path)) for recipe in recipes]


def test_there_are_recipes() -> None:
    assert {"quickstart", "tiny"} <= {path.stem for path in RECIPES}


@every_recipe
def test_it_checks_and_is_found_by_name(path: Path) -> None:
    for recipe in recipes(path):
        assert recipe.name == path.stem
        assert recipe.stages
    assert find_recipe(path.stem).resolve() == path.resolve()


@every_recipe
def test_its_first_lines_say_what_it_is_and_how_to_run_it(path: Path) -> None:
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        head.append(line)
    command = "bakeoff" if "bakeoff" in read_recipe(path) else "run"
    assert f"trimtab {command} {path.stem}" in " ".join(head)


@every_recipe
def test_models_are_the_base_an_earlier_stage_or_bundled(path: Path) -> None:
    for recipe in recipes(path):
        known = {"base", *BUNDLED}
        assert recipe.model in BUNDLED
        for name, stage in recipe.stages.items():
            for _, kind, word in references(stage):
                assert kind is not ModelRef or word in known, f"stages.{name}: {word!r} is not there yet"
            known.add(name)


@every_recipe
def test_data_comes_with_the_package_or_is_a_hub_id(path: Path) -> None:
    for recipe in recipes(path):
        for stage in recipe.stages.values():
            for word in (word for _, kind, word in references(stage) if kind is DataRef):
                if word.startswith("quickstart/"):
                    assert resolve(word).path.is_file(), word
                else:
                    assert HUB_ID.fullmatch(word), word
                    assert resolve(word).kind == "hub"
