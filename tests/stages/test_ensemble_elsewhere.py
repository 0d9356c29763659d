"""Members from another run: policies by their own reward too, with the model that they are measured from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import ModelRef, check_recipe
from trimtab.errors import ConfigError, ModelError
from trimtab.pipeline import find_model, run_recipe
from trimtab.records.read import read_groups
from trimtab.records.types import Group
from trimtab.rewards.ensemble import Ensemble
from trimtab.rewards.scorer import open_scorer
from trimtab.stages.ensemble import ensemble

SELF_CONTAINED = ("sft", "dpo", "from_base", "simpo", "on_whole")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Another run: preferences from the base, from an adapter, from a whole model, and a reward model on that."""
    folder = tmp_path_factory.mktemp("other")
    pairs, texts = tiny.preferences(folder).source, tiny.demonstrations(folder).source
    lora = {"rank": 4, "alpha": 8}
    common: dict[str, Any] = {"data": pairs, "batch": 3, "lora": lora, "lr": 1e-2}
    recipe = {
        "model": str(tiny_model), "dtype": "float32", "output": str(folder / "runs"),
        "stages": {
            "sft": {"data": texts, "epochs": 1, "batch": 3, "lora": lora},
            "whole": {"stage": "sft", "data": texts, "epochs": 1, "batch": 3, "tune": "full", "lr": 1e-4},
            "dpo": {**common, "stage": "preference", "init": "sft", "beta": 0.3},
            "from_base": {**common, "stage": "preference"},
            "simpo": {**common, "stage": "preference", "method": "simpo", "init": "sft"},
            "on_whole": {**common, "stage": "preference", "init": "whole"},
            "reward": {**common, "init": "whole"},
            "both": {"stage": "ensemble", "members": ["dpo", "simpo"], "data": pairs},
        },
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        return run_recipe(check_recipe(recipe, "other.yaml", name="other"))


def groups_of(root: Path) -> list[Group]:
    return list(read_groups(str(root.parent.parent / "preferences.jsonl")).groups)


def make(folder: Path, other: Path, *names: str) -> ModelRef:
    """An ensemble in a run of its own, of members from the other run."""
    work = folder / "run" / ".work" / "made"
    members = tuple(find_model(str(other / name), name) for name in names)
    result = ensemble(tiny.make_run(work, "ensemble"), members=members, data=tiny.preferences(folder))
    assert result.base is not None
    return tiny.finished(work, "ensemble", "ensemble", result.base)


def standard(scores: list[list[float]]) -> torch.Tensor:
    flat = torch.tensor([score for row in scores for score in row], dtype=torch.float64)
    return (flat - flat.mean()) / flat.std(correction=0)


def test_policies_of_another_run_are_members(tmp_path: Path, other: Path) -> None:
    names = (*SELF_CONTAINED, "reward")
    made, groups = make(tmp_path, other, *names), groups_of(other)
    alone = [open_scorer(find_model(str(other / name), name), dtype="float32").score(groups) for name in names]
    opened = Ensemble.open(made, dtype="float32")
    for row, scores in zip(opened.read(groups), alone, strict=True):
        assert row.tolist() == pytest.approx(standard(scores).tolist(), abs=1e-3)
    assert made.artifact is not None
    starts = sorted(path.name.split("-")[0] for path in (made.artifact.folder / "members").iterdir())
    assert starts == ["0", "1", "2", "3", "4", "5", "base", "base"]  # sft for dpo, whole for on_whole


def test_they_need_their_run_no_longer(tmp_path: Path, other: Path) -> None:
    made, groups = make(tmp_path, other, *SELF_CONTAINED), groups_of(other)
    before = open_scorer(made, dtype="float32").score(groups)
    away = other.rename(tmp_path / "away")
    try:
        opened = Ensemble.open(made, dtype="float32")
        assert opened.score(groups) == before
        assert len(opened.trunks) == 2  # the tiny model, and the whole one with its adapter
    finally:
        away.rename(other)


def test_an_ensemble_of_another_run_is_refused(tmp_path: Path, other: Path) -> None:
    with pytest.raises(ConfigError, match=r"an ensemble of another run leans on its own members there; name those"):
        make(tmp_path, other, "both", "dpo")


def test_a_member_whose_start_is_gone_is_refused(tmp_path: Path, other: Path) -> None:
    start = (other / "sft").resolve()
    start.rename(tmp_path / "sft")
    try:
        with pytest.raises(ModelError, match=r"what its training started from .'sft'. is not to be found"):
            make(tmp_path, other, "dpo", "from_base")
    finally:
        (tmp_path / "sft").rename(start)


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path, other: Path) -> None:
    data = tiny.preferences(tmp_path)
    path = Path(data.source)
    path.write_text(path.read_text() + '{"id": "bad", "prompt": 3}\n')
    run = tiny.make_run(tmp_path / "made", "ensemble")
    members = tuple(find_model(str(other / name), name) for name in ("sft", "simpo"))
    ensemble(run, members=members, data=data)
    assert any("preferences.jsonl: 1 of 7 rows cannot be read (the first: " in note for note in run.notes)
