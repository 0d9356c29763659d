"""What a worker serves: models by name. Those of one base share its weights; each adapter is merged into its own copy.

Merged, a served model has the very weights that ``trimtab generate`` and the evaluation stage sample from, and a step
of one model costs what a step of the plain base does. The price is memory: one more copy of the layers that the adapter
changes. Into a base in 4 bits nothing can be merged; there the adapter is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trimtab.config import ModelRef
from trimtab.model.trunk import Trunk


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model under a name: ``window`` is how many tokens a prompt and its answer may have together."""

    name: str
    trunk: Trunk
    window: int
    identity: str


def open_models(refs: Mapping[str, ModelRef], *, window: int, dtype: str = "auto") -> dict[str, Served]:
    """Load models under their names, each base once; no window is longer than the model's own or ``window``.

    Errors: ModelError for whatever cannot be loaded.
    """
    bases = {base: Trunk.load(base, dtype=dtype) for base in dict.fromkeys(ref.base for ref in refs.values())}
    served = {}
    for name, ref in refs.items():
        trunk = _with_adapter(bases[ref.base], ref)
        identity = ref.artifact.key if ref.artifact is not None else trunk.loaded.source.digest
        served[name] = Served(name=name, trunk=trunk, window=min(window, _own_window(trunk, window)), identity=identity)
    return served


def _with_adapter(base: Trunk, ref: ModelRef) -> Trunk:
    """The base itself, or a trunk that shares the weights which the model's adapter leaves alone."""
    if ref.artifact is None or ref.artifact.whole:
        return base
    trunk = base.twin()
    adapter = trunk.adopt(ref)
    if trunk.quantised:
        trunk.use(adapter)
    else:
        trunk.absorb(adapter)
    if trunk.head.weight.data_ptr() == base.head.weight.data_ptr():
        trunk.head = base.head  # with its float32 copy, which need not stand there twice
    return trunk


def _own_window(trunk: Trunk, default: int) -> int:
    config: Any = trunk.base.config
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or default)
