"""The folder of reward losses as a registry."""

from __future__ import annotations

from trimtab.registry import Folder

REWARD_LOSSES = Folder("trimtab.losses.reward", "reward loss")
