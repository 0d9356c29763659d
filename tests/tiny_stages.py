"""Small runs of the real stages on the tiny model, for the tests of several rooms."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trimtab.artifacts import Artifact
from trimtab.config import DataRef, ModelRef
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Lora, ScalarHead, Trunk
from trimtab.stages._methods import METHODS
from trimtab.stages._online import Online
from trimtab.stages._online_settings import KL, Clip, Critic, Keep, Shaping
from trimtab.stages._rollout import Roller, Rollout, Sample
from trimtab.stages._rounds import Rounds
from trimtab.train.run import Means, Row, Run, Silent

LORA = Lora(rank=4, alpha=8)
NO_WARMUP = Critic(warmup=0)
PLAIN = Shaping(eos="none")
QUESTIONS = ("What is tea?", "Why?", "How tall is the old tower by the sea?", "Say a word", "Who?", "Where is it now?")
ANSWERS = ("A leaf.", "Because it rains a good deal there.", "Forty metres.", "Word", "Nobody knows.", "Here")


def base(folder: Path) -> ModelRef:
    """The bare model in a folder."""
    return ModelRef("base", str(folder))


def make_run(folder: Path, name: str, **settings: Any) -> Run:
    """The surroundings of a stage, working in a fresh folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return Run(name=name, folder=folder, **{"dtype": "float32", **settings})


class PulledError(Exception):
    """The plug."""


class Plug(Silent):
    """Ends a run after some steps."""

    def __init__(self, after: int) -> None:
        self.after = after

    def advance(self, done: int, values: Row) -> None:
        if done == self.after:
            raise PulledError


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> DataRef:
    """Write Groups as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataRef(str(path))


def row(name: str, prompt: str, answers: Sequence[str], verdicts: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """One Group as a JSON line."""
    return {
        "id": name,
        "prompt": [{"role": "user", "content": prompt}],
        "answers": [{"text": text, "finish": "stop"} for text in answers],
        "verdicts": list(verdicts),
    }


def demonstrations(folder: Path, count: int = 6) -> DataRef:
    """Short questions with one answer each, of different lengths."""
    return write_rows(folder / "demonstrations.jsonl", [row(f"d{i}", QUESTIONS[i], [ANSWERS[i]]) for i in range(count)])


def preferences(folder: Path, count: int = 6) -> DataRef:
    """Pairs, and one ranking of three."""
    rows = [
        row(f"p{i}", QUESTIONS[i], [ANSWERS[i], "No" * (i + 1)], [{"kind": "pair", "better": 0, "worse": 1}])
        for i in range(count - 1)
    ]
    ranking = {"kind": "ranking", "order": [[2], [0], [1]]}
    return write_rows(folder / "preferences.jsonl", [*rows, row("k", "Rank!", ["one", "two two", "3"], [ranking])])


def prompts(folder: Path, count: int = 6) -> DataRef:
    """Questions without answers."""
    return write_rows(folder / "prompts.jsonl", [row(f"q{i}", QUESTIONS[i], []) for i in range(count)])


def finished(folder: Path, name: str, stage: str, base: str) -> ModelRef:
    """A stage's folder as an earlier stage of a recipe."""
    return ModelRef(name, base, Artifact(folder, {"name": name, "stage": stage, "key": "0" * 64, "base": base}))


def hand_made_reward(folder: Path, model: Path, weight: torch.Tensor, bias: float = 0.0) -> ModelRef:
    """A reward model whose adapter says nothing and whose head is given: r = w . h + b of the bare model."""
    folder.mkdir(parents=True, exist_ok=True)
    trunk = Trunk.load(model, dtype="float32")
    trunk.add_adapter("reward", LORA, seed=0)
    trunk.save_adapter("reward", folder)
    head = ScalarHead(trunk.hidden_size)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.fill_(bias)
    head.save(folder)
    return finished(folder, "toy", "reward", str(model))


def metrics(folder: Path) -> list[dict[str, float]]:
    """The log without the seconds."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("seconds")} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a stage left."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}/{name}": tensor for name, tensor in load_file(path).items()}
    return found


def same_weights(a: Path, b: Path) -> bool:
    """Tell whether two folders hold the same bits."""
    mine, theirs = weights(a), weights(b)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def same_curves(a: Path, b: Path, *, tolerance: float) -> None:
    """Assert that two logs hold the same numbers."""
    mine, theirs = metrics(a), metrics(b)
    assert len(mine) == len(theirs) > 0
    for x, y in zip(mine, theirs, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert abs(x[name] - y[name]) <= tolerance * max(1.0, abs(x[name])), (x["step"], name, x[name], y[name])


def policy_task(
    folder: Path, *, init: ModelRef, reward: ModelRef, source: DataRef, layout: str = "shared", answers: int = 2,
    sampling: Sampling | None = None, critic: Critic = NO_WARMUP, shaping: Shaping = PLAIN, batch: int = 3,
    **settings: Any,
) -> Online:  # fmt: skip
    """What ``policy`` builds before it trains, to look inside and to break."""
    from trimtab.data.encode import encode
    from trimtab.model.roles import build_roles
    from trimtab.records.read import read_groups
    from trimtab.rewards.scorer import open_scorer

    run = make_run(folder, "policy")
    sampling = sampling or Sampling(max_tokens=6)
    roles = build_roles(
        init, reward, layout=layout, critic=critic.start, frozen=critic.fit == "ridge", lora=LORA, seed=0,  # type: ignore[arg-type]
        dtype="float32",
    )  # fmt: skip
    scorer = open_scorer(reward, trunk=roles.reward_trunk, dtype="float32")
    actor = roles.actor
    groups, tokens = encode(
        read_groups(source.source).groups, actor.trunk.chat, max_length=512, run=run, what="prompts"
    )
    sampler = TorchSampler(actor.trunk, actor.adapter, stop=actor.trunk.chat.stop)
    roller = Roller(
        roles, sampler, scorer, groups, tokens, k=answers, sampling=sampling, minibatches=1, micro_tokens=2048, seed=0
    )
    rounds = Rounds(run, roller, num_prompts=len(tokens), batch=batch, keep=Keep(), shaping=shaping)
    values = {"kl": KL(), "clip": Clip(), "gamma": 1.0, "lam": 0.95, "epochs": 1, **settings}
    return Online(run, roles, rounds, METHODS["ppo"], critic=critic, **values)


def roll(task: Online, step: int, chosen: Sequence[int]) -> tuple[Sample, Rollout]:
    """A round of these prompts."""
    sample = task.roller.sample(step, chosen)
    return sample, task.roller.read(sample)


def shaped(task: Online, sample: Sample, rollout: Rollout, log: Means | None = None) -> Any:
    """What the round teaches."""
    scores = task.rounds.shape(sample, rollout.scores)
    return task._shape(0, sample, rollout, scores, Means() if log is None else log)
