"""A base and two adapters on it as artifacts, and a server of all three in a process of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from serving_process import SERVE_MODEL, SLOTS, WAITING, WINDOW, Server
from trimtab.model.tiny import make_tiny
from trimtab.model.trunk import Lora, Trunk

EOS = 257


@pytest.fixture(scope="session")
def served_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``base`` never ends an answer when it is greedy: its end token's logit is 0, and some other is above."""
    root = tmp_path_factory.mktemp("served")
    make_tiny(root / "base")
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    with torch.no_grad():
        weight = model.get_input_embeddings().weight
        weight *= 5
        weight[EOS] = 0
    model.config.max_position_embeddings = 2 * WINDOW  # its positions are rotations: any number will do
    model.save_pretrained(root / "base")
    trunk = Trunk.load(root / "base", dtype="float32")
    for seed, name in enumerate(("red", "blue")):
        trunk.add_adapter(name, Lora(rank=4, alpha=8), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        for parameter in trunk.adapter_parameters(name):
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
        trunk.save_adapter(name, root / name)
        manifest = {"name": name, "stage": "sft", "key": f"{name}{seed}".ljust(64, "0"), "base": str(root / "base")}
        (root / name / "manifest.json").write_text(json.dumps(manifest))
    return {name: root / name for name in ("base", "red", "blue")}


@pytest.fixture(scope="session")
def server(served_models: dict[str, Path]) -> Iterator[Server]:
    """All three models, few slots, a short window."""
    words = [str(served_models["red"]), f"plain={served_models['base']}", str(served_models["blue"])]
    options = {"port": 0, "slots": SLOTS, "waiting": WAITING, "window": WINDOW, "dtype": "float32"}
    with Server(
        [*SERVE_MODEL, *words, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
    ) as started:
        yield started
        started.process.terminate()
        assert started.process.wait(timeout=120) == 0


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=200) as made:
        yield made
    assert server.settled(), "a test left answers behind"
