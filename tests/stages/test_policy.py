from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import ConfigError, InvariantError, RewardError
from trimtab.model.roles import Role
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.tiny import byte_letters, make_tiny
from trimtab.records.types import Answer, Group, Message
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages._online_settings import KL, Critic, Shaping
from trimtab.stages.policy import policy
from trimtab.train.run import Means

SHORT = Sampling(max_tokens=6)


def direction(seed: int = 1, scale: float = 0.1) -> torch.Tensor:
    return scale * torch.randn(64, generator=torch.Generator().manual_seed(seed))


def train(
    folder: Path, reward: ModelRef, source: DataRef, init: ModelRef, **settings: object
) -> list[dict[str, float]]:
    values = {
        "steps": 2,
        "batch": 3,
        "answers": 2,
        "critic": Critic(warmup=0),
        "sampling": SHORT,
        "lora": tiny.LORA,
        **settings,
    }
    policy(tiny.make_run(folder, "policy"), reward=reward, prompts=source, init=init, **values)  # type: ignore[arg-type]
    return tiny.metrics(folder)


def test_starts_at_the_reference_with_a_ratio_of_one(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    rows = train(tmp_path, toy_reward, source, tuned, steps=3, lr=1e-3, micro_tokens=100)
    assert rows[0]["rollout/kl"] == 0.0
    assert rows[2]["rollout/kl"] != 0.0
    for row in rows:  # one update a step: always the first
        assert row["policy/ratio"] == 1.0
        assert row["policy/approx_kl"] == 0.0
        assert row["policy/clip_fraction"] == 0.0
        assert row["rollout/logp_gap_max"] < 1e-4  # the sampler spoke of the same distribution
    assert rows[0]["value/mean"] == 0.0  # a zero head


def test_later_updates_move_the_ratio(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    rows = train(tmp_path, toy_reward, source, tuned, steps=1, lr=1e-2, epochs=3, batch=4, minibatches=2)
    assert rows[0]["policy/approx_kl"] > 0


def test_warm_up_trains_the_critic_alone(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    rows = train(tmp_path, toy_reward, source, tuned, steps=1, critic=Critic(warmup=2, lr=1e-2))
    assert len(rows) == 3
    assert all("train/grad_norm/actor" not in row and "policy/loss" not in row for row in rows[:2])
    assert all(row["rollout/kl"] == 0.0 for row in rows)  # the actor had not moved before step 2
    assert rows[0]["value/mean"] == 0.0 != rows[1]["value/mean"]
    assert rows[2]["train/grad_norm/actor"] > 0


def perturb(parameters: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05


def test_an_actor_that_moved_after_the_rollout_is_caught(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    parameters = task.roles.actor.parameters()
    update = next(task.updates(0, Means()))
    update.accumulate(update.micros[0])  # untouched: fine
    perturb(parameters)
    with pytest.raises(InvariantError, match=r"ratio is off by .* not the actor's"):
        update.accumulate(update.micros[0])


def test_a_wrong_reference_is_caught(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    trunk = task.roles.actor.trunk
    assert task.roles.reference == Role(trunk, f"sft-{'0' * 12}")
    task.roles = task.roller.roles = dataclasses.replace(task.roles, reference=Role(trunk, None))  # adapters "off"
    with pytest.raises(InvariantError, match="actor and reference differ"):
        next(task.updates(0, Means()))


def test_a_reference_that_is_barely_wrong_is_caught_on_one_trunk(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    with torch.no_grad():
        for parameter in task.roles.actor.parameters():
            parameter *= 1.001
    with pytest.raises(InvariantError, match="actor and reference differ"):
        next(task.updates(0, Means()))


def test_a_sampler_of_another_model_is_caught(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    trunk = task.roles.actor.trunk
    trunk.copy_adapter("actor", "other")
    with torch.no_grad():
        for parameter in trunk.adapter_parameters("other"):
            parameter *= 20
    task.roller.sampler = TorchSampler(trunk, "other", stop=trunk.chat.stop)
    with pytest.raises(InvariantError, match="sampler and trainer differ"):
        next(task.updates(0, Means()))


def test_the_invariants_hold_no_grudge(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    # After step 0 the actor may leave the reference.
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    perturb(task.roles.actor.parameters())
    log = Means()
    update = next(task.updates(1, log))
    assert log.result()["rollout/kl"] != 0
    update.accumulate(update.micros[0])


def test_a_toy_reward_goes_up(tmp_path: Path, source: DataRef) -> None:
    # Ten times the embeddings: the tiny model's own logits are too flat for an adapter to choose among the tokens.
    folder = tmp_path / "sharp"
    make_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight *= 10
    model.save_pretrained(folder)
    # It likes most what the model says least at first.
    reward = tiny.hand_made_reward(tmp_path / "toy", folder, -direction(scale=0.3))
    rows = train(
        tmp_path, reward, source, tiny.base(folder), steps=18, batch=6, answers=8, lr=3e-2,
        critic=Critic(warmup=2, lr=1e-2), epochs=2, kl=KL(beta=0.0), shaping=Shaping(eos="none"),
        sampling=Sampling(max_tokens=2),
    )  # fmt: skip
    first = sum(row["rollout/score"] for row in rows[:2]) / 2
    last = sum(row["rollout/score"] for row in rows[-3:]) / 3
    assert last > first + 3.0  # measured: from -3.1 to 4.2


@pytest.mark.parametrize("start", ["base", "sft"])
def test_layouts_give_the_same_first_step(
    tmp_path: Path, tiny_model: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef, start: str
) -> None:
    init = tuned if start == "sft" else tiny.base(tiny_model)
    for layout in ("shared", "paired", "separate"):
        rows = train(tmp_path / layout, toy_reward, source, init, steps=1, roles=layout, micro_tokens=200)
        assert len(rows) == 1
    tiny.same_curves(tmp_path / "shared", tmp_path / "paired", tolerance=1e-5)
    tiny.same_curves(tmp_path / "shared", tmp_path / "separate", tolerance=1e-5)


@pytest.mark.parametrize(("layout", "trunks"), [("shared", 1), ("paired", 2), ("separate", 4)])
def test_trunks_in_memory(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef, layout: str, trunks: int
) -> None:
    result = policy(
        tiny.make_run(tmp_path, "policy"), reward=toy_reward, prompts=source, init=tuned, steps=1, batch=1, answers=1,
        critic=Critic(warmup=0), sampling=SHORT, lora=tiny.LORA, roles=layout,  # type: ignore[arg-type]
    )  # fmt: skip
    assert result.metrics["memory/trunks"] == trunks


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model under a tokenizer that numbers the bytes backwards: the same function of text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from trimtab.model.chatml import CHATML

    folder = tmp_path_factory.mktemp("other")
    make_tiny(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        rows = model.get_input_embeddings().weight
        rows[:256] = rows[:256].flip(0).clone()
    model.save_pretrained(folder)
    bpe = Tokenizer(models.BPE(vocab={letter: 255 - byte for byte, letter in enumerate(byte_letters())}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    special = ("<|im_start|>", "<|im_end|>", "<|pad|>")
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=special[0], eos_token=special[1], pad_token=special[2], chat_template=CHATML
    ).save_pretrained(folder)
    return folder


def test_a_reward_model_with_another_tokenizer_reads_the_text(
    tmp_path: Path, tiny_model: Path, other_model: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    foreign = tiny.hand_made_reward(tmp_path / "foreign", other_model, direction())
    theirs, ours = RewardModel.open(foreign, dtype="float32"), RewardModel.open(toy_reward, dtype="float32")
    assert theirs.trunk.chat.encode("a") == (255 - ord("a"),)
    group = Group(
        id="g", prompt=(Message(role="user", content="Why?"),),
        answers=(Answer(text="Because"), Answer(text="cut", finish="length")),
    )  # fmt: skip
    ((a, b),) = theirs.score([group])
    assert [a, b] == [pytest.approx(s, abs=1e-5) for s in ours.score([group])[0]]

    task = tiny.policy_task(tmp_path, init=tuned, reward=foreign, source=source)
    chosen = [0, 3, 5]
    sample, rollout = tiny.roll(task, 0, chosen)
    prompts = [task.roller.tokens[i].prompt for i in chosen]
    answers = task.roller.sampler.sample(prompts, k=2, sampling=SHORT, seed=derive(0, "rollout", 0))
    assert sample.answers == tuple(map(tuple, answers))
    text = task.roller.as_groups(sample)
    assert rollout.scores.tolist() == pytest.approx([s for row in theirs.score(text) for s in row], abs=1e-5)
    rows = train(tmp_path / "run", foreign, source, tuned, steps=1, roles="shared")
    assert rows[0]["rollout/kl"] == 0.0


def test_the_same_tokens_are_scored_as_they_were_sampled(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    task = tiny.policy_task(tmp_path, init=tuned, reward=toy_reward, source=source)
    assert task.roller.reward.trunk is task.roles.actor.trunk
    chosen = [1, 2]
    sample, rollout = tiny.roll(task, 4, chosen)
    prompts = [task.roller.tokens[i].prompt for i in chosen]
    answers = task.roller.sampler.sample(prompts, k=2, sampling=SHORT, seed=derive(0, "rollout", 4))
    flat = [(prompt, a.tokens) for prompt, own in zip(prompts, answers, strict=True) for a in own]
    for row, (prompt, tokens) in enumerate(flat):
        assert sample.lengths[row] == len(tokens)
        assert rollout.mask[row].sum() == len(tokens)
        plain = AutoModelForCausalLM.from_pretrained(toy_reward.base)
        with torch.no_grad():
            hidden = plain.get_decoder()(torch.tensor([[*prompt, *tokens]])).last_hidden_state[0, -1]
        assert float(rollout.scores[row]) == pytest.approx(float(hidden @ direction()), abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_names_its_prompt(
    tmp_path: Path, tiny_model: Path, tuned: ModelRef, bad: float
) -> None:
    source = tiny.write_rows(tmp_path / "one.jsonl", [tiny.row("the-tower", "How tall?", [])])
    reward = tiny.hand_made_reward(tmp_path / "toy", tiny_model, direction(), bias=bad)
    with pytest.raises(RewardError, match="'the-tower' is not a finite number"):
        train(tmp_path, reward, source, tuned)


@pytest.mark.parametrize(
    ("mode", "cut"), [("replace", lambda s, p: -p), ("subtract", lambda s, p: s - p), ("none", lambda s, p: s)]
)
def test_cut_answers_pay(
    tmp_path: Path, tiny_model: Path, source: DataRef, mode: str, cut: Callable[[float, float], float]
) -> None:
    # Every answer scores 3; at step 0 there is no KL, so the rewards of an answer add up to its shaped score.
    reward = tiny.hand_made_reward(tmp_path / "toy", tiny_model, torch.zeros(64), bias=3.0)
    penalty = 1.0 if mode == "none" else 2.0
    (row,) = train(
        tmp_path, reward, source, tiny.base(tiny_model), steps=1, batch=6, answers=4,
        sampling=Sampling(max_tokens=100), shaping=Shaping(eos=mode, penalty=penalty),  # type: ignore[arg-type]
    )  # fmt: skip
    ended = row["rollout/ended"]
    assert 0 < ended < 1
    assert row["rollout/score"] == 3.0
    assert row["rollout/reward"] == pytest.approx(3.0 * ended + cut(3.0, 2.0) * (1 - ended), rel=1e-6)


def test_kl_is_taken_from_the_reward(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    rows = train(
        tmp_path, toy_reward, source, tuned, steps=3, lr=2e-2, kl=KL(beta=0.5), shaping=Shaping(eos="none", clip=None)
    )
    for row in rows:
        expected = row["rollout/score"] - 0.5 * row["rollout/kl"]
        assert row["rollout/reward"] == pytest.approx(expected, abs=1e-5)
    assert abs(rows[-1]["rollout/kl"]) > 1e-3


def test_the_adapter_that_is_saved_is_the_actor(
    tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef
) -> None:
    train(tmp_path, toy_reward, source, tuned, steps=1, lr=1e-2)
    assert tuned.artifact is not None
    before, after = tiny.weights(tuned.artifact.folder), tiny.weights(tmp_path)
    assert before.keys() == after.keys()
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert 0.005 < moved < 0.011  # Adam's first step at lr 1e-2; a critic would have moved by 3e-4


def test_what_cannot_work_is_refused(tmp_path: Path, toy_reward: ModelRef, source: DataRef, tuned: ModelRef) -> None:
    with pytest.raises(ConfigError, match="no method 'pp0'; did you mean 'ppo'"):
        train(tmp_path, toy_reward, source, tuned, method="pp0")
    with pytest.raises(ConfigError, match=r"stages.policy.sampling.temperature: .* above 0, not 0"):
        train(tmp_path, toy_reward, source, tuned, sampling=Sampling(temperature=0.0))
