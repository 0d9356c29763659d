"""Packages that one rule alone needs: imported when it is used, so that listing the rules is quick."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trimtab.errors import ConfigError


@contextmanager
def package(name: str, rule: str) -> Iterator[None]:
    """Say what to install where an import in the body fails."""
    try:
        yield
    except ImportError as error:
        raise ConfigError(f"the rule {rule!r} needs the package {name} (pip install {name}): {error}") from error
