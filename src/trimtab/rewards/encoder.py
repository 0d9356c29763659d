"""Sentence vectors from a small text encoder: the mean of the last hidden states over a text's tokens, of length one.

N texts, T tokens, D the encoder's width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trimtab.errors import ModelError

if TYPE_CHECKING:
    from trimtab.model.load import Loaded
    from trimtab.model.source import Source

Encode = Callable[[Sequence[str]], NDArray[np.float64]]
"""Texts in, one vector of length one for each out: (N, D)."""

FORMAT = 1  # raise when the same texts would get other vectors
FILE = "vectors.npy"
LONGEST_WINDOW = 512
BATCH_TOKENS = 4096


def encoder(ref: Source | str | Path = "minilm-l6-v2") -> Encode:
    """Return a function from texts to sentence vectors, (N, D), rows of Euclidean length one.

    v = sum_t m_t h_t / sum_t m_t, then v / |v|: the attention mask m (special tokens included, as Sentence-BERT pools,
    Reimers and Gurevych 2019) over the last hidden states h. Float32 on the model's device, no gradient, equal texts
    computed once, batches sorted by length.

    Nothing is truncated: a text longer than the encoder's window (MiniLM: 256 tokens) is cut into windows, each is
    encoded by itself, and the mean goes over the tokens of all of them. An empty text has the vector of its special
    tokens; no texts give (0, D). Raises ModelError when the encoder cannot be loaded.
    """
    from trimtab.model.load import load_encoder

    loaded = load_encoder(ref)
    window = _window(loaded)

    def encode(texts: Sequence[str]) -> NDArray[np.float64]:
        row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        vectors = _vectors(loaded, list(row), window)
        return vectors[[row[text] for text in texts]].astype(np.float64)

    return encode


def remembered(encode: Encode, identity: str) -> Encode:
    """Return the same encoder, which keeps on disk what it computes: for texts that will be encoded again.

    ``identity`` names the encoder's weights. One file in the cache for each list of texts that it is called with.
    """
    from trimtab.model.cache import cache_folder, made_once

    def encode_once(texts: Sequence[str]) -> NDArray[np.float64]:
        key = hashlib.sha256(json.dumps([FORMAT, identity, list(texts)]).encode()).hexdigest()
        folder = cache_folder() / "embeddings" / key[:32]
        made_once(folder, lambda work: np.save(work / FILE, encode(texts), allow_pickle=False), origin={"key": key})
        vectors: NDArray[np.float64] = np.load(folder / FILE, allow_pickle=False)
        return vectors

    return encode_once


def _window(loaded: Loaded) -> int:
    """Tokens that the encoder takes at once, special ones included."""
    positions = int(getattr(loaded.model.config, "max_position_embeddings", LONGEST_WINDOW))
    size = min(int(loaded.tokenizer.model_max_length), positions, LONGEST_WINDOW)
    if size <= int(loaded.tokenizer.num_special_tokens_to_add()):
        raise ModelError(f"{loaded.source.ref}: its window of {size} tokens holds no text; is it a text encoder?")
    return size


def _vectors(loaded: Loaded, texts: list[str], window: int) -> NDArray[np.float32]:
    """Encode distinct texts, (N, D)."""
    import torch

    model, pad = loaded.model, loaded.tokenizer.pad_token_id or 0
    if not texts:
        return np.zeros((0, model.config.hidden_size), dtype=np.float32)
    cut = loaded.tokenizer(texts, truncation=True, max_length=window, return_overflowing_tokens=True)
    pieces: list[tuple[int, list[int]]] = list(zip(cut["overflow_to_sample_mapping"], cut["input_ids"], strict=True))
    sums = torch.zeros(len(texts), model.config.hidden_size)  # (N, D)
    for batch in _batches(pieces):
        longest = max(len(ids) for _, ids in batch)
        ids = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for _, ids in batch], device=model.device)  # (B, T)
        mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for _, ids in batch], device=model.device)
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (B, T, D)
            sums.index_add_(0, torch.tensor([row for row, _ in batch]), (hidden * mask[..., None]).sum(1).cpu())
    # Dividing by the number of tokens would change only the length, which the normalisation takes away anyhow.
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(sums, dim=-1).numpy()
    return vectors


def _batches(pieces: list[tuple[int, list[int]]]) -> Iterator[list[tuple[int, list[int]]]]:
    """Batches of at most ``BATCH_TOKENS`` padded tokens (at least one piece), shortest first: little is padding."""
    batch: list[tuple[int, list[int]]] = []
    for piece in sorted(pieces, key=lambda piece: len(piece[1])):
        if batch and len(piece[1]) * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch
