"""What of a model is trained, and how fast: a low-rank adapter on a frozen base, or all of its weights.

Letters: L layers, l a layer's index from 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import Field
from torch import nn
from transformers.pytorch_utils import Conv1D

from trimtab.errors import ConfigError, did_you_mean

Tune = Literal["lora", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A low-rank adapter: W + s B A with s = alpha / rank (Hu et al., 2021, section 4.1). B = 0 at the start.

    ``rslora`` makes s = alpha / sqrt(rank) (Kalajdzievski, 2023, arXiv:2312.03732). ``targets`` names the linear layers
    that carry one, by the ends of their names; without it all do but the head. ``plus``: B learns at so many times the
    rate of A (LoRA+: Hayou et al., 2024, arXiv:2402.12354, where it is 16). ``layer_decay``: layer l of L learns at
    lr * layer_decay^(L - 1 - l), the last one at lr.

    There is no dropout: reference and policy must be the same function of their weights.
    """

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[float, Field(gt=0)] = 32.0
    rslora: bool = False
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    plus: Annotated[float, Field(gt=0)] = 1.0
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @property
    def says_shape(self) -> bool:
        """Whether anything but the rates differs from the defaults."""
        return replace(self, plus=1.0, layer_decay=1.0) != Lora()

    def config(self, layers: Iterable[str]) -> LoraConfig:
        """Return PEFT's configuration for the layers of these names."""
        return LoraConfig(
            r=self.rank, lora_alpha=self.alpha, use_rslora=self.rslora, lora_dropout=0.0, task_type="CAUSAL_LM",
            target_modules="all-linear" if self.targets is None else sorted(layers),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What a stage trains of a trunk.

    ``adapter`` is what the trunk is to ``use`` and to ``save`` (``None``: the base itself). ``rates`` are the
    parameters' factors on the learning rate (``None``: all 1).
    """

    adapter: str | None
    parameters: Sequence[nn.Parameter]
    rates: Sequence[float] | None = None


def learning_rates(names: Iterable[str], lora: Lora, *, num_layers: int) -> list[float] | None:
    """Each parameter's factor on the learning rate, by its name; ``None`` when all of them are 1.

        (plus if it is a B) * layer_decay^(L - 1 - l)

    A parameter outside the layers has no l: for it the second factor is 1.
    """
    if (lora.plus, lora.layer_decay) == (1.0, 1.0):
        return None
    rates = []
    for name in names:
        layer = layer_of(name)
        depth = 0 if layer is None else num_layers - 1 - layer
        rates.append((lora.plus if "lora_B" in name.split(".") else 1.0) * lora.layer_decay**depth)
    return rates


def layer_of(name: str) -> int | None:
    """The index of the layer that a parameter is in: the first number in its name, if any.

    ``model.layers.3.mlp.experts.5.up_proj.weight`` is in layer 3, ``transformer.h.0.attn.c_attn.weight`` in layer 0.
    """
    return next((int(part) for part in name.split(".") if part.isdecimal()), None)


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the layers that can carry an adapter: every linear one but the language-model head.

    The head stays out because log-probabilities are computed from its weight alone (``model.forward``): an adapter on
    it would be trained by nothing.
    """
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    found: list[str] = []
    inside: tuple[str, ...] = ()  # below layers that carry adapters already
    for name, module in model.named_modules():
        if name.startswith(inside):
            continue
        layer = module
        if isinstance(module, BaseTunerLayer):
            inside = (*inside, f"{name}.")
            layer = module.get_base_layer()
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head:
            found.append(name)
    return found


def chosen_layers(targets: Sequence[str] | None, layers: Sequence[str]) -> frozenset[str]:
    """Those of the layers whose names end with one of the targets (``q_proj``, ``self_attn.q_proj``); all for ``None``.

    Errors: ConfigError for a target that no layer ends with.
    """
    if targets is None:
        return frozenset(layers)
    found: set[str] = set()
    for target in targets:
        own = {name for name in layers if name == target or name.endswith(f".{target}")}
        if not own:
            hint = did_you_mean(target, {name.rpartition(".")[2] for name in layers})
            raise ConfigError(f"lora.targets: no linear layer {target!r} below the head{hint}")
        found |= own
    return frozenset(found)


def describe(rank: int, alpha: float, rslora: bool, layers: frozenset[str], every: frozenset[str]) -> str:
    """An adapter's shape in words; its layers are named unless they are all there are."""
    ends = "" if layers == every else f" on {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}"
    return f"rank {rank} and alpha {alpha:g}{' with rslora' if rslora else ''}{ends}"
