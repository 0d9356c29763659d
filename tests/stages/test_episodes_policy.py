"""The policy stage in an environment: from the recipe to weights that have learned from the second turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny_stages as tiny
import trimtab.environments.tasks as tasks
from trimtab.config import DataRef, check_recipe, own_methods
from trimtab.environments.text import Dialogue, TextEnvironment
from trimtab.errors import ConfigError
from trimtab.model.roles import build_roles
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.records.types import Group, Message
from trimtab.registry import TASKS, use_plugins
from trimtab.stages._episodes import Episodes, environment_of
from trimtab.stages._methods import METHODS
from trimtab.stages._online import Online
from trimtab.stages._online_settings import KL, Clip, Critic, Keep, Shaping
from trimtab.stages._rollout import Roller
from trimtab.stages._rounds import Rounds
from trimtab.stages.policy import policy
from trimtab.train.run import Run

AGAIN = '''
from trimtab.environments.text import Dialogue, Reward
from trimtab.records.types import Group, Message

GROUPS = [Group(id=text, prompt=(Message(role="user", content=text),)) for text in ("Hi", "Well, then?", "Speak")]


def again(*, pays: float = 1.0, max_turns: int = 2) -> Dialogue:
    """A user who asks again; what pays is a small letter in the second answer."""
    def user(group):
        return lambda conversation: "Again!" if len(conversation) < 2 * max_turns else None

    def reward(group, conversation, over):
        return pays * (over and any("a" <= letter <= "z" for letter in conversation[-1].content))

    return Dialogue(GROUPS, user, reward, max_turns=max_turns)
'''


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    use_plugins(())


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a task of the user's own, known from here on."""
    folder = tmp_path / "own"
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "again.py").write_text(AGAIN)
    use_plugins([folder])
    return folder


def settings(plugins: str | None = None, **given: Any) -> dict[str, Any]:
    """A policy stage's settings, checked and filled in as a recipe's are."""
    told = {
        "environment": {"task": "again"}, "method": "grpo", "steps": 2, "batch": 3, "answers": 2, "lr": 1e-2,
        "sampling": {"max_tokens": 3}, "lora": {"rank": 4, "alpha": 8}, "shaping": {"eos": "none"}, **given,
    }  # fmt: skip
    raw = {"model": "tiny", "stages": {"policy": told}} | ({} if plugins is None else {"plugins": plugins})
    return dict(check_recipe(raw, "r").stages["policy"].settings)


def train(
    folder: Path, model: Path, plugins: Path | None = None, *, pulled: int = -1, **given: Any
) -> list[dict[str, float]]:
    told = settings(None if plugins is None else str(plugins), **given)
    told |= {"init": tiny.base(model), "reward": None}
    if told["prompts"] is not None:
        told["prompts"] = DataRef(told["prompts"])
    run = tiny.make_run(folder, "policy")
    run.checkpoint_seconds, run.reporter = 0.0, tiny.Plug(pulled)
    policy(run, **told)
    return tiny.metrics(folder)


# --- the rollout ------------------------------------------------------------------------------------------------------


def make_roller(run: Run, model: Path, make: Callable[[], TextEnvironment]) -> Roller:
    roles = build_roles(tiny.base(model), None, layout="shared", critic=None, lora=tiny.LORA, seed=0, dtype="float32")
    actor = roles.actor
    episodes = Episodes(make, actor.trunk.chat, max_length=512)
    groups, tokens = episodes.starts(run, count=0, max_tokens=3, bad="skip")
    return Roller(
        roles, TorchSampler(actor.trunk, actor.adapter, stop=actor.trunk.chat.stop), None, groups, tokens, k=2,
        sampling=Sampling(max_tokens=3), minibatches=1, micro_tokens=150, seed=0, episodes=episodes,
    )  # fmt: skip


def test_a_rollout_reads_the_whole_conversation_and_learns_from_its_own_part(own: Path, tiny_model: Path) -> None:
    run = tiny.make_run(own / "run", "policy")
    roller = make_roller(run, tiny_model, environment_of({"task": "again"}, "w", paid=False))
    assert [group.id for group in roller.groups] == ["Hi", "Well, then?", "Speak"]
    sample = roller.sample(0, [2, 0, 1])
    rollout = roller.read(sample)
    assert len(rollout.minibatches[0].micros) > 1
    assert sample.scores is not None
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    for row, answer in enumerate(sample.episodes):
        prompt = sample.items[int(sample.group[row])].prompt
        assert float(sample.scores[row]) == answer.reward
        with torch.no_grad():
            logits = plain(torch.tensor([[*prompt, *answer.tokens]])).logits[0, len(prompt) - 1 : -1]
        logps = logits.log_softmax(-1).gather(-1, torch.tensor(answer.tokens)[:, None])[:, 0]
        own_places = torch.tensor(answer.trained)
        assert 2 <= int(own_places.sum()) <= 6
        assert not own_places.all()
        rest = rollout.width - len(answer.tokens)
        assert rollout.mask[row].tolist() == [*answer.trained, *[False] * rest]
        expected = torch.nn.functional.pad(torch.where(own_places, logps, 0.0), (0, rest))
        for table in (rollout.logps, rollout.ref_logps, rollout.sampled_logps):
            torch.testing.assert_close(table[row], expected, atol=1e-5, rtol=1e-5)
        assert not rollout.entropy[row][~rollout.mask[row]].any()
        assert rollout.entropy[row][rollout.mask[row]].all()
    assert sample.lengths.tolist() == rollout.mask.sum(-1).tolist()
    assert roller.cap == 6
    assert [len(a.messages) for group in roller.as_groups(sample) for a in group.answers] == [3] * 6


@pytest.mark.parametrize(
    ("method", "shaping", "first", "second"),
    [
        ("reinforce", Shaping(eos="none"), 5.0, 3.0),  # a token is held to what is still to come
        ("reinforce", Shaping(eos="none", clip=4.0), 4.0, 4.0),  # the score is no longer what the turns earned
        ("grpo", Shaping(eos="none"), 5.0, 5.0),  # whole answers are compared
    ],
)
def test_who_is_credited_with_what_a_turn_earned(
    method: str, shaping: Shaping, first: float, second: float, tmp_path: Path, tiny_model: Path
) -> None:
    def make() -> Dialogue:
        start = Group(id="g", prompt=(Message(role="user", content="Hi"),))
        return Dialogue(
            [start], lambda group: lambda said: "On!" if len(said) < 4 else None,
            lambda group, said, over: 3.0 if over else 2.0, max_turns=2,
        )  # fmt: skip

    run = tiny.make_run(tmp_path, "policy")
    roller = make_roller(run, tiny_model, make)
    rounds = Rounds(run, roller, num_prompts=1, batch=1, keep=Keep(), shaping=shaping)
    task = Online(
        run, roller.roles, rounds, METHODS[method], epochs=1, kl=KL(beta=0.0), clip=Clip(), critic=Critic(),
        gamma=1.0, lam=1.0,
    )  # fmt: skip
    sample = roller.sample(0, [0])
    rollout = roller.read(sample)
    signal = tiny.shaped(task, sample, rollout)
    for row, answer in enumerate(sample.episodes):
        places = torch.arange(rollout.width)
        expected = torch.where(places <= answer.turns[0].last, first, second)
        assert torch.equal(signal.returns[row], torch.where(rollout.mask[row], expected, 0.0))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("ppo", {"critic": {"warmup": 0}}), ("ppo", {"critic": {"fit": "ridge", "warmup": 1}}), ("reinforce_pp", {}),
        ("grpo", {}), ("dr_grpo", {}), ("dapo", {}), ("gspo", {}), ("rloo", {}), ("remax", {}), ("raft", {}),
        ("rejection", {"keep": {"threshold": -1}}), ("online_dpo", {}), ("online_tdpo2", {}), ("online_kto", {}),
    ],
)  # fmt: skip
def test_methods_start_where_they_should(
    method: str, more: dict[str, Any], tmp_path: Path, own: Path, tiny_model: Path
) -> None:
    rows = train(tmp_path / "run", tiny_model, own, method=method, answers=4, **more)
    assert rows[0].get("rollout/kl", 0.0) == 0.0
    assert all(row["policy/ratio"] == 1.0 for row in rows if "policy/ratio" in row)
    assert all(row["rollout/logp_gap_max"] < 1e-4 for row in rows if "rollout/logp_gap_max" in row)
    assert all(row["rollout/turns"] == 2.0 and row["rollout/length"] <= 6.0 for row in rows if "rollout/turns" in row)
    if method == "online_dpo" and "train/loss" in rows[0]:
        assert rows[0]["train/loss"] == pytest.approx(0.6931, abs=1e-4)
    assert any(tensor.any() for name, tensor in tiny.weights(tmp_path / "run").items() if "lora_B" in name)


def test_a_reward_model_reads_the_conversation(tmp_path: Path, own: Path, tiny_model: Path) -> None:
    """It scores the last token of all; rules read the last answer; what the environment pays comes on top."""
    told = settings(str(own), rules={"regex": {"pattern": "[a-z]", "weight": 2.0}}, reward_weight=0.5, steps=1)
    reward = tiny.hand_made_reward(tmp_path / "toy", tiny_model, torch.zeros(64), bias=3.0)
    told |= {"init": tiny.base(tiny_model), "reward": reward}
    policy(tiny.make_run(tmp_path / "run", "policy"), **told)
    (row,) = tiny.metrics(tmp_path / "run")
    paid = row["rollout/score/environment"]
    assert row["rollout/score/regex"] == paid  # it pays for the same
    assert row["rollout/score"] == pytest.approx(1.5 + 3 * paid)


def test_one_turn_is_the_same_as_prompts(tmp_path: Path, tiny_model: Path) -> None:
    """A task of one turn that the stage judges gives the run on its prompts, to the bit."""
    data = Path(tasks.__file__).parent / "data" / "sentiment.jsonl"
    rules = {"regex": {"pattern": "[a-z]"}}
    a = train(tmp_path / "a", tiny_model, environment={"task": "sentiment"}, rules=rules)
    b = train(tmp_path / "b", tiny_model, environment=None, prompts=str(data), rules=rules)
    extra = {"rollout/score/environment": 0.0}
    assert a == [{**row, **extra} for row in b]
    assert tiny.same_weights(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("method", ["ppo", "remax", "dapo"])
def test_a_restart_changes_no_bit(method: str, tmp_path: Path, own: Path, tiny_model: Path) -> None:
    told: dict[str, Any] = {"method": method, "steps": 4, "answers": 3}
    if method == "ppo":
        told["critic"] = {"warmup": 0}
    whole = train(tmp_path / "whole", tiny_model, own, **told)
    with pytest.raises(tiny.PulledError):
        train(tmp_path / "cut", tiny_model, own, pulled=2, **told)
    assert train(tmp_path / "cut", tiny_model, own, **told) == whole
    assert tiny.same_weights(tmp_path / "whole", tmp_path / "cut")


def test_prompts_that_are_made_up_are_the_same_after_a_restart(tmp_path: Path, tiny_model: Path) -> None:
    told: dict[str, Any] = {"environment": {"task": "arithmetic"}, "rules": {"regex": {"pattern": "[a-z]"}}, "steps": 3}
    whole = train(tmp_path / "whole", tiny_model, **told)
    with pytest.raises(tiny.PulledError):
        train(tmp_path / "cut", tiny_model, pulled=1, **told)
    assert train(tmp_path / "cut", tiny_model, **told) == whole
    assert "rollout/turns" not in whole[0]
    assert whole[0]["rollout/score/environment"] == 0.0  # it cannot add


def test_what_pays_in_the_second_turn_is_learned(tmp_path: Path, own: Path, lively: Path) -> None:
    rows = train(
        tmp_path / "run", lively, own, method="rloo", answers=8, batch=6, steps=12, lr=3e-2, kl={"beta": 0.0},
        sampling={"max_tokens": 2},
    )  # fmt: skip
    first, last = (sum(row["rollout/score"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.25


# --- the recipe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"environment": None}, "exactly one of the two must be given"),
        ({"prompts": "p.jsonl"}, "exactly one of the two must be given"),
        ({"staleness": 1}, r"stages.policy.staleness: conversations .* are not sampled ahead"),
        ({"environment": {"task": "sentiment"}}, r"stages.policy.environment: task 'sentiment' leaves the judging"),
    ],
)
def test_what_cannot_be_run(given: dict[str, Any], said: str, tmp_path: Path, own: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        train(tmp_path / "run", tiny_model, own, **given)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"task": "agian"}, r"r: stages.policy.environment: no text environment 'agian'; did you mean 'again'"),
        ({"pays": 2}, r"r: stages.policy.environment: option 'task' is missing; known: again, arithmetic"),
        ({"task": "again", "pay": 2}, r"r: stages.policy.environment: no option 'pay'; did you mean 'pays'"),
        ({"task": "again", "pays": "much"}, r"r: stages.policy.environment.pays='much': .*number"),
        ("again", r"r: stages.policy.environment='again'"),
    ],
)
def test_what_a_recipe_says_wrong_is_found_before_anything_runs(environment: Any, said: str, own: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        settings(str(own), environment=environment)


def test_a_task_of_ones_own_is_filled_in_and_part_of_the_key(own: Path) -> None:
    raw = {"plugins": str(own), "stages": {"policy": {"environment": {"task": "again", "pays": 2}}}}
    config = check_recipe(raw, "r").stages["policy"]
    assert config.settings["environment"] == {"task": "again", "pays": 2.0, "max_turns": 2}
    (method,) = own_methods(config).values()
    assert (method.name, method.digest) == ("again", TASKS["again"].digest)
    config = check_recipe({"stages": {"policy": {"environment": {"task": "arithmetic"}}}}, "r").stages["policy"]
    assert own_methods(config) == {}
    assert "again" not in TASKS  # another recipe, without the folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def odd(task: int, *, n: int = 1): ...\n", "may ask for 'reward', a function, and nothing else"),
        ("def odd(*, n: int = 1) -> int:\n    return n\n", "makes no TextEnvironment"),
        ("def odd(*, task: int = 1) -> int:\n    return 1\n", "'odd' cannot have an option 'task'"),
    ],
)
def test_a_task_of_ones_own_that_does_not_fit(
    text: str, said: str, tmp_path: Path, own: Path, tiny_model: Path
) -> None:
    (own / "tasks" / "odd.py").write_text(text)
    with pytest.raises(ConfigError, match=said):
        train(tmp_path / "run", tiny_model, own, environment={"task": "odd"})
