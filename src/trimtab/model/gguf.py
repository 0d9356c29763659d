"""GGUF files into Hugging Face folders, through transformers' own reading of GGUF.

Three things are put right on the way. ``save_pretrained`` refuses a model that came from a GGUF file, so the model is
rebuilt from its configuration without the trace of it. Transformers (5.23) rebuilds byte-level tokenizers without the
digit splitting that some vocabularies were learned with (SmolLM's among them), which changes the tokens of every
numbered list ("\\n\\n1."). And it adds GPT-2's ``<|endoftext|>`` to vocabularies that lack it, past the last embedding.
"""

from __future__ import annotations

import json
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ModelError
from trimtab.model.cache import file_digest, made_once, models_folder
from trimtab.model.quiet import quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FORMAT = 1  # raise it when a conversion would come out differently: cached folders are named after it
MAGIC = b"GGUF"

# llama.cpp's names for ways to split text before byte-level merges (src/llama-vocab.cpp). GPT-2's rule alone:
PLAIN_SPLITS = frozenset({"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"})
# ... and GPT-2's rule after each digit has been split off:
DIGIT_SPLITS = frozenset({"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a GGUF file says of itself: architecture, tokenizer, lengths, and the float type to keep its weights in."""

    architecture: str
    tokenizer: str | None
    splits: str | None
    num_tokens: int
    context_tokens: int | None
    dtype: torch.dtype


def folder_of_gguf(path: Path) -> tuple[Path, str]:
    """Return the Hugging Face folder of a GGUF file and the file's digest, converting it at the first call.

    The folder lies in the cache under the file's digest, so a moved or renamed file is not converted again. Raises
    ModelError for a file that is not GGUF, is cut short, or has an architecture or tokenizer that cannot be rebuilt.
    """
    digest = file_digest(path)
    folder = models_folder() / f"gguf-{digest[:16]}-{FORMAT}"
    made_once(folder, lambda work: convert_gguf(path, work), origin={"gguf": path.name, "digest": digest})
    return folder, digest


def convert_gguf(path: Path, folder: Path, *, chat_template: str | None = None, pad_token: str | None = None) -> None:
    """Write a GGUF file's model, tokenizer, chat template and generation settings as a Hugging Face folder.

    Quantised files become bfloat16; files of floats keep their own type. ``chat_template`` and ``pad_token`` replace
    the file's own.
    """
    header = read_header(path)
    with quiet(), _without_bar(), _explained(path, header):
        tokenizer = _tokenizer(path, header)
        model = _model(path, header)
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if pad_token is not None:
        tokenizer.pad_token = pad_token
        model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    if header.context_tokens is not None:
        tokenizer.model_max_length = header.context_tokens
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def read_header(path: Path) -> Header:
    """Read a GGUF file's metadata without its tensors, and refuse what cannot be converted."""
    import torch
    from transformers.integrations.gguf import GGUF_CONFIG_ARCHS, GgufHeader, read_gguf_metadata
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    try:
        metadata, _ = read_gguf_metadata(str(path))
        architecture = str(metadata["general.architecture"])
        known = sorted({*GGUF_CONFIG_ARCHS, *GGUF_SUPPORTED_ARCHITECTURES})
        if architecture not in known:
            raise ModelError(
                f"{path}: GGUF architecture {architecture!r} is not one that transformers can read; give the model's "
                f"Hugging Face folder or id instead (readable: {', '.join(known)})"
            )
        dtype = GgufHeader.from_file(str(path)).dtype
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ModelError(f"{path}: the GGUF file cannot be read, it may be cut short ({error})") from error
    header = Header(
        architecture=architecture,
        tokenizer=metadata.get("tokenizer.ggml.model"),
        splits=metadata.get("tokenizer.ggml.pre"),
        num_tokens=int(metadata.get("tokenizer.ggml.tokens", 0)),
        context_tokens=metadata.get(f"{architecture}.context_length"),
        dtype=dtype or torch.bfloat16,
    )
    _check_splits(path, header)
    return header


def _check_splits(path: Path, header: Header) -> None:
    """Refuse a byte-level vocabulary whose text splitting nobody here knows: its tokens would be subtly wrong."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    if header.tokenizer == "gpt2" and header.splits not in PLAIN_SPLITS | DIGIT_SPLITS | set(GGUF_PRE_TOKENIZER_SPLITS):
        raise ModelError(
            f"{path}: the GGUF file's tokenizer splits text by {header.splits or 'an unnamed rule'!r}, which cannot be "
            "rebuilt exactly; give the model's Hugging Face folder or id instead"
        )


def _tokenizer(path: Path, header: Header) -> PreTrainedTokenizerBase:
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    if header.splits in DIGIT_SPLITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    if len(tokenizer) <= header.num_tokens:
        return tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < header.num_tokens]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        chat_template=tokenizer.chat_template,
        add_bos_token=tokenizer.init_kwargs.get("add_bos_token", False),
        add_eos_token=tokenizer.init_kwargs.get("add_eos_token", False),
        **tokenizer.special_tokens_map,
    )


def _model(path: Path, header: Header) -> PreTrainedModel:
    """Load the weights unpacked, and put them into a model that knows nothing of GGUF."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    read = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        dtype=header.dtype,
        quantization_config=GgufConfig(
            dequantize=True
        ),  # else weights stay packed where a kernel for them is installed
        trust_remote_code=False,
    )
    settings = read.config.to_dict()
    for trace in ("quantization_config", "_model_name_or_path", "_name_or_path"):
        settings.pop(trace, None)
    config = type(read.config).from_dict(settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=header.dtype, trust_remote_code=False)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    model.generation_config._from_model_config = False  # else it is made again from the configuration at each load
    return model


@contextmanager
def _without_bar() -> Iterator[None]:
    """Turn off the one progress bar that asks neither transformers' settings nor the log's level."""
    from functools import partial

    from transformers import modeling_gguf_pytorch_utils as reader

    bar = reader.tqdm
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar


@contextmanager
def _explained(path: Path, header: Header) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, IndexError, OSError, RuntimeError, NotImplementedError) as error:
        raise ModelError(
            f"{path}: this GGUF file ({header.architecture}) cannot be converted ({error}); give the model's Hugging "
            "Face folder or id instead"
        ) from error
