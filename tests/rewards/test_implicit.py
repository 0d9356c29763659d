"""A policy's own reward: against single answers by hand, and how the reference is found again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_stages as tiny
from trimtab.artifacts import read_artifact
from trimtab.config import ModelRef, check_recipe
from trimtab.errors import ModelError
from trimtab.model.trunk import Trunk
from trimtab.pipeline import find_model, run_recipe
from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Group
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.rewards.best_of import best_of
from trimtab.rewards.implicit import ImplicitReward, find_start, reference_beta
from trimtab.stages._preference import Objective
from trimtab.tensors.tree import TokenGroup, pack

LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Preference stages from the base, from an adapter, with all weights, and without a reference."""
    folder = tmp_path_factory.mktemp("implicit")
    pairs, texts = tiny.preferences(folder).source, tiny.demonstrations(folder).source
    common: dict[str, Any] = {"stage": "preference", "data": pairs, "batch": 3, "lr": 1e-2}
    recipe = {
        "model": str(tiny_model), "dtype": "float32", "output": str(folder / "runs"),
        "stages": {
            "sft": {"data": texts, "epochs": 1, "batch": 3, "lora": LORA},
            "from_base": {**common, "lora": LORA, "beta": 0.3},
            "from_sft": {**common, "init": "sft", "lora": LORA},
            "full": {**common, "tune": "full", "lr": 1e-3},
            "full_from_sft": {**common, "init": "sft", "tune": "full", "lr": 1e-3},
            "simpo": {**common, "method": "simpo", "lora": LORA},
        },
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        return run_recipe(check_recipe(recipe, "implicit.yaml", name="run"))


def opened(root: Path, name: str) -> ModelRef:
    return find_model(str(root / name), name)


def groups_of(root: Path) -> list[Group]:
    return list(read_groups(str(root.parent.parent / "preferences.jsonl")).groups)


def alone(model: ModelRef, group: Group) -> list[tuple[float, int]]:
    """Each answer's log-probability and its tokens, by itself, from the logits of a fresh trunk."""
    trunk, adapter = Trunk.open(model, dtype="float32")
    item = trunk.chat.group(group)
    found = []
    with torch.no_grad(), trunk.using(adapter):
        for answer in item.answers:
            hidden = trunk.hidden(pack([TokenGroup(prompt=item.prompt, answers=(answer,))]))
            before = hidden[len(item.prompt) - 1 : -1]
            logps = trunk.head.logits(before).log_softmax(-1)[torch.arange(len(answer)), torch.tensor(answer)]
            found.append((float(logps.sum()), len(answer)))
    return found


@pytest.mark.parametrize(
    ("name", "start", "beta"),
    [("from_base", "base", 0.3), ("from_sft", "sft", 0.1), ("full", "base", 0.1), ("full_from_sft", "sft", 0.1)],
)
def test_beta_times_the_log_ratio(root: Path, name: str, start: str, beta: float, tiny_model: Path) -> None:
    scorer = ImplicitReward.open(opened(root, name), dtype="float32")
    reference = tiny.base(tiny_model) if start == "base" else opened(root, "sft")
    for group in groups_of(root)[::2]:
        pairs = zip(alone(opened(root, name), group), alone(reference, group), strict=True)
        assert scorer.score([group])[0] == pytest.approx([beta * (a - b) for (a, _), (b, _) in pairs], abs=1e-4)
    assert len(scorer.trunks) == (2 if name.startswith("full") else 1)
    assert any(abs(score) > 1e-3 for row in scorer.score(groups_of(root)) for score in row)


@pytest.mark.parametrize("name", ["simpo", "sft"])
def test_without_a_reference_it_is_the_mean_over_tokens(root: Path, name: str) -> None:
    scorer = ImplicitReward.open(opened(root, name), dtype="float32")
    assert scorer.reference is None
    for group in groups_of(root)[::2]:
        wanted = [total / tokens for total, tokens in alone(opened(root, name), group)]
        assert scorer.score([group])[0] == pytest.approx(wanted, abs=1e-4)


def test_the_reward_in_use_is_the_one_that_the_stage_reports(root: Path) -> None:
    """For every method in the folder: the same question whether there is a reference, the same beta."""
    for name, entry in PREFERENCE_LOSSES.items():
        objective = Objective(entry, {key: option.default for key, option in entry.options.items()})
        beta = reference_beta({"stage": "preference", "config": {"method": name}})
        assert (beta is not None) == objective.needs_reference, name
        assert beta is None or beta == objective.beta, name
    assert reference_beta({"stage": "sft", "config": {"method": "dpo"}}) is None
    assert reference_beta({"stage": "preference", "config": {"method": "dpo", "beta": 0.7}}) == 0.7


def edited(root: Path, tmp_path: Path, name: str, **changes: Any) -> Any:
    """A copy of an artifact in a run of its own, with another manifest; ``None`` takes a key out."""
    folder = tmp_path / "run" / "artifacts" / f"{name}-x"
    shutil.copytree((root / name).resolve(), folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= changes
    kept = {key: value for key, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(kept))
    return read_artifact(folder)


def test_the_start_of_an_older_artifact_is_in_the_runs_summary(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    old = edited(root, tmp_path, "full", model=None)
    with pytest.raises(ModelError, match="what its training started from"):
        find_start(old)
    (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe": {"model": str(tiny_model)}}))
    assert find_start(old).base == str(tiny_model)


def test_another_model_in_the_starts_place_is_refused(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    assert find_start(edited(root, tmp_path / "a", "from_base")).base == str(tiny_model)
    with pytest.raises(ModelError, match="keep the run's folder whole"):
        find_start(edited(root, tmp_path / "b", "from_base", inputs={"base": "0" * 64}))
    with pytest.raises(ModelError, match="'sft'"):  # the adapter that it started from does not stand beside it
        find_start(edited(root, tmp_path / "c", "from_sft"))


def test_the_best_of_some() -> None:
    group = Group(id="g", answers=tuple(Answer(text=text) for text in "abc"))
    bare = Group(id="bare")
    best, same = best_of([group, bare], [[0.5, 2.0, 2.0], []], rater="reward:x")
    assert [answer.text for answer in best.answers] == ["b"]
    (verdict,) = best.verdicts
    assert verdict.values == {"reward": 2.0}  # type: ignore[union-attr]
    assert same is bare
