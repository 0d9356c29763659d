"""Tests leave nothing in the user's cache, and find the models that are in it."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_stages as tiny
from trimtab.model.cache import cache_folder, models_folder
from trimtab.model.trunk import Trunk
from trimtab.tensors.tree import TokenGroup
from trimtab.train.reference import reference_logps


def test_what_is_computed_stays_with_the_tests(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, user_cache: Path
) -> None:
    assert cache_folder().is_relative_to(tmp_path_factory.getbasetemp())
    assert not user_cache.is_relative_to(tmp_path_factory.getbasetemp())
    before = set((cache_folder() / "reference").glob("*"))
    groups = [TokenGroup(prompt=(256, 65, 66), answers=((67, 68, 257), (69, 70)))]
    reference_logps(tiny.make_run(tmp_path, "dpo"), Trunk.load(tiny_model), None, groups, micro_tokens=64)
    (made,) = set((cache_folder() / "reference").glob("*")) - before
    assert not (user_cache / "reference" / made.name).exists()


def test_models_are_those_of_the_user(user_cache: Path) -> None:
    assert models_folder().resolve() == (user_cache / "models").resolve()
