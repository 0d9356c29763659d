"""What can be set about a policy: another method, the critic that is solved for, the pretraining mix."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import ConfigError, DataError
from trimtab.model.sampler import Sampling
from trimtab.model.trunk import Lora
from trimtab.records.read import read_groups
from trimtab.seeds import derive
from trimtab.stages._online import Online
from trimtab.stages._online_settings import KL, Clip, Critic, Shaping
from trimtab.stages._texts import Texts
from trimtab.stages.policy import policy
from trimtab.tensors.aggregate import Totals
from trimtab.tensors.tree import pack
from trimtab.train.least_squares import RIDGES
from trimtab.train.loop import batch_at
from trimtab.train.run import Means

SHORT = Sampling(max_tokens=6)
NO_CRITIC = {"critic": Critic()}  # its default: nothing is asked of it
RIDGE = Critic(fit="ridge", start="reward", warmup=2)


def train(
    folder: Path, reward: ModelRef, source: DataRef, init: ModelRef, **settings: object
) -> list[dict[str, float]]:
    values = {
        "steps": 2, "batch": 3, "answers": 2, "critic": Critic(warmup=0), "sampling": SHORT, "lora": tiny.LORA,
        "shaping": Shaping(eos="none"), **settings,
    }  # fmt: skip
    policy(tiny.make_run(folder, "policy"), reward=reward, prompts=source, init=init, **values)  # type: ignore[arg-type]
    return tiny.metrics(folder)


def test_grpo_needs_no_critic_and_puts_the_kl_in_the_loss(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    rows = train(tmp_path, toy_reward, source, tuned, method="grpo", steps=3, lr=1e-2, kl=KL(beta=0.5), **NO_CRITIC)
    assert not any(name.startswith("value/") or "critic" in name for row in rows for name in row)
    assert len(rows) == 3  # no warm-up
    assert rows[0]["policy/ratio"] == 1.0
    for row in rows:  # the penalty is not in the reward
        assert row["rollout/reward"] == pytest.approx(row["rollout/score"], abs=1e-6)
    assert rows[2]["rollout/kl"] != 0.0


@pytest.mark.parametrize("critic", [RIDGE, Critic(warmup=0)], ids=["of the critic's pass", "of its own"])
def test_the_rewards_weight_counts_whichever_pass_gives_the_score(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef, critic: Critic
) -> None:
    one, two = (
        train(tmp_path / str(weight), toy_reward, source, tuned, steps=1, critic=critic, reward_weight=weight)[0]
        for weight in (1.0, -2.0)
    )
    assert two["rollout/score"] == pytest.approx(-2 * one["rollout/score"], rel=1e-5)
    assert one["rollout/score"] != 0


def test_a_ridge_critic_reads_the_reward_models_own_pass(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source, critic=RIDGE)
    critic = task.roles.critic
    assert critic is not None
    assert task.roller.reward.is_on(critic.trunk, critic.adapter)
    _, rollout = tiny.roll(task, 0, [0, 2, 4])
    _, other = tiny.roll(
        tiny.policy_task(tmp_path / "other", init=tuned, reward=toy_reward, source=source), 0, [0, 2, 4]
    )
    assert torch.equal(rollout.scores, other.scores)
    assert rollout.features is not None
    assert rollout.features.shape == (int(rollout.mask.sum()), 64)


def test_a_ridge_critic_is_the_regression_on_returns(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    """The third round's advantages are those of the solution found on the first two."""
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source, critic=RIDGE, lam=1.0)
    assert task.ridge is not None
    rounds(task, 2)
    task.ridge.errors = torch.arange(len(RIDGES)).double()  # as if the weakest ridge had foretold best
    weight, bias = (x.clone() for x in task.ridge.solution)
    assert weight.all()
    sample, rollout = tiny.roll(task, 2, [0, 1, 2])
    signal = tiny.shaped(task, sample, rollout)
    assert rollout.features is not None
    # Two answers to a prompt: beside the states stands the other one's return, for every token.
    other = signal.returns[:, 0].view(-1, 2).flip(1).reshape(-1)
    column = other[:, None].expand_as(rollout.mask)[rollout.mask]
    values = (torch.cat([rollout.features, column[:, None]], 1).double() @ weight + bias).float()
    assert values.std() > 0.01
    advantages = signal.returns[rollout.mask] - values  # lam = 1
    whitened = (advantages - advantages.mean()) / advantages.std(correction=0)
    torch.testing.assert_close(signal.advantages[rollout.mask], whitened, atol=1e-4, rtol=1e-4)


def rounds(task: Online, count: int) -> None:
    for step in range(count):
        assert not list(task.updates(step, Means())), "the warm-up changed a weight"


def test_warm_up_with_a_ridge_critic_changes_no_weight(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    rows = train(tmp_path, toy_reward, source, tuned, steps=1, critic=RIDGE)
    assert len(rows) == 3
    assert all(row["rollout/kl"] == 0.0 for row in rows)
    assert not any("grad_norm" in name for row in rows[:2] for name in row)
    assert any("grad_norm" in name for name in rows[2])
    assert rows[0]["value/mean"] == 0.0 != rows[1]["value/mean"]


def test_a_ridge_critic_survives_a_restart(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    """State taken out and put into a fresh task: the next round has the same values to the bit."""
    task = tiny.policy_task(tmp_path / "a", init=tuned, reward=toy_reward, source=source, critic=RIDGE)
    rounds(task, 2)
    again = tiny.policy_task(tmp_path / "b", init=tuned, reward=toy_reward, source=source, critic=RIDGE)
    again.load(task.state())
    for fit in (task.ridge, again.ridge):
        assert fit is not None
        fit.errors = torch.arange(len(RIDGES)).double()
    first, second = (tiny.shaped(t, *tiny.roll(t, 2, [0, 1])) for t in (task, again))
    assert first.targets.any()
    assert torch.equal(first.targets, second.targets)
    assert torch.equal(first.advantages, second.advantages)


def test_a_critic_may_start_from_the_reward_models_adapter(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(
        tmp_path, init=tuned, reward=toy_reward, source=source, critic=Critic(start="reward", warmup=0)
    )
    critic = task.roles.critic
    assert critic is not None
    assert critic.adapter == "critic"
    trunk = critic.trunk
    assert not task.roller.reward.is_on(trunk, critic.adapter)  # a copy, not the scorer itself
    for mine, theirs in zip(
        trunk.adapter_parameters("critic"), trunk.adapter_parameters(str(task.roller.reward.adapter)), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert mine is not theirs


def test_a_critic_cannot_start_from_a_reward_model_on_another_base(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    foreign = ModelRef(toy_reward.name, str(tmp_path / "elsewhere"), toy_reward.artifact)
    with pytest.raises(ConfigError, match=r"on the policy's base .*elsewhere"):
        train(tmp_path / "run", foreign, source, tuned, critic=Critic(start="reward"))


def test_ptx_is_the_mean_cross_entropy_of_the_mixed_texts(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    """Its gradient, however it is cut into micro-batches, against one text at a time."""
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    actor = task.roles.actor
    texts = [actor.trunk.chat.group(g) for g in read_groups(tiny.demonstrations(tmp_path).source).groups]
    parameters = actor.parameters()
    drawn = [texts[i] for i in batch_at(7, len(texts), 4, derive(0, "ptx"))]
    with actor.trunk.using(actor.adapter):
        nats = torch.cat([-actor.trunk.logps(pack([item]))[0] for item in drawn])
        wanted = torch.autograd.grad(3.0 * nats.mean(), parameters)
    for micro_tokens in (1, 4096):
        mixed = Texts(
            actor.trunk, actor.adapter, texts, batch=4, micro_tokens=micro_tokens, seed=derive(0, "ptx"), weight=3.0,
            metric="ptx/loss",
        )  # fmt: skip
        calls = mixed.work(7)
        assert len(calls) == (4 if micro_tokens == 1 else 1)
        said = Means()
        for call in calls:
            said.add(call())
        assert said.result()["ptx/loss"] == pytest.approx(float(nats.detach().mean()), rel=1e-5)
        for parameter, gradient in zip(parameters, wanted, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
            parameter.grad = None


def test_ptx_without_weight_changes_nothing(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    texts = tiny.demonstrations(tmp_path)
    rows = train(tmp_path / "on", toy_reward, source, tuned, steps=1, ptx=texts, ptx_weight=0.0, ptx_batch=4)
    off = train(tmp_path / "off", toy_reward, source, tuned, steps=1)
    assert tiny.same_weights(tmp_path / "on", tmp_path / "off")
    assert {k: v for k, v in rows[0].items() if k != "ptx/loss"} == off[0]
    train(tmp_path / "more", toy_reward, source, tuned, steps=1, ptx=texts, ptx_weight=1.0, ptx_batch=4)
    assert not tiny.same_weights(tmp_path / "more", tmp_path / "off")


def test_ptx_waits_for_the_critic(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    texts = tiny.demonstrations(tmp_path)
    rows = train(tmp_path / "run", toy_reward, source, tuned, steps=1, ptx=texts, critic=Critic(warmup=1))
    assert "ptx/loss" not in rows[0]
    assert "ptx/loss" in rows[1]


def test_a_gap_between_sampler_and_trainer_is_weighed_and_capped(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source, clip=Clip(importance=2.0))
    sample, rollout = tiny.roll(task, 0, [0, 1, 2])
    rollout.sampled_logps[0, 0] = rollout.logps[0, 0] - math.log(1.5)  # the sampler drew it too rarely
    rollout.sampled_logps[0, 1] = rollout.logps[0, 1] - math.log(7.0)
    log = Means()
    signal = tiny.shaped(task, sample, rollout, log)
    assert float(signal.weights[0, 0]) == pytest.approx(1.5, rel=1e-5)
    assert float(signal.weights[0, 1]) == 2.0
    torch.testing.assert_close(signal.weights[1:], torch.ones_like(signal.weights[1:]), atol=1e-4, rtol=0)
    assert log.result()["rollout/logp_gap_max"] == pytest.approx(math.log(7.0), rel=1e-5)


def test_weights_reach_the_gradient(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    """Doubling every token's weight doubles the policy's gradient; a weight of zero silences its token."""
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    parameters = task.roles.actor.parameters()
    signal = tiny.shaped(task, *tiny.roll(task, 0, [0, 1, 2]))
    (micro,) = signal.rollout.minibatches[0].micros
    totals = Totals(tokens=float(signal.rollout.mask.sum()), sequences=6.0)

    def gradient(weights: torch.Tensor) -> torch.Tensor:
        signal.weights = weights
        task._actor(signal, micro, totals, first=True)
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        for p in parameters:
            p.grad = None
        return found

    ones = torch.ones_like(signal.weights)
    whole, half = gradient(ones), ones.clone()
    assert whole.any()
    torch.testing.assert_close(gradient(2 * ones), 2 * whole)
    half[:3] = 0.0
    torch.testing.assert_close(gradient(half) + gradient(ones - half), whole, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(gradient(half), whole)


def test_a_sampler_that_agrees_is_not_corrected(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    on = train(tmp_path / "on", toy_reward, source, tuned, steps=1)
    off = train(tmp_path / "off", toy_reward, source, tuned, steps=1, clip=Clip(importance=None))
    assert on[0]["rollout/importance_weight"] == pytest.approx(1.0, abs=1e-5)
    assert off[0]["rollout/importance_weight"] == 1.0
    assert on[0]["policy/loss"] == pytest.approx(off[0]["policy/loss"], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"method": "grpo", "critic": Critic(warmup=9)}, "critic would change nothing: method 'grpo' has no critic"),
        ({"method": "grpo", "lam": 0.9}, "lam would change nothing"),
        ({"method": "grpo", "answers": 1}, "1 answer to a prompt leaves nothing to compare it with"),
        ({"critic": RIDGE, "clip": Clip(value=0.5)}, "clip.value would change nothing"),
        ({"critic": RIDGE, "shaping": Shaping(whiten=True)}, "shaping.whiten would change nothing"),
        ({"critic": Critic(fit="ridge", lr=1.0)}, "critic.lr would change nothing: a ridge critic is solved for"),
        ({"critic": Critic(decay=0.5)}, "critic.decay would change nothing"),
        ({"kl": KL(horizon=5)}, "kl.horizon would change nothing: there is no kl.target"),
        ({"kl": KL(beta=0.0, target=6.0)}, "kl.target would change nothing: kl.beta is 0: no weight to steer"),
        ({"kl": KL(target=6.0, horizon=1)}, r"kl.horizon: 1 is too short for 6 answers a round: .* above 1.2"),
        ({"shaping": Shaping(overlong=7)}, "shaping.overlong: 7 tokens before the cap is more than all of the 6"),
        (
            {"sampling": Sampling(max_tokens=6, top_p=0.9), "clip": Clip(importance=None)},
            "clip.importance would change nothing: sampling is cut",
        ),
        (
            {"sampling": Sampling(max_tokens=6, top_p=0.9), "staleness": 1},
            "staleness: answers of older weights count by pi / pi_sampler",
        ),
        ({"ptx_weight": 2.0}, "ptx_weight would change nothing: there is no ptx"),
        ({"batch": 3, "minibatches": 2}, "3 prompts cannot be cut into 2"),
        ({"lora": Lora(rank=7)}, "rank 7 and alpha 32 would change nothing: .* rank 4 and alpha 8"),
    ],
)
def test_settings_that_would_change_nothing_are_refused(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef, settings: dict[str, object], says: str
) -> None:
    given = {"critic": Critic(), "shaping": Shaping(), **settings}
    with pytest.raises(ConfigError, match=says):
        train(tmp_path, toy_reward, source, tuned, **given)


def test_a_prompt_that_cannot_be_read_is_left_out_or_stops_the_run(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    plain = train(tmp_path / "plain", toy_reward, source, tuned)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(source.source).read_text() + '{"id": "broken", "prompt": 3}\n')
    assert [without_time(row) for row in train(tmp_path / "bad", toy_reward, DataRef(str(bad)), tuned)] == [
        without_time(row) for row in plain
    ]
    with pytest.raises(DataError, match=r"bad.jsonl, line \d+"):
        train(tmp_path / "stop", toy_reward, DataRef(str(bad)), tuned, bad="stop")


def without_time(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "train/seconds"}


def test_ptx_on_prompts_alone_is_refused(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    with pytest.raises(DataError, match="no answer in it to learn from"):
        train(tmp_path, toy_reward, source, tuned, ptx=source)


def test_ptx_does_not_learn_rejected_answers(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    pair = {"kind": "pair", "better": 1, "worse": 0}
    both = tiny.write_rows(tmp_path / "pairs.jsonl", [tiny.row("a", "Why?", ["No", "Because"], [pair])])
    good = tiny.write_rows(tmp_path / "good.jsonl", [tiny.row("a", "Why?", ["Because"])])
    for data, name in ((both, "both"), (good, "good")):
        train(tmp_path / name, toy_reward, source, tuned, steps=1, ptx=data)
    assert tiny.same_weights(tmp_path / "both", tmp_path / "good")


def test_adaptive_kl_rests_while_the_policy_may_not_move(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    kl = KL(beta=0.1, target=5.0, horizon=100)
    rows = train(tmp_path, toy_reward, source, tuned, steps=2, kl=kl, critic=Critic(warmup=2))
    assert [row["train/beta"] for row in rows] == pytest.approx([0.1, 0.1, 0.1, 0.1 * (1 - 0.2 * 6 / 100)], rel=1e-6)


def test_the_critics_warm_up_takes_nothing_from_the_policys_schedule(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    warm = train(tmp_path / "warm", toy_reward, source, tuned, steps=4, critic=Critic(warmup=3))
    cold = train(tmp_path / "cold", toy_reward, source, tuned, steps=4)
    assert [row["train/lr/actor"] for row in warm[3:]] == [row["train/lr/actor"] for row in cold]
    assert [row["train/lr/critic"] for row in warm[:3]] == [3e-4] * 3
