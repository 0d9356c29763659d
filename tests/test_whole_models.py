"""A fully trained model goes wherever a model goes: under adapters, into evaluation, a policy, a chat; and it moves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import tiny_stages as tiny
from trimtab.cli import app
from trimtab.config import ModelRef, check_recipe
from trimtab.model.sampler import Sampling
from trimtab.pipeline import find_model, run_recipe
from trimtab.stages.policy import policy

SAMPLING = {"sampling": {"max_tokens": 3}, "base_max_tokens": 3, "limit": 2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Path]:
    """A run: all weights, then an adapter on top, then all weights from that."""
    folder = tmp_path_factory.mktemp("whole")
    data = tiny.demonstrations(folder).source
    settings: dict[str, Any] = {"stage": "sft", "data": data, "epochs": 1, "batch": 3, "lr": 2e-4}
    recipe = {
        "model": str(tiny_model),
        "dtype": "float32",
        "output": str(folder / "runs"),
        "stages": {
            "full": {**settings, "tune": "full"},
            "top": {**settings, "init": "full", "lora": {"rank": 4, "plus": 16}},
            "again": {**settings, "init": "top", "tune": "full"},
            "evaluate": {"models": ["base", "full", "top", "again"], "prompts": data, **SAMPLING},
        },
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield run_recipe(check_recipe(recipe, "whole.yaml", name="small"))


def loss(root: Path, name: str, when: str) -> float:
    return float(json.loads((root / name / "manifest.json").read_text())["metrics"][f"train/loss_{when}"])


def chat(model: Path) -> str:
    result = CliRunner().invoke(app, ["chat", str(model), "max_tokens=3", "temperature=0"], input="Hi\n\n")
    assert result.exit_code == 0, result.output
    return result.stdout


def test_each_stage_starts_where_the_one_before_ended(root: Path) -> None:
    assert loss(root, "top", "before") == pytest.approx(loss(root, "full", "after"), rel=1e-6)
    assert loss(root, "again", "before") == pytest.approx(loss(root, "top", "after"), rel=1e-5)
    assert loss(root, "again", "after") < loss(root, "top", "after") < loss(root, "full", "after")
    report = json.loads((root / "evaluate" / "evaluation.json").read_text())
    assert report["models"] == ["base", "full", "top", "again"]


def test_no_manifest_says_where_the_run_is(root: Path) -> None:
    bases = {name: json.loads((root / name / "manifest.json").read_text())["base"] for name in ("full", "top", "again")}
    assert bases == {
        "full": "artifact:.", "top": f"artifact:../{(root / 'full').resolve().name}", "again": "artifact:."
    }  # fmt: skip
    for path in (root / "full").glob("*config.json"):
        assert str(root) not in path.read_text()


def test_a_policy_starts_at_a_whole_model_and_keeps_to_it(root: Path, tiny_model: Path, tmp_path: Path) -> None:
    import torch

    weight = 0.1 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    reward = tiny.hand_made_reward(tmp_path / "toy", tiny_model, weight)
    init = find_model(str(root / "full"), "full")
    result = policy(
        tiny.make_run(tmp_path, "policy"), init=init, reward=reward,
        prompts=tiny.prompts(tmp_path), steps=2, batch=2, answers=2, lr=1e-2, sampling=Sampling(max_tokens=4),
        critic=tiny.NO_WARMUP, lora=tiny.LORA,
    )  # fmt: skip
    assert result.base == init.base == str((root / "full").resolve())
    first, second = tiny.metrics(tmp_path)
    assert first["rollout/kl"] == pytest.approx(0, abs=1e-7)
    assert second["rollout/kl"] != pytest.approx(0, abs=1e-7)
    assert result.metrics["memory/trunks"] == 2  # the reward model is on another base


def test_chat_and_a_run_that_has_moved(root: Path, tmp_path: Path) -> None:
    said = [chat(root / name) for name in ("full", "top", "again")]
    assert all("model: " in text for text in said)
    (tmp_path / "elsewhere").mkdir()
    moved = root.rename(tmp_path / "elsewhere" / "small")
    try:
        assert [chat(moved / name) for name in ("full", "top", "again")] == said
        found = find_model(str(moved / "top"), "top")
        assert isinstance(found, ModelRef)
        assert found.base == str((moved / "full").resolve())
    finally:
        moved.rename(root)
