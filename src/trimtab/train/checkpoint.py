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

_WEIGHTS, _STATE = "weights/", "state/"  # name spaces in the tensors file
_TENSOR = "__tensor__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """State after ``step`` steps are done. ``state`` is JSON-able, apart from tensors anywhere in its mappings."""

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
    tensors = {f"{_WEIGHTS}{name}": tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    state = _take_out(checkpoint.state, tensors, _STATE)
    save_file(tensors, partial / "tensors.safetensors")
    (partial / "state.json").write_text(json.dumps(state))
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
    tensors = load_file(newest / "tensors.safetensors")
    return Checkpoint(
        step=int(newest.name.removeprefix("step-")),
        tensors={name.removeprefix(_WEIGHTS): t for name, t in tensors.items() if name.startswith(_WEIGHTS)},
        state=_put_back(json.loads((newest / "state.json").read_text()), tensors),
    )


def _take_out(state: Mapping[str, Any], tensors: dict[str, Tensor], prefix: str) -> dict[str, Any]:
    """The state with every tensor replaced by its name in the tensors file, to which it is added."""
    out: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{name}"] = value.contiguous()
            out[name] = {_TENSOR: f"{prefix}{name}"}
        else:
            out[name] = _take_out(value, tensors, f"{prefix}{name}/") if isinstance(value, Mapping) else value
    return out


def _put_back(state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Undo ``_take_out``."""
    out: dict[str, Any] = {}
    for name, value in state.items():
        if isinstance(value, Mapping):
            out[name] = tensors[value[_TENSOR]] if _TENSOR in value else _put_back(value, tensors)
        else:
            out[name] = value
    return out
