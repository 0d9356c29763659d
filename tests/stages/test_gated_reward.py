"""The gated reward: numbers by hand, what is used is what was trained, resuming, and where it can be used."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import ConfigError, ModelError
from trimtab.model.trunk import Trunk
from trimtab.records.read import read_groups
from trimtab.records.types import Answer, Group, Message
from trimtab.rewards.gated import Attributes, Gate, GatedReward, debias_matrix, read_hidden
from trimtab.stages._gated_fit import (
    PENALTIES,
    RIDGES,
    GateTask,
    Judged,
    fit_attribute,
    penalty_of,
    ridge_regression,
    spearman,
)
from trimtab.stages.gated_reward import gated_reward
from trimtab.tensors.tree import TokenGroup, pack
from trimtab.train.loop import Pace, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run

SMALL: Mapping[str, Any] = {"hidden": 8, "steps": 6, "batch": 3, "lr": 1e-2}


def gate(count: int, hidden_size: int = 4, *, layers: int = 1, seed: int = 0, temperature: float = 1.0) -> Gate:
    """A gate that says something."""
    torch.manual_seed(seed)
    made = Gate(hidden_size, count, hidden=5, layers=layers, temperature=temperature)
    for parameter in made.net.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return made


# --- numbers by hand --------------------------------------------------------------------------------------------------


def test_the_debias_matrix_by_hand() -> None:
    """Penalties .1, .2, 1 with verbosity last; R (1, 2, 5) becomes (.5, 1, 0); shares (.5, .5, 0) give .75."""
    matrix = debias_matrix([0.1, 0.2, 1.0], 2)
    expected = torch.tensor([[1, 0, 0], [0, 1, 0], [-0.1, -0.2, 0]], dtype=torch.float64)
    torch.testing.assert_close(matrix, expected)
    after = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) @ matrix
    assert after.tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert float(after @ torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)) == pytest.approx(0.75)


def test_length_stands_behind_the_attributes() -> None:
    """R (1, 2) and a length of 50 out of 100 with penalties .1 and .4: 1 - .05 and 2 - .2."""
    attributes = Attributes(torch.eye(2), debias_matrix([0.1, 0.4], None), longest=100.0)
    found = attributes(torch.tensor([[1.0, 2.0]]), torch.tensor([50.0]))
    assert found.tolist()[0] == pytest.approx([0.95, 1.8])


def test_ridge_by_hand() -> None:
    """One feature, x = 1, 2, y = 2, 4 (no intercept): w = x.y / (x.x + ridge) = 10 / (5 + ridge)."""
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([2.0, 4.0])
    assert ridge_regression(x, y, (0.0, 5.0)).squeeze(1).tolist() == pytest.approx([2.0, 1.0])


def test_ridge_finds_a_linear_rule_again() -> None:
    generator = torch.Generator().manual_seed(0)
    x, rule = torch.randn(200, 8, generator=generator), torch.randn(8, generator=generator)
    found = fit_attribute(x, x @ rule, torch.arange(200), seed=0)
    assert found.ridge == RIDGES[0]
    assert found.explained > 0.999
    torch.testing.assert_close(found.weight, rule.double(), rtol=1e-4, atol=1e-4)
    noise = fit_attribute(x, torch.randn(200, generator=generator), torch.arange(200), seed=0)
    assert noise.explained < 0.3
    assert noise.ridge > found.ridge  # what cannot be foreseen is shrunk


@given(st.integers(0, 10_000), st.floats(0, 0.9))
@settings(max_examples=25, deadline=None)
def test_what_is_left_goes_with_verbosity_no_more(seed: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    verbosity = torch.rand(40, generator=generator)
    scores = 0.3 * torch.rand(40, generator=generator) + 0.5 * verbosity
    penalty = penalty_of(scores, verbosity, threshold=threshold)

    def left(p: float) -> float:
        return spearman((scores.double() - p * verbosity.double()).numpy(), verbosity.double().numpy())

    assert penalty in (*PENALTIES, 1.0)
    assert penalty == 1.0 or left(penalty) <= threshold
    assert all(left(p) > threshold for p in PENALTIES if p < penalty)


def test_verbosity_itself_is_beyond_the_grid() -> None:
    """R = 2 V: even 0.95 V leaves 1.05 V, in the same order; the fallback is 1."""
    verbosity = torch.linspace(0, 1, 9)
    assert penalty_of(2 * verbosity, verbosity, threshold=0.03) == 1.0
    assert penalty_of(-verbosity, verbosity, threshold=0.03) == 0.0
    assert penalty_of(0.5 * verbosity, verbosity, threshold=0.03) == 0.5


@given(st.integers(1, 6), st.integers(0, 2), st.floats(0.1, 20))
@settings(max_examples=20, deadline=None)
def test_shares_are_shares(count: int, layers: int, temperature: float) -> None:
    shares = gate(count, layers=layers, temperature=temperature)(torch.randn(7, 4))
    assert bool((shares >= 0).all())
    torch.testing.assert_close(shares.sum(-1), torch.ones(7))


def test_a_new_gate_is_the_plain_mean() -> None:
    fresh = Gate(4, 3, hidden=5, layers=1, temperature=10.0)
    attributes = torch.tensor([[1.0, 2.0, 6.0]])
    assert fresh.mix(attributes, fresh(torch.randn(1, 4))).tolist() == pytest.approx([3.0])


def test_the_gates_loss_by_hand() -> None:
    """Equal shares. First prompt: means 1.2 and .4, ln(1 + e^-.8) = .371101; second: equal means, ln 2 twice, .8 sure.

    Both prompts weigh one half, whatever number of pairs they have.
    """
    attributes = torch.tensor([[1.0, 1.4], [0.2, 0.6], [1.0, 0.0], [0.0, 1.0]])
    pairs = (((0, 1, 1.0),), ((2, 3, 1.0), (3, 2, 0.8)))
    fresh = Gate(4, 2, hidden=5, layers=1, temperature=1.0)
    task = GateTask(fresh, Judged(attributes=attributes, prompts=torch.randn(2, 4), pairs=pairs), batch=2, seed=0)
    losses, weight, leads = task.losses([0, 1])
    assert losses.tolist() == pytest.approx([0.371101, math.log(2), math.log(2)], abs=1e-5)
    assert weight.tolist() == pytest.approx([0.5, 0.25, 0.25])
    assert leads.tolist() == pytest.approx([0.8, 0.0, 0.0], abs=1e-6)


def test_a_gate_finds_out_what_counts_for_which_prompt(tmp_path: Path) -> None:
    """One attribute decides where z_0 > 0, another elsewhere; on prompts that it has not seen the gate knows which."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(300, 6, generator=generator)
    attributes = 0.5 + 0.1 * torch.randn(600, 3, generator=generator)
    leads = (attributes[0::2] - attributes[1::2])[torch.arange(300), (prompts[:, 0] > 0).long()]
    pairs = tuple(((2 * i, 2 * i + 1, 1.0) if lead > 0 else (2 * i + 1, 2 * i, 1.0),) for i, lead in enumerate(leads))
    torch.manual_seed(1)
    new = Gate(6, 3, hidden=32, layers=1, temperature=10.0)

    def accuracy() -> float:
        whole = GateTask(new, Judged(attributes=attributes, prompts=prompts, pairs=pairs), batch=64, seed=0)
        with torch.no_grad():
            return float((whole.losses(range(200, 300))[2] > 0).float().mean())

    before = accuracy()
    task = GateTask(new, Judged(attributes=attributes, prompts=prompts, pairs=pairs[:200]), batch=64, seed=0)
    optimiser = Optimiser([ParameterGroup(name="gate", parameters=list(new.parameters()), lr=1e-2)])
    fit(tiny.make_run(tmp_path, "gate"), task, optimiser, Pace(steps=100))
    assert before < 0.8
    assert accuracy() > before + 0.1


def test_prompts_end_where_their_answers_begin(tiny_model: Path) -> None:
    """z is that of the prompt run alone, for every prompt of a batch; without a prompt it is zero."""
    trunk = Trunk.load(tiny_model, dtype="float32")
    groups = [TokenGroup(prompt=(5, 6, 7), answers=((8, 9), (4,))), TokenGroup(prompt=(), answers=((3, 3),)),
              TokenGroup(prompt=(9,), answers=((1,),))]  # fmt: skip
    last, prompt = read_hidden(trunk, pack(groups))
    assert last.shape == (4, trunk.hidden_size)
    assert not prompt[1].any()
    for g in (0, 2):
        alone = trunk.hidden(pack([TokenGroup(prompt=groups[g].prompt, answers=())]))[-1]
        torch.testing.assert_close(prompt[g], alone, rtol=1e-5, atol=1e-5)


# --- the stage --------------------------------------------------------------------------------------------------------


def labels(folder: Path, *names: str) -> DataRef:
    """Answers with numbers; the second attribute is missing of every third answer."""
    rows = []
    for i, question in enumerate(tiny.QUESTIONS):
        texts = [tiny.ANSWERS[i], "No" * (i + 1), "Maybe so"]
        verdicts = [
            {"kind": "score", "answer": j, "values": {
                name: float((j * 3 + i + n * 2) % 5) for n, name in enumerate(names) if n != 1 or (i + j) % 3
            }}
            for j in range(3)
        ]  # fmt: skip
        rows.append(tiny.row(f"l{i}", question, texts, verdicts))
    found: DataRef = tiny.write_rows(folder / "labels.jsonl", rows)
    return found


def train(folder: Path, init: ModelRef, *names: str, run: Run | None = None, **options: Any) -> dict[str, float]:
    data, preferences = labels(folder, *(names or ("wit", "tact"))), tiny.preferences(folder)
    result = gated_reward(
        run or tiny.make_run(folder, "gated"), init=init, data=data, preferences=preferences, heldout=preferences,
        **{**SMALL, **options},
    )  # fmt: skip
    assert result.base == init.base
    return dict(result.metrics)


def opened(folder: Path, init: ModelRef) -> GatedReward:
    return GatedReward.open(tiny.finished(folder, "gated", "gated_reward", init.base), dtype="float32")


def by_hand(folder: Path, init: ModelRef, group: Group, *, debiased: bool = True) -> list[float]:
    """The score of each answer out of the files alone, every answer run by itself."""
    state = load_file(folder / "gated.safetensors")
    model = opened(folder, init)
    card, trunk = model.card, model.trunk
    item = trunk.chat.group(group)
    found = []
    for answer in item.answers:
        with trunk.using(model.adapter):
            hidden = trunk.hidden(pack([TokenGroup(prompt=item.prompt, answers=(answer,))]))
        z, h = hidden[len(item.prompt) - 1], hidden[-1]
        z = (z - state["gate/center"]) / state["gate/spread"]
        inner = (state["gate/net.0.weight"] @ z + state["gate/net.0.bias"]).clamp_min(0)
        shares = ((state["gate/net.2.weight"] @ inner + state["gate/net.2.bias"]) / card.temperature).softmax(0)
        attributes = [float(w @ h) for w in state["weight"]]
        if debiased:
            place = card.attributes.index(card.verbosity) if card.verbosity in card.attributes else None
            verbose = len(answer) / card.longest if place is None else attributes[place]
            attributes = [r - p * verbose for r, p in zip(attributes, card.penalties, strict=True)]
        mixed = math.exp(float(state["gate/log_scale"])) * sum(
            float(g) * r for g, r in zip(shares, attributes, strict=True)
        )
        found.append((mixed - card.mean) / card.std)
    return found


@pytest.mark.parametrize("names", [("wit", "tact"), ("wit", "tact", "verbosity")])
def test_what_is_used_is_what_was_trained(
    tmp_path: Path, toy_reward: ModelRef, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate learns on attributes without verbosity, and scores are made of the same: from the files, by hand."""
    seen: list[Judged] = []
    original = GateTask.check_start

    def look(task: GateTask) -> None:
        seen.append(task.judged)
        original(task)

    monkeypatch.setattr(GateTask, "check_start", look)
    metrics = train(tmp_path, toy_reward, *names, threshold=-0.5)  # a hard one, so that penalties are not 0
    card = opened(tmp_path, toy_reward).card
    assert card.verbosity == ("verbosity" if "verbosity" in names else "length")
    assert any(p > 0 for n, p in zip(card.attributes, card.penalties, strict=True) if n != card.verbosity)
    groups = read_groups(str(tmp_path / "preferences.jsonl")).groups
    model = opened(tmp_path, toy_reward)
    scores = [score for row in model.score(groups) for score in row]
    assert scores == pytest.approx([s for g in groups for s in by_hand(tmp_path, toy_reward, g)], abs=1e-3)
    biased = [s for g in groups for s in by_hand(tmp_path, toy_reward, g, debiased=False)]
    assert max(abs(a - b) for a, b in zip(scores, biased, strict=True)) > 0.05
    used = torch.cat([model.read_batch(pack([model.trunk.chat.group(g)]))[0] for g in groups])
    torch.testing.assert_close(seen[0].attributes, used, rtol=1e-4, atol=1e-4)
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-4)
    assert torch.tensor(scores).std(correction=0) == pytest.approx(1, abs=1e-4)
    shares = sum(metrics[f"gate/{name}"] for name in card.attributes)
    assert shares == pytest.approx(1)
    assert {"heldout/accuracy", "heldout/longer_wins", "heldout/ungated", "heldout/ungated_undebiased"} <= set(metrics)
    first = tiny.metrics(tmp_path)[0]
    assert 0 < first["train/loss"] < 2


def test_the_gate_learns_and_leaves_the_body_alone(tmp_path: Path, toy_reward: ModelRef) -> None:
    assert toy_reward.artifact is not None
    train(tmp_path, toy_reward, steps=40, batch=6)
    rows = tiny.metrics(tmp_path)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    mine, theirs = (
        load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, toy_reward.artifact.folder)
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert not list(tmp_path.glob("features*"))


def test_answers_to_one_prompt_share_their_gate(tmp_path: Path, toy_reward: ModelRef) -> None:
    train(tmp_path, toy_reward)
    model = opened(tmp_path, toy_reward)
    prompt = (Message(role="user", content="Why?"),)

    def shares(*texts: str) -> torch.Tensor:
        group = Group(id="g", prompt=prompt, answers=tuple(Answer(text=text) for text in texts))
        return model.read_batch(pack([model.trunk.chat.group(group)]))[1]

    first, second = shares("So", "Because it rains")
    assert torch.equal(first, second)
    torch.testing.assert_close(shares("Something else entirely")[0], first, rtol=1e-5, atol=1e-6)


def test_a_gate_that_was_killed_goes_on_to_the_same_bits(
    tmp_path: Path, toy_reward: ModelRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", toy_reward)
    run = tiny.make_run(tmp_path / "cut", "gated", checkpoint_seconds=0.0)
    original = Run.log

    def stop(self: Run, row: Mapping[str, float]) -> None:
        original(self, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", toy_reward, run=run)
    monkeypatch.undo()
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "cut").glob("features*")}
    assert len(kept) == 3
    again = replace(run, notes=[])
    train(tmp_path / "cut", toy_reward, run=again)
    assert any("resumed after step 3" in note for note in again.notes)
    assert tiny.same_weights(tmp_path / "whole", tmp_path / "cut")
    tiny.same_curves(tmp_path / "whole", tmp_path / "cut", tolerance=0)


def test_what_cannot_be_meant_is_refused(tmp_path: Path, toy_reward: ModelRef, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match=r"verbosity: no attribute 'wti'; did you mean 'wit'\?"):
        train(tmp_path, toy_reward, verbosity="wti")
    with pytest.raises(ConfigError, match=r"stages\.gated\.attributes: no label"):
        train(tmp_path / "b", toy_reward, attributes=("wit", "tcat"))
    with pytest.raises(ModelError, match="is not a reward model"):
        train(tmp_path / "c", tiny.base(tiny_model))
    with pytest.raises(ModelError, match="not a gated reward model"):
        opened(tmp_path / "c", toy_reward)
