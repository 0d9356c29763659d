"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tiny models on two threads spend their time waiting for each other; tests (and what they start) use one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
