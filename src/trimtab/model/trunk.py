"""A trunk: one frozen base model that carries several roles as (adapter, head) pairs.

actor, reference, critic and reward on one trunk are four models for the memory of one. The reference is the adapter
that the actor started from (or no adapter at all), so it costs nothing.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trimtab.artifacts import ITSELF
from trimtab.config import ModelRef
from trimtab.errors import ConfigError, ModelError
from trimtab.model.attention import NAME as ATTENTION
from trimtab.model.chat import Chat
from trimtab.model.forward import Head, check_head, decoder_of, head_of, hidden_states, target_logps, wide
from trimtab.model.load import Loaded, load
from trimtab.model.save import save_full
from trimtab.model.tuning import Lora, Tune, Tuned, chosen_layers, describe, learning_rates, linear_layers
from trimtab.tensors.tree import TreeBatch

__all__ = ["SCORE_HEAD", "Lora", "ScalarHead", "Trunk"]

SCORE_HEAD = "score_head.safetensors"


class ScalarHead(nn.Module):
    """One number from a hidden state: w . h + b, in float32. For rewards and values.

    ``std`` 0 starts at zero (a critic that says nothing yet); otherwise N(0, std), bias 0.
    """

    def __init__(
        self, hidden_size: int, *, std: float = 0.0, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        draw = torch.randn(hidden_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.weight = nn.Parameter((std * draw).to(dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., H) -> (...)."""
        return hidden.to(self.weight.dtype) @ self.weight + self.bias

    def save(self, folder: Path) -> None:
        """Write the head beside its adapter."""
        save_file({"weight": self.weight.detach().clone(), "bias": self.bias.detach().clone()}, folder / SCORE_HEAD)

    @classmethod
    def read(cls, folder: Path) -> ScalarHead:
        """Read a head that ``save`` wrote; a reward model without one is refused, never started at random."""
        path = folder / SCORE_HEAD
        if not path.is_file():
            raise ModelError(f"{folder} holds no {SCORE_HEAD}: it is not a reward model or critic")
        state = load_file(path)
        head = cls(state["weight"].shape[0], dtype=state["weight"].dtype)
        head.load_state_dict(state)
        return head


class Trunk:
    """A base model with named adapters; ``None`` names the bare base.

    Either one adapter after another is trained and the base is frozen, or the base itself is (``trainable``).
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.chat = Chat(loaded.tokenizer)
        self.base: nn.Module = loaded.model
        self.head: Head = head_of(self.base)
        check_head(self.base, self.head)
        self.quantised = any(not p.is_floating_point() for p in self.base.parameters())
        self.peft: PeftModel | None = None
        self._layers: list[BaseTunerLayer] = []
        self._active: str | None = None
        self._trained: list[nn.Parameter] = []

    @classmethod
    def load(cls, ref: str | Path, *, dtype: str = "auto") -> Trunk:
        """Load a base model for tree attention, frozen, dropout off; onto the GPU where there is one (not yet run)."""
        loaded = load(ref, dtype=dtype, attention=ATTENTION)
        if torch.cuda.is_available() and loaded.model.device.type != "cuda":
            loaded.model.to(torch.device("cuda"))
        return cls(loaded)

    @classmethod
    def open(cls, model: ModelRef, *, dtype: str = "auto") -> tuple[Trunk, str | None]:
        """Load a model that a recipe names; return its trunk and its adapter's name (``None``: it is a whole model)."""
        trunk = cls.load(model.base, dtype=dtype)
        return trunk, trunk.adopt(model)

    def adopt(self, model: ModelRef) -> str | None:
        """Put another model's adapter, if it has one, on this trunk, which must be its base; return its name."""
        if model.artifact is None or model.artifact.whole:
            return None
        # Apart from the roles' own names, whatever a recipe calls its stages; the key tells two artifacts of one name
        # apart, and a module's name may hold no dot.
        name = f"{model.artifact.name}-{model.artifact.key[:12]}".replace(".", "_")
        if name not in self.adapters:
            self.load_adapter(name, model.artifact.folder)
        return name

    def derive_adapter(self, name: str, source: str | None, lora: Lora, *, seed: int) -> None:
        """Add an adapter that starts as ``source`` (bit for bit), or fresh when that is the bare base.

        Errors: ConfigError when ``lora`` asks for another shape than the one that the source has. Its rates are no
        shape: they may differ.
        """
        if source is None:
            self.add_adapter(name, lora, seed=seed)
        else:
            assert self.peft is not None
            config = self.peft.peft_config[source]
            every = linear_layers(self.base)
            carrying = frozenset(k for k in every if source in getattr(self.base.get_submodule(k), "lora_A", {}))
            asked = (lora.rank, lora.alpha, lora.rslora, chosen_layers(lora.targets, every))
            there = (config.r, config.lora_alpha, config.use_rslora, carrying)
            if lora.says_shape and asked != there:
                raise ConfigError(
                    f"lora: {describe(*asked, frozenset(every))} would change nothing: training goes on from an "
                    f"adapter of {describe(*there, frozenset(every))}"
                )
            self.copy_adapter(source, name)

    def trainable(self, tune: Tune, name: str, source: str | None, lora: Lora, *, seed: int) -> Tuned:
        """Let gradients flow into what a stage trains: an adapter ``name``, or for ``full`` every weight of the base.

        Training starts from ``source`` (``None``: the bare base). For ``full`` it is merged into the base, and no
        adapter is left on the trunk: whoever needs the start later (a reference, say) takes a trunk of its own.

        Errors: ConfigError for ``full`` with settings of an adapter, or on a base in 4 bits.
        """
        if tune == "lora":
            self.derive_adapter(name, source, lora, seed=seed)
            return Tuned(adapter=name, parameters=self.train_adapter(name), rates=self.rates(name, lora))
        if lora != Lora():
            raise ConfigError("lora would change nothing: 'tune: full' trains the model's own weights")
        if self.quantised:
            raise ConfigError("'tune: full' needs whole weights, and those of this model are stored in 4 bits")
        self.absorb(source)
        parameters = list(self.base.parameters())  # tied weights once
        for parameter in parameters:
            parameter.requires_grad_(True)
        return Tuned(adapter=None, parameters=parameters)

    def rates(self, name: str, lora: Lora) -> list[float] | None:
        """Factors on the learning rate of an adapter's parameters, in their order (``None``: all are 1)."""
        config: Any = self.base.config
        num_layers = config.get_text_config().num_hidden_layers
        return learning_rates(self.named_adapter_parameters(name), lora, num_layers=num_layers)

    @property
    def dtype(self) -> torch.dtype:
        """The base's precision."""
        return self.head.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the base lives."""
        return self.head.weight.device

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.head.weight.shape[1])

    @property
    def adapters(self) -> list[str]:
        """Names of the adapters on this trunk."""
        return [] if self.peft is None else list(self.peft.peft_config)

    def _settle(self) -> None:
        assert self.peft is not None
        self._layers = [m for m in self.peft.modules() if isinstance(m, BaseTunerLayer)]
        for parameter in self.peft.parameters():
            parameter.requires_grad_(False)
        for parameter in self._trained:  # also when another adapter comes on the trunk later
            parameter.requires_grad_(True)
        self.use(self._active)

    def add_adapter(self, name: str, lora: Lora, *, seed: int) -> None:
        """Add a fresh adapter: the output is unchanged, because B = 0."""
        config = lora.config(chosen_layers(lora.targets, linear_layers(self.base)))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._attach(name, config)
        self._settle()

    def _attach(self, name: str, config: LoraConfig) -> None:
        if self.peft is None:
            self.peft = get_peft_model(self.base, config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            self.peft.add_adapter(name, config, autocast_adapter_dtype=False)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Load a PEFT adapter folder under a name.

        Raises ModelError for one that does not fit, and for one with more than LoRA matrices of linear layers
        (``modules_to_save``, embeddings, DoRA): merging and copying would lose the rest.
        """
        weights = load_file(folder / "adapter_model.safetensors")
        more = [key for key in weights if not key.endswith((".lora_A.weight", ".lora_B.weight"))]
        if more:
            raise ModelError(
                f"{folder}: the adapter holds {more[0]}, and not only LoRA matrices of linear layers; merge it into "
                "its base model (peft's merge_and_unload) and start from that"
            )
        config = LoraConfig.from_pretrained(str(folder))
        config.inference_mode = False
        config.base_model_name_or_path = (
            None  # a place, and the base may have moved: which one it is, the manifest says
        )
        with torch.random.fork_rng(devices=[]):
            self._attach(name, config)
        assert self.peft is not None
        result = set_peft_model_state_dict(self.peft, weights, adapter_name=name)
        if result.unexpected_keys:
            raise ModelError(
                f"{folder}: adapter does not fit this base model ({result.unexpected_keys[0]} has no place)"
            )
        self._settle()

    def copy_adapter(self, source: str, name: str) -> None:
        """Add an adapter that starts as a copy of another, bit for bit."""
        assert self.peft is not None
        with torch.random.fork_rng(devices=[]):
            self._attach(name, self.peft.peft_config[source])
        self._settle()
        for mine, theirs in zip(self.adapter_parameters(name), self.adapter_parameters(source), strict=True):
            mine.data.copy_(theirs.data)

    def named_adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """The adapter's parameters by their place in the model."""
        assert self.peft is not None
        mark = f".{name}."
        return {k.replace(mark, "."): p for k, p in self.peft.named_parameters() if mark in k and "lora_" in k}

    def adapter_parameters(self, name: str) -> list[nn.Parameter]:
        """The adapter's parameters in a fixed order."""
        return list(self.named_adapter_parameters(name).values())

    def train_adapter(self, name: str) -> list[nn.Parameter]:
        """Let gradients flow into one adapter; return its parameters."""
        parameters = self.adapter_parameters(name)
        self._trained += parameters
        for parameter in parameters:
            parameter.requires_grad_(True)
        return parameters

    def use(self, name: str | None) -> None:
        """Switch to an adapter (``None``: the bare base). Which parameters are trained does not change."""
        for layer in self._layers:
            layer._disable_adapters = name is None
            if name is not None:
                layer._active_adapter = [name]
        self._active = name

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Use an adapter for a while. Gradient-checkpointed passes must run their backward inside."""
        before = self._active
        self.use(name)
        try:
            yield
        finally:
            self.use(before)

    @contextmanager
    def merged(self, name: str | None) -> Iterator[None]:
        """Use an adapter merged into the base's weights, for sampling; the base comes back to the same bits.

        The merged weights are separate tensors swapped in and out: nothing is subtracted, so nothing drifts. Into
        weights of 4 bits nothing can be merged: there the adapter is applied.
        """
        if name is None or self.quantised:
            with self.using(name):
                yield
            return
        originals = self._fold(name)
        try:
            with self.using(None):
                yield
        finally:
            for weight, data in originals:
                weight.data = data

    @torch.no_grad()
    def _fold(self, name: str) -> list[tuple[Tensor, Tensor]]:
        """Put an adapter into the base's weights; return each weight with the data that it had."""
        originals: list[tuple[Tensor, Tensor]] = []
        for layer in self._layers:
            if name in getattr(layer, "lora_A", {}):
                weight: Tensor = layer.get_base_layer().weight
                originals.append((weight, weight.data))
                delta: Tensor = layer.get_delta_weight(name)
                weight.data = (weight.to(wide(weight.dtype)) + delta).to(weight.dtype)
        return originals

    def absorb(self, name: str | None) -> None:
        """Merge an adapter into the base for good and take all adapters off: what is left is a plain model."""
        if self.peft is None:
            return
        if name is not None:
            self._fold(name)
        model: Any = self.peft
        model.unload()
        self.peft, self._layers, self._active, self._trained = None, [], None, []

    def twin(self) -> Trunk:
        """Another trunk on the same base weights, for another thread: adapters, and what is merged, are its own.

        Weights are shared as storage: an adapter merged here does not show there.
        """
        adapters = {id(p) for name in self.adapters for p in self.named_adapter_parameters(name).values()}
        frozen = (p for p in self.base.parameters() if id(p) not in adapters)
        assert not any(p.requires_grad for p in frozen)  # a base in training could not be shared
        shared: dict[int, Any] = {id(self.loaded.tokenizer): self.loaded.tokenizer}
        for parameter in self.base.parameters():
            if id(parameter) not in adapters:
                own = parameter if self.quantised else nn.Parameter(parameter.data, requires_grad=False)
                shared[id(parameter)] = own
        shared |= {id(buffer): buffer for buffer in self.base.buffers()}
        return copy.deepcopy(self, shared)

    @property
    def decoder(self) -> nn.Module:
        """The model without its head, adapters inside."""
        return decoder_of(self.base)

    def scalar_head(self) -> ScalarHead:
        """A scalar head at zero, beside this trunk."""
        return ScalarHead(self.hidden_size).to(self.device)

    def hidden(self, batch: TreeBatch) -> Tensor:
        """Hidden states (T, H) under the adapter in use."""
        return hidden_states(self.decoder, batch)

    def logps(self, batch: TreeBatch, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies (N,), (N,) of the batch's targets under the adapter in use."""
        return target_logps(self.head, self.hidden(batch)[batch.predictor], batch.target, temperature=temperature)

    def checkpoint_activations(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        model: Any = self.base
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.train()  # transformers checkpoints only in train mode; every dropout is zero
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        else:
            model.activation_checkpointing_disable()
            model.eval()

    def save(self, name: str | None, folder: Path) -> str:
        """Write an adapter, or the whole model (``None``) with its tokenizer; return what its manifest calls its base.

        Either is what plain transformers (and peft) loads.
        """
        if name is None:
            save_full(self.loaded, folder)
            return ITSELF
        self.save_adapter(name, folder)
        return self.loaded.source.ref

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write a PEFT adapter folder that plain peft, transformers and vLLM load."""
        assert self.peft is not None
        folder.mkdir(parents=True, exist_ok=True)
        state = {f"{k}": p.detach().clone().contiguous() for k, p in self.named_adapter_parameters(name).items()}
        save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        config = self.peft.peft_config[name].to_dict()
        config["base_model_name_or_path"] = str(self.loaded.source.path)
        config["inference_mode"] = True
        config = {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
