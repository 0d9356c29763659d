"""Stages: (inputs, settings, run) -> artifact. One file a stage; the folder is the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a stage leaves besides the files in its folder.

    ``metrics`` are flat ``group/name`` numbers; ``base`` names the base model when the folder holds an adapter on it.
    """

    metrics: Mapping[str, float]
    base: str | None = None
