"""What the frozen reference thinks of a data set: computed once, kept on disk, reused by every method and seed.

The numbers of one start and one data set never change, so a stage that compares with a reference runs it over its data
once instead of at every step, and a second method from the same start does not run it at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.model.cache import cache_folder, made_once
from trimtab.model.trunk import Trunk
from trimtab.tensors.tree import TokenGroup, pack, split_by_tokens
from trimtab.train.run import Run

FORMAT = 1  # raise when the same model and tokens would give other numbers: a template, a mask, a precision
FILE = "logps.safetensors"
PLACES = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
"""What an adapter's configuration says of where it lies and who wrote it: no number depends on it."""


def reference_logps(
    run: Run, trunk: Trunk, adapter: str | None, tokens: Sequence[TokenGroup], *, micro_tokens: int
) -> list[Tensor]:
    """Log-probability of every answer under an adapter (``None``: the bare base): a tensor (k,) for each Group.

    Sums over the answer's trained tokens, in nats, at temperature 1, float32 at least. Read from the cache when the
    same model has seen the same tokens before, in this or any other run. How they were cut into micro-batches is no
    part of the key: it moves a sum by rounding alone.
    """
    key = _digest(trunk, adapter, tokens)
    folder = cache_folder() / "reference" / key[:32]

    def make(work: Path) -> None:
        run.note(f"the reference reads {sum(len(item.answers) for item in tokens)} answers, once")
        save_file({"logps": torch.cat(answer_logps(trunk, adapter, tokens, micro_tokens=micro_tokens))}, work / FILE)

    made_once(folder, make, origin={"base": trunk.loaded.source.digest, "tokens": str(sum(map(len, tokens)))})
    return list(load_file(folder / FILE)["logps"].split([len(item.answers) for item in tokens]))


@torch.no_grad()
def answer_logps(
    trunk: Trunk, adapter: str | None, tokens: Sequence[TokenGroup], *, micro_tokens: int, temperature: float = 1.0
) -> list[Tensor]:
    """Log-probability of every answer, a tensor (k,) for each Group: sums over trained tokens, nats; no gradient."""
    found: list[Tensor] = []
    with trunk.using(adapter):
        for cut in split_by_tokens(tokens, micro_tokens):
            items = [tokens[i] for i in cut]
            batch = pack(items).to(trunk.device)
            sums = batch.sum_by_answer(trunk.logps(batch, temperature=temperature)[0]).cpu()
            found += sums.split([len(item.answers) for item in items])
    return found


def _digest(trunk: Trunk, adapter: str | None, tokens: Sequence[TokenGroup]) -> str:
    """The identity of (base, adapter's weights and configuration, precision, device, libraries, tokens)."""
    about: list[object] = [FORMAT, torch.__version__, transformers.__version__, trunk.loaded.source.digest]
    about += [str(trunk.dtype), trunk.quantised, trunk.device.type, adapter is None]
    digest = hashlib.sha256(f"{about}\n".encode())
    if adapter is not None:
        assert trunk.peft is not None
        config = {k: v for k, v in trunk.peft.peft_config[adapter].to_dict().items() if k not in PLACES}
        digest.update(json.dumps(config, sort_keys=True, default=_plain).encode())
        for name, parameter in trunk.peft.named_parameters():
            parts = name.split(".")
            if adapter in parts:  # whatever kind of layer it is
                parts.remove(adapter)
                digest.update(f"{parts} {tuple(parameter.shape)}\n".encode())
                digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    for item in tokens:
        digest.update(repr((item.prompt, item.answers, item.trained)).encode())
    return digest.hexdigest()


def _plain(value: object) -> object:
    """What JSON has no word for: names of layers come as a set, whose order differs from process to process."""
    return sorted(value) if isinstance(value, (set, frozenset)) else str(value)
