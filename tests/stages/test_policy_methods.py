"""Every online method on the tiny model: it runs, learns what it should, and refuses what it cannot do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import check_recipe
from trimtab.errors import ConfigError
from trimtab.model.sampler import Sampled
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.stages._compare import Comparison
from trimtab.stages._imitate import kept_answers
from trimtab.stages._methods import METHODS, ROWS
from trimtab.stages._online_settings import Keep
from trimtab.stages._rollout import Sample
from trimtab.stages.policy import policy
from trimtab.tensors.tree import TokenGroup

LETTERS = {"regex": {"pattern": "[a-z]"}}  # which about half of the random model's answers have

NO_END = {"eos": "none"}  # it ends hardly any of its answers


def settings(prompts: str, **given: Any) -> dict[str, Any]:
    """A policy stage's settings, checked and filled in as a recipe's are."""
    told = {
        "rules": LETTERS, "prompts": prompts, "steps": 2, "batch": 3, "answers": 2, "lr": 1e-2,
        "sampling": {"max_tokens": 6}, "lora": {"rank": 4, "alpha": 8}, **given,
    }  # fmt: skip
    checked = check_recipe({"model": "tiny", "stages": {"policy": told}}, "r").stages["policy"].settings
    return {**checked, "prompts": tiny.DataRef(prompts), "init": None}


def train(folder: Path, model: Path, **given: Any) -> list[dict[str, float]]:
    source = tiny.prompts(folder)
    told = settings(source.source, **given) | {"init": tiny.base(model), "reward": None}
    policy(tiny.make_run(folder / "policy", "policy"), **told)
    return tiny.metrics(folder / "policy")


def changed(folder: Path) -> bool:
    """Tell whether the adapter that was saved does anything."""
    return any(tensor.any() for name, tensor in tiny.weights(folder / "policy").items() if "lora_B" in name)


@pytest.mark.parametrize("method", [name for name in METHODS if not name.startswith("online_")])
def test_every_method_runs_and_learns(method: str, tmp_path: Path, tiny_model: Path) -> None:
    given: dict[str, Any] = {"method": method, "shaping": NO_END}
    if METHODS[method].critic:
        given["critic"] = {"warmup": 1}
    rows = train(tmp_path, tiny_model, answers=4, **given)
    assert rows[0].get("rollout/kl", 0.0) == 0.0
    assert all(0 <= row["rollout/score"] <= 1 for row in rows if "rollout/score" in row)
    assert all(row["policy/ratio"] == 1.0 for row in rows if "policy/ratio" in row)  # one update a step
    assert changed(tmp_path)


@pytest.mark.parametrize("loss", sorted(PREFERENCE_LOSSES))
def test_every_preference_loss_learns_online(loss: str, tmp_path: Path, tiny_model: Path) -> None:
    rows = train(tmp_path, tiny_model, method=f"online_{loss}", answers=4, shaping=NO_END)
    assert changed(tmp_path)
    assert any("train/loss" in row for row in rows)
    assert rows[0]["rollout/compared"] > 0


def test_online_dpo_starts_at_ln_2_and_with_the_previous_reference_every_round_does(
    tmp_path: Path, tiny_model: Path
) -> None:
    for reference in ("initial", "previous"):
        folder = tmp_path / reference
        rows = train(
            folder,
            tiny_model,
            method="online_dpo",
            answers=4,
            steps=4,
            compare={"reference": reference, "options": {"beta": 0.5}},
        )
        losses = [row["train/loss"] for row in rows if "train/loss" in row]
        assert losses[0] == pytest.approx(0.6931, abs=1e-4)
        later = [abs(loss - 0.6931) for loss in losses[1:]]
        assert later
        assert max(later) < 1e-4 if reference == "previous" else max(later) > 1e-3


def test_dr_grpo_is_grpo_without_division(tmp_path: Path, tiny_model: Path) -> None:
    """The defaults of a row are what the recipe could have said, and what a recipe says wins."""
    assert settings("p", method="dr_grpo")["kl"].beta == 0.0
    assert settings("p", method="dr_grpo", kl={"beta": 0.1})["kl"].beta == 0.1
    gspo = settings("p", method="gspo", clip={"low": 0.1})["clip"]
    assert (gspo.low, gspo.high, gspo.importance) == (0.1, 4e-4, 2.0)
    assert settings("p", method="remax").get("answers") == 2  # said above
    assert settings("p", method="dapo")["keep"].how == "mixed"


def test_prompts_that_teach_nothing_are_passed_over_and_change_no_gradient(tmp_path: Path, tiny_model: Path) -> None:
    """Without a KL term only prompts whose answers differ are read; with a tiny beta all are, to the same end."""
    told: dict[str, Any] = {"method": "grpo", "steps": 1, "answers": 2, "batch": 6, "shaping": NO_END}
    skipped = train(tmp_path / "a", tiny_model, kl={"beta": 0.0}, **told)
    read = train(tmp_path / "b", tiny_model, kl={"beta": 1e-12}, **told)
    assert 0 < skipped[0]["rollout/skipped"] < 1
    assert "rollout/skipped" not in read[0]
    assert skipped[0]["train/grad_norm"] == pytest.approx(read[0]["train/grad_norm"], rel=1e-4)
    assert skipped[0]["rollout/score"] == read[0]["rollout/score"]
    mine, theirs = (tiny.weights(tmp_path / x / "policy") for x in "ab")
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-5, rtol=1e-3)


def test_when_nothing_teaches_nothing_is_changed(tmp_path: Path, tiny_model: Path) -> None:
    never = {"regex": {"pattern": "this is not said by a random model"}}
    for method in ("grpo", "dapo", "online_dpo", "rejection"):
        folder = tmp_path / method
        train(folder, tiny_model, method=method, rules=never, kl={"beta": 0.0})
        assert not changed(folder)


def test_dynamic_sampling_asks_for_more_prompts(tmp_path: Path, tiny_model: Path) -> None:
    rows = train(tmp_path, tiny_model, method="dapo", answers=4, batch=3, steps=3, shaping=NO_END, keep={"rounds": 4})
    assert any(row["rollout/sampled"] > 3 * 4 for row in rows)
    assert all("rollout/skipped" not in row or row["rollout/skipped"] == 0 for row in rows)


def made_of(scores: list[list[float]]) -> Sample:
    answers = [
        tuple(
            Sampled(tokens=(10 * g + k, 0), logps=(0.0, 0.0), finish="stop") for k in range(len(own))
        )
        for g, own in enumerate(scores)
    ]  # fmt: skip
    items = tuple(TokenGroup(prompt=(1,), answers=tuple(a.tokens for a in own)) for own in answers)
    flat = torch.tensor([x for own in scores for x in own])
    return Sample(prompts=tuple(range(len(scores))), answers=tuple(answers), items=items, scores=flat)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (Keep(how="best"), [1, 3]),  # of equals the first
        (Keep(how="top", share=0.5), [0, 1, 2]),
        (Keep(how="top", share=0.01), [1]),
        (Keep(how="above", threshold=0.6), [0, 1, 2]),
        (Keep(how="above", threshold=9), []),
    ],
)
def test_which_answers_are_kept(keep: Keep, expected: list[int]) -> None:
    sample = made_of([[0.7, 0.9, 0.8], [0.5, 0.5, 0.1]])
    assert sample.scores is not None
    assert kept_answers(keep, sample, sample.scores, torch.ones(6).bool()) == expected


def test_a_text_is_learned_once_and_cut_answers_may_be_left_out() -> None:
    sample = made_of([[0.7, 0.7]])
    assert sample.scores is not None
    twice = Sample(
        prompts=(0,), answers=((sample.flat[0], sample.flat[0]),), items=sample.items, scores=sample.scores
    )  # fmt: skip
    assert kept_answers(Keep(how="above"), twice, sample.scores, torch.ones(2).bool()) == [0]
    assert kept_answers(Keep(how="best"), sample, sample.scores, torch.tensor([False, True])) == [1]


def test_raft_learns_what_is_better_than_the_rest(tmp_path: Path, tiny_model: Path) -> None:
    rows = train(tmp_path, tiny_model, method="raft", answers=6, batch=6, epochs=2, shaping=NO_END)
    assert all(row["rollout/kept_score"] > row["rollout/score"] for row in rows)
    assert all(row["rollout/kept"] == pytest.approx(1 / 6) for row in rows)


@pytest.mark.parametrize(
    "method", ["grpo", "dr_grpo", "rloo", "reinforce_pp", "remax", "gspo", "cispo", "raft", "rejection", "online_dpo"]
)
def test_a_rule_that_can_be_learned_is_learned(method: str, tmp_path: Path, lively: Path) -> None:
    rows = train(
        tmp_path, lively, method=method, answers=8, batch=6, steps=12, lr=3e-2, shaping=NO_END, kl={"beta": 0.0},
        sampling={"max_tokens": 2},
    )  # fmt: skip
    first, last = (sum(row["rollout/score"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.25  # measured: from 0.2 to 0.6 (online DPO) or 0.9


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rules": {}}, "option 'reward' or 'rules' is missing"),
        ({"method": "raft", "keep": {"how": "all"}}, "'raft' learns the best answers"),
        ({"method": "grpo", "keep": {"how": "best"}}, "'grpo' learns from good and bad answers"),
        ({"method": "grpo", "compare": {"pairs": "all"}}, "compare would change nothing"),
        ({"method": "online_dpo", "compare": {"options": {"betta": 1}}}, "no option 'betta'; did you mean 'beta'"),
        ({"method": "online_simpo", "compare": {"reference": "previous"}}, "'simpo' has no reference"),
        ({"method": "online_tdpo2", "compare": {"reference": "previous"}}, "whole distribution"),
        ({"method": "online_rrhf", "compare": {"pairs": "all"}}, "learns from all answers in order"),
        ({"method": "reinforce", "clip": {"low": 0.1}}, "clip.low would change nothing"),
        ({"method": "cispo", "clip": {"low": 0.1}}, "clip.low would change nothing"),
        ({"method": "gspo", "clip": {"dual": 3.0}}, "clip.dual would change nothing"),
        ({"method": "grpo", "kl": {"credit": "token"}}, "kl.credit would change nothing"),
        ({"method": "grpo", "answers": 1}, "leaves nothing to compare it with"),
        ({"method": "grpo", "keep": {"rounds": 9}}, "keep.rounds would change nothing"),
        ({"method": "rejection", "kl": {"target": 3.0}}, "kl.target would change nothing"),
        ({"method": "grpo", "reward_weight": 2.0}, "reward_weight would change nothing"),
        ({"method": "gropo"}, "no method 'gropo'; did you mean 'grpo'"),
        ({"method": ["grpo"]}, "no method"),
        ({"rules": {"numbr": {}}}, "no rule 'numbr'; did you mean 'number'"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(given: Mapping[str, Any], sentence: str, tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        train(tmp_path, tiny_model, **given)


def test_every_row_names_its_paper_and_says_what_it_is() -> None:
    for name, row in METHODS.items():
        assert row.paper, name
        assert len(row.summary) > 20, name
    assert set(METHODS) == set(ROWS) | {f"online_{loss}" for loss in PREFERENCE_LOSSES}
    assert Comparison.__doc__
    json.dumps({name: dict(row.defaults) for name, row in METHODS.items()})
