"""The gold scorer beside the reward: its curve, the stop where it turns, and what is left then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import ConfigError
from trimtab.model.sampler import Sampling
from trimtab.stages._online_settings import KL, Critic, Guard, Keep, Shaping
from trimtab.stages.policy import policy

DIRECTION = 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(1))


def train(
    folder: Path, reward: ModelRef, source: DataRef, model: Path, **given: Any
) -> tuple[list[dict[str, float]], list[str]]:
    run = tiny.make_run(folder, "policy")
    told = {
        "method": "grpo", "steps": 12, "batch": 6, "answers": 6, "lr": 3e-2, "kl": KL(beta=0.0), "lora": tiny.LORA,
        "shaping": Shaping(eos="none"), "sampling": Sampling(max_tokens=2), **given,
    }  # fmt: skip
    policy(run, reward=reward, prompts=source, init=tiny.base(model), **told)
    return tiny.metrics(folder), run.notes


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory, lively: Path) -> tuple[ModelRef, ModelRef]:
    """A reward, and a gold scorer that likes the opposite."""
    folder = tmp_path_factory.mktemp("rewards")
    good, bad = (tiny.hand_made_reward(folder / name, lively, s * DIRECTION) for name, s in (("a", 1), ("b", -1)))
    return good, bad


def test_a_run_stops_where_the_gold_score_turns_and_keeps_the_best_round(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    reward, gold = rewards
    rows, notes = train(tmp_path, reward, source, lively, gold=gold, guard=Guard(patience=3, window=2))
    assert len(rows) < 12
    for row in rows:
        assert row["rollout/gold"] == pytest.approx(-row["rollout/score"], abs=1e-4)
    means = [(rows[i - 1]["rollout/gold"] + rows[i]["rollout/gold"]) / 2 for i in range(1, len(rows))]
    best = 1 + max(range(len(means)), key=means.__getitem__)
    assert len(rows) == best + 3 + 1
    assert any(f"the gold score was best at step {best}" in note for note in notes)
    # What is left is what an undisturbed run had after as many updates.
    plain, _ = train(tmp_path / "plain", reward, source, lively, steps=12, guard=Guard(kl=None))
    assert plain[: len(rows)] == [{k: v for k, v in row.items() if k != "rollout/gold"} for row in rows]
    kept = load_file(tmp_path / "checkpoints" / "best.safetensors")
    saved = tiny.weights(tmp_path)
    assert sorted(t.double().sum().item() for t in kept.values()) == pytest.approx(
        sorted(t.double().sum().item() for t in saved.values())
    )
    assert not tiny.same_weights(tmp_path, tmp_path / "plain")


def test_rounds_that_teach_a_critic_alone_are_not_compared(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    """The policy cannot move in them: a gold score that falls there is chance."""
    reward, gold = rewards
    given = {"method": "ppo", "critic": Critic(warmup=5), "guard": Guard(patience=1, window=1), "lr": 0.0, "steps": 2}
    rows, notes = train(tmp_path, reward, source, lively, gold=gold, **given)
    assert len(rows) == 7
    assert all("rollout/gold" in row for row in rows)
    assert not any("best at step" in note and int(note.split("step ")[2].split()[0]) < 5 for note in notes)


def test_gold_sees_all_answers_where_prompts_are_chosen_by_them(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    """With a rule of 0 or 1 and two answers, the chosen prompts are at one half by construction."""
    told = {
        "reward_weight": 0.0, "rules": {"regex": {"pattern": "[a-m]"}}, "answers": 2, "lr": 0.0, "steps": 3,
        "guard": Guard(patience=0),
    }  # fmt: skip
    reward, gold = rewards
    mixed, _ = train(tmp_path / "mixed", reward, source, lively, gold=gold, keep=Keep(how="mixed", rounds=1), **told)
    plain, _ = train(tmp_path / "plain", reward, source, lively, gold=gold, **told)
    for name in ("rollout/score", "rollout/gold", "rollout/length"):
        assert [row[name] for row in mixed] == pytest.approx([row[name] for row in plain])
    assert any(row["rollout/mixed"] < 1 for row in mixed)


def test_looking_changes_nothing(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    reward, _ = rewards
    rows, notes = train(tmp_path / "a", reward, source, lively, gold=reward, steps=8, guard=Guard(patience=0))
    plain, _ = train(tmp_path / "b", reward, source, lively, steps=8)
    assert len(rows) == 8
    assert not any("stopped" in note for note in notes)
    assert tiny.same_weights(tmp_path / "a", tmp_path / "b")
    assert all(row["rollout/gold"] == pytest.approx(row["rollout/score"], abs=1e-5) for row in rows)
    assert len(plain) == 8


def test_a_run_stops_beyond_its_kl(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    rows, notes = train(tmp_path, rewards[0], source, lively, guard=Guard(kl=0.5))
    assert len(rows) < 12
    assert rows[-1]["rollout/kl"] > 0.5 >= max(row["rollout/kl"] for row in rows[:-1])
    assert any("beyond the 0.5 allowed" in note for note in notes)


def test_what_the_watch_saw_survives_a_restart(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    """A run that goes on from its last checkpoint stops at the same step with the same weights."""
    reward, gold = rewards
    guard = Guard(patience=3, window=2)
    whole, _ = train(tmp_path / "a", reward, source, lively, gold=gold, guard=guard)
    train(tmp_path / "b", reward, source, lively, gold=gold, guard=guard)
    for path in (tmp_path / "b").glob("*.safetensors"):
        path.unlink()
    again, _ = train(tmp_path / "b", reward, source, lively, gold=gold, guard=guard)  # all done: only settled anew
    assert again == whole
    assert tiny.same_weights(tmp_path / "a", tmp_path / "b")
    state = json.loads(json.dumps(whole[-1]))
    assert state["step"] == len(whole) - 1


def test_a_guard_without_gold_is_refused(
    tmp_path: Path, rewards: tuple[ModelRef, ModelRef], source: DataRef, lively: Path
) -> None:
    with pytest.raises(ConfigError, match=r"guard\.patience would change nothing: there is no gold scorer"):
        train(tmp_path, rewards[0], source, lively, guard=Guard(patience=9))
