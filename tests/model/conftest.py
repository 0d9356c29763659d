"""Fixtures of the model room: a cache of its own, in which the tiny model has been made."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def _tiny_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from trimtab.model.bundled import bundled_folder

    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(cache))
        bundled_folder("tiny")
    return cache


@pytest.fixture
def tiny_cache(_tiny_made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder to which ``$TRIMTAB_CACHE`` points during the test."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(_tiny_made))
    return _tiny_made
