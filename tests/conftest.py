"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

# Tiny models on two threads spend their time waiting for each other; tests (and what they start) use one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("COLUMNS", None)  # set by whatever started us; a test that cares about the width sets it itself


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's own cache: its models are at hand, and nothing else is read from it or left in it.

    So a test computes what it asserts on (reference log-probabilities, embeddings) and forgets it; but models are
    fetched over the network once, not in every session.
    """
    from trimtab.model.cache import cache_folder, models_folder

    own, models = cache_folder(), models_folder()
    with suppress(OSError):  # no home to write to: only tests that need a model will say so
        models.mkdir(parents=True, exist_ok=True)
    folder = tmp_path_factory.mktemp("cache")
    (folder / "models").symlink_to(models.resolve(), target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder))
        yield own


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real samples written by others, beside the checkout; not part of the project."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real samples are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in a folder of its own."""
    from trimtab.model.tiny import make_tiny

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny(folder)
    return folder
