"""A tiny random Llama over bytes, made on the spot: for tests, dry runs and machines without network.

2 layers, hidden size 64, 4 heads, 2 key-value heads, tied embeddings, about 0.1 M parameters. Token ids 0-255 are the
bytes of the text's UTF-8, then come ``<|im_start|>`` (256, also BOS), ``<|im_end|>`` (257, EOS) and ``<|pad|>`` (258).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.model.chatml import CHATML, END, START
from trimtab.model.quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import LlamaConfig, PreTrainedTokenizerFast

PAD = "<|pad|>"
NUM_BYTES = 256
CONTEXT_TOKENS = 2048
INIT_STD = 0.02


def make_tiny(folder: Path) -> None:
    """Write the tiny model as a Hugging Face folder in float32; the same bits each time, on every machine."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    config = tiny_config()
    # On the meta device nothing is drawn from torch's global generator, whose state belongs to the caller.
    with quiet(), torch.device("meta"):
        model = LlamaForCausalLM(config)
    weights = {name: _weight(name, tuple(meta.shape)) for name, meta in model.named_parameters()}
    model.load_state_dict(weights, assign=True, strict=False)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    with quiet():
        model.save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)


def tiny_config() -> LlamaConfig:
    """Return the tiny model's configuration."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=NUM_BYTES + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        initializer_range=INIT_STD,
        bos_token_id=NUM_BYTES,
        eos_token_id=NUM_BYTES + 1,
        pad_token_id=NUM_BYTES + 2,
        dtype="float32",
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return the byte tokenizer: one token a byte, three special tokens, ChatML; any text decodes to itself."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {letter: byte for byte, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (START, END, PAD)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHATML,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )


def byte_letters() -> list[str]:
    """Return the printable letter that byte-level tokenizers (GPT-2's) write for each of the 256 bytes."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    letters, num_shifted = [], 0
    for byte in range(NUM_BYTES):
        if byte in printable:
            letters.append(chr(byte))
        else:
            letters.append(chr(NUM_BYTES + num_shifted))
            num_shifted += 1
    return letters


def _weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a fixed weight: ones for norms, else uniform with standard deviation 0.02, from SHAKE-256 of the name.

    A hash and one multiplication give the same bits whatever the CPU or the version of torch or NumPy; their
    generators do not promise that.
    """
    import numpy as np
    import torch

    if len(shape) == 1:
        return torch.ones(shape)
    count = int(np.prod(shape))
    stream = hashlib.shake_256(f"trimtab tiny 1 {name}".encode()).digest(2 * count)
    centred = np.frombuffer(stream, dtype="<u2").astype(np.float32) - np.float32(2**15 - 0.5)
    bound = np.float32(INIT_STD * 3**0.5 / 2**15)  # a uniform on [-b, b] has standard deviation b / sqrt(3)
    return torch.from_numpy((centred * bound).reshape(shape))
