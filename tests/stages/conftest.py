"""What the tests of the policy stage start from: a reward by hand, a tuned model, prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.model.tiny import make_tiny
from trimtab.stages.sft import sft


@pytest.fixture(scope="session")
def toy_reward(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ModelRef:
    return tiny.hand_made_reward(
        tmp_path_factory.mktemp("toy"), tiny_model, 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    )


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> ModelRef:
    """A model with an adapter of its own to start from."""
    folder = tmp_path_factory.mktemp("sft")
    data = tiny.demonstrations(folder)
    sft(tiny.make_run(folder, "sft"), data=data, init=tiny.base(tiny_model), epochs=3, batch=3, lr=1e-2, lora=tiny.LORA)
    return tiny.finished(folder, "sft", "sft", str(tiny_model))


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataRef:
    return tiny.prompts(tmp_path_factory.mktemp("prompts"))


@pytest.fixture(scope="session")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger embeddings: its own logits are too flat for an adapter to choose among tokens."""
    folder = tmp_path_factory.mktemp("lively")
    make_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 5
    model.save_pretrained(folder)
    return folder
