"""Gymnasium, or one sentence on how to get it."""

from __future__ import annotations

from trimtab.errors import ConfigError

try:
    from gymnasium import Env, Space
    from gymnasium.error import InvalidAction, ResetNeeded
    from gymnasium.spaces import Discrete
except ImportError as error:
    raise ConfigError(f"environments need the package gymnasium (pip install gymnasium): {error}") from error

__all__ = ["Discrete", "Env", "InvalidAction", "ResetNeeded", "Space"]
