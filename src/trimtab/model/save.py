"""Whole models into Hugging Face folders that transformers, vLLM and llama.cpp load unchanged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.errors import ModelError
from trimtab.model.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from trimtab.model.load import Loaded

LICENCES = ("LICENSE", "LICENSE.txt", "NOTICE", "NOTICE.txt")


def save_full(loaded: Loaded, folder: Path) -> None:
    """Write model, configuration, generation settings, tokenizer and chat template; weights in the dtype they have.

    The source's licence files go along. Files of the same names are overwritten. Publishing by rename is left to the
    caller, whose artifact it is. Raises ModelError for a model with adapters: its base weights would be left out.
    """
    model = loaded.model
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{folder}: the model still carries adapters; merge them first, or save the adapters alone")
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        model.save_pretrained(folder)
    save_tokenizer(loaded.tokenizer, folder)
    for name in LICENCES:
        licence = loaded.source.path / name
        if licence.is_file() and licence.resolve() != (folder / name).resolve():
            shutil.copyfile(licence, folder / name)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the tokenizer and its chat template; adapters need them too, for the same tokens and turns."""
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        tokenizer.save_pretrained(folder)
