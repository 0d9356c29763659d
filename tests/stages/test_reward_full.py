"""A reward model whose every weight is trained: the artifact is a whole model, and it scores wherever one is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny_stages as tiny
from trimtab.config import check_recipe
from trimtab.errors import ConfigError
from trimtab.pipeline import find_model, run_recipe
from trimtab.records.read import read_groups
from trimtab.rewards.scorer import open_scorer
from trimtab.stages.reward import reward


def test_all_weights_are_trained_and_scores_are_standardised(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.preferences(tmp_path)
    recipe = {
        "model": str(tiny_model), "dtype": "float32", "output": str(tmp_path / "runs"),
        "stages": {"reward": {"data": data.source, "tune": "full", "lr": 1e-3, "epochs": 8, "batch": 6}},
    }  # fmt: skip
    root = run_recipe(check_recipe(recipe, "here", name="small"))
    model = find_model(str(root / "reward"), "reward")
    assert model.artifact is not None
    assert model.artifact.whole
    assert not (model.artifact.folder / "adapter_config.json").exists()
    rows = tiny.metrics(root / "reward")
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] == pytest.approx(0.693147, abs=1e-5)
    before, after = load_file(tiny_model / "model.safetensors"), load_file(root / "reward" / "model.safetensors")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    groups = read_groups(data.source).groups
    scores = torch.tensor([score for row in open_scorer(model, dtype="float32").score(groups) for score in row])
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-4)


def test_an_adapters_rate_is_said_and_its_shape_refused(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.preferences(tmp_path)
    run = tiny.make_run(tmp_path / "a", "reward")
    reward(run, data=data, init=tiny.base(tiny_model), tune="full", batch=6)
    assert any("lr 0.0001 is an adapter's rate" in note for note in run.notes)
    with pytest.raises(ConfigError, match="lora would change nothing"):
        reward(
            tiny.make_run(tmp_path / "b", "reward"), data=data, init=tiny.base(tiny_model), tune="full", lora=tiny.LORA
        )


def test_a_recipe_is_checked_for_its_loss_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^here: stages\.reward\.loss: no reward loss 'mes'; did you mean 'mse'\?$"):
        check_recipe({"stages": {"reward": {"data": "d", "loss": "mes"}}}, "here")
    with pytest.raises(ConfigError, match=r"stages\.reward: no option 'probability'"):
        check_recipe({"stages": {"reward": {"data": "d", "probability": 1.0}}}, "here")
