from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny_stages as tiny
from trimtab.model.sampler import Sampling
from trimtab.seeds import derive
from trimtab.stages._online_settings import KL, Critic
from trimtab.stages.policy import policy
from trimtab.stages.reward import reward
from trimtab.stages.sft import sft
from trimtab.train import checkpoint
from trimtab.train.loop import Pace, Update, batch_at, epoch_order, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Means, Run, Silent


class Killed(BaseException):
    """Stands for a kill in the midst of a step."""


class Regression:
    """y = 3 x - 1 by two small layers: noise from (seed, step), two updates a step, a state that must survive."""

    def __init__(self, seed: int, *, size: int = 7, die_at: tuple[int, int] | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
        for parameter in self.model.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
        self.x = torch.randn(11, 2, generator=generator)
        self.seed, self.size, self.die_at, self.average = seed, size, die_at, 0.0

    def optimiser(self) -> Optimiser:
        first, last = list(self.model[0].parameters()), list(self.model[2].parameters())
        return Optimiser(
            [
                ParameterGroup(name="first", parameters=first, lr=0.05),
                ParameterGroup(name="last", parameters=last, lr=0.1),
            ]
        )

    def updates(self, step: int, log: Means) -> Iterator[Update[tuple[int, Tensor]]]:
        noise = torch.randn(len(self.x), generator=torch.Generator().manual_seed(derive(self.seed, "noise", step)))
        for turn in range(2):
            if self.die_at == (step, turn):
                raise Killed
            items = batch_at(2 * step + turn, len(self.x), self.size, self.seed)
            micros = [(self.size, torch.tensor(items[i : i + 2])) for i in range(0, self.size, 2)]
            yield Update(
                micros=micros,
                accumulate=lambda micro: self.accumulate(micro, noise),
                groups=("last",) if step < 2 else None,
            )

    def accumulate(self, micro: tuple[int, Tensor], noise: Tensor) -> Mapping[str, Tensor]:
        total, items = micro
        x = self.x[items]
        errors = (self.model(x)[:, 0] - (3 * x[:, 0] - 1 + 0.01 * noise[items])).square()
        (errors.sum() / total + 0.001 * self.average * errors.sum()).backward()
        self.average = 0.9 * self.average + 0.1 * float(errors.detach().mean())
        return {"train/loss": errors}

    def state(self) -> dict[str, Any]:
        return {"average": self.average}

    def load(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"]


STEPS = 6
PACE = Pace(steps=STEPS, warmup=0.2)


def start(folder: Path, *, die_at: tuple[int, int] | None = None, every: float = 0.0) -> Regression:
    task = Regression(5, die_at=die_at)
    fit(tiny.make_run(folder, "toy", checkpoint_seconds=every), task, task.optimiser(), PACE)
    return task


def same_models(a: Regression, b: Regression) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("step", range(STEPS))
def test_interrupted_at_any_step_ends_with_the_same_bits(tmp_path: Path, step: int, turn: int) -> None:
    whole = start(tmp_path / "whole")
    with pytest.raises(Killed):
        start(tmp_path / "cut", die_at=(step, turn))
    resumed = start(tmp_path / "cut")
    assert same_models(whole, resumed)
    assert whole.average == resumed.average
    assert tiny.metrics(tmp_path / "cut") == tiny.metrics(tmp_path / "whole")
    assert len(tiny.metrics(tmp_path / "cut")) == STEPS


def test_interrupted_at_every_step_in_turn(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole")
    for step in range(STEPS):
        with pytest.raises(Killed):
            start(tmp_path / "cut", die_at=(step, 1))
    resumed = start(tmp_path / "cut")
    assert same_models(whole, resumed)
    assert tiny.metrics(tmp_path / "cut") == tiny.metrics(tmp_path / "whole")


def test_interrupted_without_a_checkpoint_starts_over(tmp_path: Path) -> None:
    whole = start(tmp_path / "whole", every=3600.0)
    with pytest.raises(Killed):
        start(tmp_path / "cut", die_at=(4, 0), every=3600.0)
    assert checkpoint.latest(tmp_path / "cut" / "checkpoints") is None
    assert len(tiny.metrics(tmp_path / "cut")) == 4
    resumed = start(tmp_path / "cut", every=3600.0)
    assert same_models(whole, resumed)
    assert tiny.metrics(tmp_path / "cut") == tiny.metrics(tmp_path / "whole")


def test_interrupted_between_the_log_and_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(tmp_path / "whole")
    save = checkpoint.save

    def die_third(folder: Path, state: checkpoint.Checkpoint) -> None:
        if state.step == 3:
            raise Killed
        save(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", die_third)
        with pytest.raises(Killed):
            start(tmp_path / "cut")
    assert [row["step"] for row in tiny.metrics(tmp_path / "cut")] == [0, 1, 2]
    resumed = start(tmp_path / "cut")
    assert same_models(whole, resumed)
    assert tiny.metrics(tmp_path / "cut") == tiny.metrics(tmp_path / "whole")


def test_a_finished_stage_does_nothing_more(tmp_path: Path) -> None:
    whole = start(tmp_path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    again = start(tmp_path, die_at=(0, 0))  # would die at the first step
    assert same_models(whole, again)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def test_the_log_and_the_reporter(tmp_path: Path) -> None:
    heard: list[tuple[Any, ...]] = []

    class Listener(Silent):
        def begin(self, stage: str, total: int, unit: str) -> None:
            heard.append((stage, total, unit))

        def advance(self, done: int, values: Mapping[str, float]) -> None:
            heard.append((done, sorted(values)))

    task = Regression(5)
    run = Run(name="toy", folder=tmp_path, reporter=Listener())
    fit(run, task, task.optimiser(), PACE, show=("train/loss", "no/such"))
    assert heard == [("toy", 6, "step"), (0, []), *((s, ["train/loss"]) for s in range(1, 7))]
    rows = tiny.metrics(tmp_path)
    assert [r["step"] for r in rows] == list(range(6))
    assert "train/grad_norm/first" not in rows[0]  # not stepped yet
    assert rows[2].keys() >= {"train/grad_norm/first", "train/grad_norm/last", "train/lr/first"}
    # w = ceil(0.2 * 6) = 2 steps up, and the floor at last.
    assert [r["train/lr/last"] for r in rows[:3]] == [0.05, 0.1, 0.1]
    assert rows[-1]["train/lr/last"] == pytest.approx(0.01, rel=1e-12)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@given(items=st.integers(1, 40), batch=st.integers(1, 17), seed=st.integers(0, 5), epochs=st.integers(1, 3))
def test_batches_are_stretches_of_shuffled_epochs(items: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-items * epochs // batch)
    stream = [i for step in range(steps) for i in batch_at(step, items, batch, seed)]
    for epoch in range(epochs):
        assert sorted(stream[epoch * items : (epoch + 1) * items]) == list(range(items))
    assert stream[items : 2 * items] == epoch_order(items, seed, 1)[: len(stream) - items]
    assert all(len(batch_at(step, items, batch, seed)) == batch for step in range(steps))


def test_batch_at_is_a_pure_function() -> None:
    torch.manual_seed(1)
    first = [batch_at(step, 10, 4, 3) for step in range(6)]
    torch.manual_seed(2)
    assert [batch_at(step, 10, 4, 3) for step in reversed(range(6))] == first[::-1]
    assert batch_at(2, 10, 4, 4) != first[2]
    assert batch_at(2, 10, 4, 3) == epoch_order(10, 3, 0)[8:] + epoch_order(10, 3, 1)[:2]  # over an end
    assert batch_at(0, 2, 5, 0) == [*epoch_order(2, 0, 0), *epoch_order(2, 0, 1), epoch_order(2, 0, 2)[0]]
    assert epoch_order(10, 3, 0) != epoch_order(10, 3, 1)


def test_num_steps() -> None:
    assert num_steps(100, 16, 2.0) == 12  # 12.5, to even
    assert num_steps(100, 10, 1.0) == 10
    assert num_steps(3, 16, 0.5) == 1


def sft_stage(folder: Path, model: Path, micro_tokens: int) -> None:
    data = tiny.demonstrations(folder)
    sft(
        tiny.make_run(folder, "sft"), data=data, init=tiny.base(model), epochs=3.0, batch=4, lr=1e-3, lora=tiny.LORA,
        micro_tokens=micro_tokens,
    )  # fmt: skip


def reward_stage(folder: Path, model: Path, micro_tokens: int) -> None:
    reward(
        tiny.make_run(folder, "reward"), data=tiny.preferences(folder), init=tiny.base(model), epochs=3.0, batch=4,
        lr=1e-3, lora=tiny.LORA, micro_tokens=micro_tokens,
    )  # fmt: skip


def policy_stage(folder: Path, model: Path, micro_tokens: int) -> None:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 0.1
    policy(
        tiny.make_run(folder, "policy"), init=tiny.base(model), prompts=tiny.prompts(folder), steps=3, batch=4,
        reward=tiny.hand_made_reward(folder / "toy", model, weight), answers=2, epochs=2, minibatches=2, lr=1e-3,
        critic=Critic(warmup=1), lora=tiny.LORA, sampling=Sampling(max_tokens=8), micro_tokens=micro_tokens,
        kl=KL(beta=0.1, target=0.01, horizon=100),
    )  # fmt: skip


@pytest.mark.parametrize("stage", [sft_stage, reward_stage, policy_stage])
def test_micro_tokens_change_nothing(
    tmp_path: Path, tiny_model: Path, stage: Callable[[Path, Path, int], None]
) -> None:
    for micro_tokens in (1, 64, 4096):
        stage(tmp_path / str(micro_tokens), tiny_model, micro_tokens)
    tiny.same_curves(tmp_path / "4096", tmp_path / "1", tolerance=1e-5)
    tiny.same_curves(tmp_path / "4096", tmp_path / "64", tolerance=1e-5)
