"""Every recipe that comes with Trimtab parses, checks, and names what is there."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest

from trimtab.config import DataRef, ModelRef, find_recipe, load_recipe
from trimtab.model.bundled import BUNDLED
from trimtab.records.sources import resolve
from trimtab.registry import STAGES

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+:[\w\[\]:]+@[\d.]*:[\d.]*")  # with its split and a share of its prompts

every_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def words(stage: str, settings: typing.Mapping[str, object], kind: type) -> list[str]:
    """The settings of a stage that are references of a kind, as the recipe writes them."""
    hints = typing.get_type_hints(STAGES[stage].function)
    found: list[str] = []
    for name, value in settings.items():
        if hints[name] is kind or kind in typing.get_args(hints[name]):
            found += [value] if isinstance(value, str) else [str(v) for v in value] if isinstance(value, tuple) else []
    return found


def test_there_are_recipes() -> None:
    assert {"quickstart", "tiny"} <= {path.stem for path in RECIPES}


@every_recipe
def test_it_checks_and_is_found_by_name(path: Path) -> None:
    recipe = load_recipe(path)
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
    assert f"trimtab run {path.stem}" in " ".join(head)


@every_recipe
def test_models_are_the_base_an_earlier_stage_or_bundled(path: Path) -> None:
    recipe = load_recipe(path)
    known = {"base", *BUNDLED}
    assert recipe.model in BUNDLED
    for name, stage in recipe.stages.items():
        for word in words(stage.stage, stage.settings, ModelRef):
            assert word in known, f"stages.{name}: {word!r} is not there yet"
        known.add(name)


@every_recipe
def test_data_comes_with_the_package_or_is_a_hub_id(path: Path) -> None:
    for stage in load_recipe(path).stages.values():
        for word in words(stage.stage, stage.settings, DataRef):
            if word.startswith("quickstart/"):
                assert resolve(word).path.is_file(), word
            else:
                assert HUB_ID.fullmatch(word), word
                assert resolve(word).kind == "hub"
