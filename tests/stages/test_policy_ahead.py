"""Asynchronous rollouts: which weights wrote what is a rule, and a restart changes no bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import DataRef
from trimtab.losses.policy.ppo import ppo
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora
from trimtab.stages._online_settings import Keep, Shaping
from trimtab.stages.policy import policy
from trimtab.tensors.shaping import truncated_weights

SHORT = Sampling(max_tokens=4)
DIRECTION = 0.3 * torch.randn(64, generator=torch.Generator().manual_seed(1))


def train(folder: Path, source: DataRef, model: Path, *, pulled: int = -1, **settings: Any) -> list[dict[str, float]]:
    run = tiny.make_run(folder, "policy")
    run.checkpoint_seconds, run.reporter = 0.0, tiny.Plug(pulled)
    values = {
        "steps": 6, "batch": 3, "answers": 4, "lr": 3e-2, "sampling": SHORT, "lora": tiny.LORA, "method": "rloo",
        "shaping": Shaping(eos="none"), **settings,
    }  # fmt: skip
    reward = tiny.hand_made_reward(folder / "reward", model, DIRECTION)
    policy(run, reward=reward, prompts=source, init=tiny.base(model), **values)
    return tiny.metrics(folder)


def said(row: dict[str, float]) -> list[float]:
    """Of a round: what depends on its answers and the frozen models alone."""
    return [row["rollout/score"], row["rollout/length"]]


def test_a_round_is_written_by_the_weights_of_n_rounds_before(tmp_path: Path, source: DataRef, lively: Path) -> None:
    still = train(tmp_path / "still", source, lively, lr=0.0)
    fresh = train(tmp_path / "fresh", source, lively)
    late = train(tmp_path / "late", source, lively, staleness=2)
    assert [row["rollout/staleness"] for row in late] == [0, 1, 2, 2, 2, 2]
    assert [said(row) for row in late[:3]] == [said(row) for row in still[:3]]  # all by the first weights
    assert said(fresh[1]) != said(still[1])
    assert late[0]["rollout/logp_gap_max"] < 1e-4 < late[1]["rollout/logp_gap_max"]  # the trainer has moved on
    assert late[0]["rollout/importance_weight"] == pytest.approx(1.0, abs=1e-4)
    assert late[2]["rollout/importance_weight"] != pytest.approx(1.0, abs=1e-3)
    assert all(row["policy/ratio"] == 1.0 for row in late)  # to the trainer's own pass at the start of the round
    assert late[1]["train/grad_norm"] != fresh[1]["train/grad_norm"]
    assert late[0]["train/grad_norm"] == fresh[0]["train/grad_norm"]


@pytest.mark.parametrize(
    ("method", "own"),
    [
        ("ppo", {}),
        ("remax", {}),
        ("dapo", {"keep": Keep(how="mixed", rounds=2)}),
        ("raft", {"keep": Keep(how="best")}),
        ("online_dpo", {}),
    ],
)
def test_a_restart_changes_no_bit(
    tmp_path: Path, source: DataRef, lively: Path, method: str, own: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {"method": method, "staleness": 2, "steps": 5, **own}
    train(tmp_path / "whole", source, lively, **settings)
    with pytest.raises(tiny.PulledError):
        train(tmp_path / "cut", source, lively, pulled=3, **settings)
    again = train(tmp_path / "cut", source, lively, **settings)
    assert [row["step"] for row in again] == list(range(len(again)))
    assert tiny.same_weights(tmp_path / "whole", tmp_path / "cut")


def test_nothing_is_left_behind_when_a_run_is_stopped(tmp_path: Path, source: DataRef, lively: Path) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(tiny.PulledError):
        train(tmp_path, source, lively, staleness=1, pulled=2)
    assert torch.get_num_threads() == threads
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sampler")]


def test_a_twin_shares_the_base_and_nothing_else(tiny_model: Path) -> None:
    trunk = Trunk.load(str(tiny_model))
    trunk.add_adapter("actor", Lora(rank=4), seed=0)
    with torch.no_grad():
        for parameter in trunk.adapter_parameters("actor"):
            parameter.normal_(std=0.3)
    twin = trunk.twin()
    mine = {name: p for name, p in trunk.base.named_parameters() if "lora_" not in name}
    theirs = {name: p for name, p in twin.base.named_parameters() if "lora_" not in name}
    assert mine.keys() == theirs.keys()
    assert all(mine[name].data_ptr() == theirs[name].data_ptr() for name in mine)
    prompts = [[1, 2, 3], [4, 5]]

    def sample(of: Trunk) -> list[list[tuple[int, ...]]]:
        sampler = TorchSampler(of, "actor", stop=frozenset())
        return [[a.tokens for a in own] for own in sampler.sample(prompts, k=2, sampling=SHORT, seed=3)]

    before = sample(trunk)
    assert sample(twin) == before
    with twin.merged("actor"):
        assert not any(
            mine[n].data_ptr() == theirs[n].data_ptr() for n in mine if n.endswith("q_proj.base_layer.weight")
        )
        assert sample(trunk) == before  # while the other trunk's weights are other ones
    with torch.no_grad():
        for parameter in twin.adapter_parameters("actor"):
            parameter.zero_()
    assert sample(trunk) == before != sample(twin)


def test_the_decoupled_objective_by_hand() -> None:
    """Behaviour .2, proximal .25, policy .28, A = 1: l = -1.4, gradient -1.25 du; the naive ratio 1.4 is clipped."""
    behaviour, proximal = torch.tensor([[0.2]]).double().log(), torch.tensor([[0.25]]).double().log()
    policy_logp = torch.tensor([[0.28]], dtype=torch.float64).log().requires_grad_()
    terms = ppo(policy_logp, proximal, torch.ones(1, 1))
    loss = terms.loss * truncated_weights(proximal, behaviour, cap=2.0)
    (gradient,) = torch.autograd.grad(loss.sum(), policy_logp)
    assert float(loss.detach()) == pytest.approx(-1.4)
    assert float(gradient) == pytest.approx(-1.25 * 1.12)  # du/dlogp = u
    assert float(truncated_weights(proximal, behaviour, cap=1.1)) == pytest.approx(1.1)
    naive = ppo(policy_logp, behaviour, torch.ones(1, 1))
    assert float(naive.loss.detach()) == pytest.approx(-1.2)
    assert float(naive.clipped) == 1
