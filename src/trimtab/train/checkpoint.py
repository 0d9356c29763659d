"""Checkpoints: safetensors and JSON in a folder that appears all at once, by rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State after ``step`` steps are done."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Publish a checkpoint, then drop older ones. Killed at any moment, a whole one remains."""
    final = folder / f"step-{checkpoint.step:08d}"
    if final.exists():  # the same step, from before a kill: it holds the same bits
        return
    partial = folder / f".partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, partial / "tensors.safetensors"
    )
    (partial / "state.json").write_text(json.dumps(dict(checkpoint.state)))
    partial.rename(final)
    for other in folder.iterdir():
        if other != final:
            shutil.rmtree(other, ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """Read the newest whole checkpoint, or nothing."""
    found = sorted(folder.glob("step-*")) if folder.is_dir() else []
    if not found:
        return None
    newest = found[-1]
    return Checkpoint(
        step=int(newest.name.removeprefix("step-")),
        tensors=load_file(newest / "tensors.safetensors"),
        state=json.loads((newest / "state.json").read_text()),
    )
