"""Models and tokenizers out of a source, ready to be trained upon: evaluation mode, no dropout, everything frozen.

Weights come from safetensors only and no code from a model's folder is run. Logging and progress bars stay off; what
matters is said: missing weights raise ModelError, weights that the architecture has no place for give a UserWarning.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.errors import ConfigError, ModelError, did_you_mean
from trimtab.model.hardware import has_fast_bf16
from trimtab.model.quiet import quiet
from trimtab.model.source import Source, resolve

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

FOUR_BITS = "4bit"
DTYPES = ("auto", "bfloat16", "float32", FOUR_BITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A model, its tokenizer and where they come from. The model is on the CPU; the runtime moves it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: Source


def load(ref: Source | str | Path, *, dtype: str = "auto", attention: str = "sdpa") -> Loaded:
    """Load a causal language model.

    ``dtype`` is "bfloat16", "float32" or "auto": bfloat16 where hardware computes it (see ``has_fast_bf16``), else
    float32. "4bit" stores the linear layers' weights in 4 bits and computes as "auto" does: a frozen base for adapters
    (QLoRA); it needs bitsandbytes and a CUDA device and has not been run yet. ``attention`` is the name of an attention
    function that transformers knows or that was registered with it. A tokenizer without a pad token pads with EOS: make
    masks from lengths, never from ids.

    Errors: ModelError for whatever cannot be loaded, ConfigError for "4bit" where something that it needs is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if dtype == FOUR_BITS:
        check_four_bits(bitsandbytes=find_spec("bitsandbytes") is not None, cuda=torch.cuda.is_available())
    source = ref if isinstance(ref, Source) else resolve(ref)
    computed = resolve_dtype(dtype)
    storage = four_bits(computed) if dtype == FOUR_BITS else None
    model = _model(AutoModelForCausalLM, source, computed, attention, storage)
    tokenizer = _tokenizer(source)
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"{source.ref}: the tokenizer has no end-of-sequence token, so a model could never learn to stop"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelError(
            f"{source.ref}: the tokenizer has {len(tokenizer)} tokens but the model only {rows} embeddings; they do "
            "not belong together"
        )
    return Loaded(model=model, tokenizer=tokenizer, source=source)


def load_tokenizer(ref: Source | str | Path) -> PreTrainedTokenizerBase:
    """Load a source's tokenizer alone, to count tokens without paying for the weights."""
    return _tokenizer(ref if isinstance(ref, Source) else resolve(ref))


def load_encoder(ref: Source | str | Path = "minilm-l6-v2") -> Loaded:
    """Load a text encoder (BERT and its kin) in float32, without a head.

    The sentence vector that MiniLM was trained for is the mean of the last hidden states over the text's tokens,
    L2-normalised. ``tokenizer.model_max_length`` is what ``sentence_bert_config.json`` says, if there (MiniLM: 256).
    """
    import torch
    from transformers import AutoModel

    source = ref if isinstance(ref, Source) else resolve(ref)
    model = _model(AutoModel, source, torch.float32, "sdpa")
    tokenizer = _tokenizer(source)
    lengths = source.path / "sentence_bert_config.json"
    if lengths.is_file():
        tokenizer.model_max_length = json.loads(lengths.read_text(encoding="utf-8"))["max_seq_length"]
    return Loaded(model=model, tokenizer=tokenizer, source=source)


def resolve_dtype(dtype: str) -> torch.dtype:
    """Return the torch dtype that a setting computes in on this machine; ModelError for an unknown setting."""
    import torch

    if dtype not in DTYPES:
        raise ModelError(f"no dtype {dtype!r}{did_you_mean(dtype, DTYPES)}")
    if dtype in ("auto", FOUR_BITS):
        return torch.bfloat16 if has_fast_bf16() else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


def check_four_bits(*, bitsandbytes: bool, cuda: bool) -> None:
    """Refuse weights in 4 bits, by ConfigError, where what they need is not there."""
    missing = [] if bitsandbytes else ["the package bitsandbytes is not installed"]
    missing += [] if cuda else ["there is no CUDA device"]
    if missing:
        raise ConfigError(f"dtype: weights in 4 bits cannot be had here: {' and '.join(missing)}")


def four_bits(computed: torch.dtype) -> BitsAndBytesConfig:
    """How QLoRA stores a frozen base (Dettmers et al., 2023, section 3): NF4, the scales quantised once more.

    Weights are widened to ``computed`` for every product. The head and the embeddings stay whole. Not run yet: no
    machine with CUDA has been at hand.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=computed
    )


def _model(
    auto: Any, source: Source, dtype: torch.dtype, attention: str, storage: BitsAndBytesConfig | None = None
) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(source.path, trust_remote_code=False)
            _zero_dropout(config)
            model, info = auto.from_pretrained(
                source.path,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                use_safetensors=True,
                **({} if storage is None else {"quantization_config": storage}),
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"{source.ref}: the model in {source.path} cannot be loaded ({_first_line(error)})") from error
    _check_weights(source, info)
    for module in model.modules():
        if type(module).__name__ == "Dropout":
            module.p = 0.0
    return _frozen(model)


def _tokenizer(source: Source) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(source.path, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"{source.ref}: the tokenizer in {source.path} cannot be loaded ({_first_line(error)})"
        ) from error


def _zero_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate of a configuration to 0: modules read some of them only while they are built."""
    for part in {id(c): c for c in (config, config.get_text_config())}.values():
        for name, value in part.to_dict().items():
            if ("drop" in name) and isinstance(value, float):
                setattr(part, name, 0.0)


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    model.requires_grad_(False)
    module: nn.Module = model.eval()
    assert module is model
    return model


def _check_weights(source: Source, info: dict[str, Iterable[Any]]) -> None:
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{source.ref}: {len(missing)} weights are missing in {source.path} and would be random ({missing[0]} ...)"
        )
    if unexpected := sorted(info["unexpected_keys"]):
        warnings.warn(
            f"{source.ref}: {len(unexpected)} weights have no place in the model, left out ({unexpected[0]} ...)",
            stacklevel=4,
        )


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
