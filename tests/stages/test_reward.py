from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tiny_stages as tiny
from trimtab.config import DataRef
from trimtab.errors import DataError
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.read import read_groups
from trimtab.rewards.reward_model import RewardModel
from trimtab.stages.reward import _heldout, _load, _Task, reward
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack
from trimtab.train.run import Means

LN2 = float(torch.tensor(math.log(2.0)))  # in float32
PAIR = {"kind": "pair", "better": 0, "worse": 1}
TIE = {**PAIR, "tie": "tie"}


def train(folder: Path, model: Path, data: DataRef, **settings: object) -> dict[str, float]:
    run = tiny.make_run(folder, "reward")
    result = reward(run, data=data, init=tiny.base(model), **{"lora": tiny.LORA, "epochs": 1.0, **settings})  # type: ignore[arg-type]
    return dict(result.metrics)


def test_step_zero_is_ln_2(tmp_path: Path, tiny_model: Path) -> None:
    train(tmp_path, tiny_model, tiny.preferences(tmp_path), batch=6)
    (first,) = tiny.metrics(tmp_path)
    assert first["train/loss"] == pytest.approx(LN2, rel=1e-15)
    assert first["train/margin"] == 0.0
    assert first["train/accuracy"] == 0.0  # a tie is not right


def test_step_zero_with_margin_and_soft_labels(tmp_path: Path, tiny_model: Path) -> None:
    # Equal scores: margin m costs log(1 + e^m), whoever is said to win; strengths 2 and none (1) under margin 0.5.
    rows = [
        tiny.row("a", "Why?", ["So", "No"], [{**PAIR, "strength": 2.0, "probability": 0.8}]),
        tiny.row("b", "Who?", ["Me", "You there"], [PAIR]),
    ]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    train(tmp_path, tiny_model, data, batch=2, margin=0.5)
    expected = (math.log1p(math.exp(1.0)) + math.log1p(math.exp(0.5))) / 2
    assert tiny.metrics(tmp_path)[0]["train/loss"] == pytest.approx(expected, rel=1e-6)


def test_learns_and_is_standardised(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.preferences(tmp_path)
    found = train(tmp_path, tiny_model, data, epochs=15, batch=6, lr=1e-2, head_lr=1e-2)
    rows = tiny.metrics(tmp_path)
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert rows[-1]["train/accuracy"] > 0.8
    assert found["data/pairs"] == 5 + 3
    model = RewardModel.open(tiny.finished(tmp_path, "reward", "reward", str(tiny_model)), dtype="float32")
    scores = torch.tensor([s for row in model.score(read_groups(data.source).groups) for s in row])
    assert len(scores) == 5 * 2 + 3
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    # Folded into the head: the saved one is the trained one, (w / s, (b - m) / s), and differences keep their sign.
    assert found["score/std_before"] > 0


def alone(prompt: tuple[int, ...], answer: tuple[int, ...]) -> TreeBatch:
    """One answer by itself."""
    return pack([TokenGroup(prompt=prompt, answers=(answer,))])


def hand_loss(scores: list[Tensor], center: float) -> Tensor:
    """One pair, and a ranking 2 > 0 > 1 whose three pairs weigh a third each."""

    def pair(b: Tensor, w: Tensor) -> Tensor:
        return -F.logsigmoid(b - w) + center * (b + w).square()

    (a0, a1), (b0, b1, b2) = scores
    return (pair(a0, a1) + (pair(b2, b0) + pair(b2, b1) + pair(b0, b1)) / 3) / 2


@pytest.mark.parametrize("micro_tokens", [1, 4096])
def test_a_ranking_weighs_as_much_as_a_pair(tmp_path: Path, tiny_model: Path, micro_tokens: int) -> None:
    rows = [
        tiny.row("pair", "Why?", ["Because it rains", "No"], [PAIR]),
        tiny.row("rank", "Rank!", ["one", "two two", "3"], [{"kind": "ranking", "order": [[2], [0], [1]]}]),
    ]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    trunk = Trunk.load(tiny_model, dtype="float32")
    trunk.add_adapter("reward", tiny.LORA, seed=3)
    head = ScalarHead(trunk.hidden_size, std=0.5, seed=1)
    groups, tokens = _load(data, trunk, 512, tiny.make_run(tmp_path, "reward"))
    task = _Task(trunk, head, groups, tokens, batch=2, micro_tokens=micro_tokens, margin=0.0, center=0.01, seed=0)
    adapter = trunk.train_adapter("reward")

    with trunk.using("reward"):
        scores = []
        for item in tokens:
            hidden = [trunk.hidden(alone(item.prompt, answer))[-1] for answer in item.answers]
            scores.append(head(torch.stack(hidden)))
        hand = hand_loss(scores, 0.01)
        wanted = torch.autograd.grad(hand, [*head.parameters(), *adapter])
        (update,) = task.updates(0, Means())
        assert len(update.micros) == (2 if micro_tokens == 1 else 1)
        for micro in update.micros:
            update.accumulate(micro)
    for parameter, gradient in zip([*head.parameters(), *adapter], wanted, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def heldout_rows() -> list[dict[str, object]]:
    """Longer wins: yes, no, equal, and in the ranking of three (1 > 0 > 2) yes, yes, no. One loser was cut."""
    rows = [
        tiny.row("long", "Why?", ["a long answer", "short"], [PAIR]),
        tiny.row("short", "Why?", ["short", "a long answer"], [PAIR]),
        tiny.row("equal", "Why?", ["abc", "def"], [PAIR]),
        tiny.row("rank", "Why?", ["four", "seven77", "sixsix"], [{"kind": "ranking", "order": [[1], [0], [2]]}]),
    ]
    rows[1]["answers"][1]["finish"] = "length"
    rows[0]["meta"] = {"flaw": "vague"}
    rows[1]["meta"] = {"flaw": "rude"}
    return rows


def test_heldout_baselines_by_hand(tmp_path: Path, tiny_model: Path) -> None:
    trunk = Trunk.load(tiny_model, dtype="float32")
    data = tiny.write_rows(tmp_path / "heldout.jsonl", heldout_rows())
    groups, tokens = _load(data, trunk, 512, tiny.make_run(tmp_path, "reward"))
    found = _heldout(RewardModel(trunk, None, ScalarHead(trunk.hidden_size)), groups, tokens)
    assert found["heldout/n"] == 6
    assert found["heldout/accuracy"] == 0.5  # a head of zeros ties everywhere
    assert found["heldout/longer_wins"] == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert found["heldout/finished_wins"] == pytest.approx((0.5 + 1 + 0.5 * 4) / 6)
    assert found["heldout/accuracy/vague"] == found["heldout/accuracy/rude"] == 0.5


def test_heldout_accuracy_counts_the_right_pairs(tmp_path: Path, tiny_model: Path) -> None:
    trunk = Trunk.load(tiny_model, dtype="float32")
    data = tiny.write_rows(tmp_path / "heldout.jsonl", heldout_rows())
    groups, tokens = _load(data, trunk, 512, tiny.make_run(tmp_path, "reward"))
    verdicts = [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 1, 0), (3, 1, 2), (3, 0, 2)]
    seen = set()
    for seed in range(4):
        model = RewardModel(trunk, None, ScalarHead(trunk.hidden_size, std=1.0, seed=seed))
        scores = model.score(groups)
        right = [float(scores[g][b] > scores[g][w]) for g, b, w in verdicts]
        found = _heldout(model, groups, tokens)
        assert found["heldout/accuracy"] == pytest.approx(sum(right) / 6)
        assert found["heldout/accuracy/vague"] == right[0]
        assert found["heldout/accuracy_lo"] <= found["heldout/accuracy"] <= found["heldout/accuracy_hi"]
        seen.add(sum(right))
    assert len(seen) > 1


def test_heldout_is_reported_by_the_stage(tmp_path: Path, tiny_model: Path) -> None:
    heldout = tiny.write_rows(tmp_path / "heldout.jsonl", heldout_rows())
    found = train(tmp_path, tiny_model, tiny.preferences(tmp_path), batch=6, heldout=heldout)
    assert found["heldout/longer_wins"] == pytest.approx(3.5 / 6)


def test_ties_are_left_out_and_said(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        tiny.row("judged", "Why?", ["Because", "No"], [PAIR]),
        tiny.row("tied", "Who?", ["Me", "You"], [TIE]),
        tiny.row("unjudged", "When?", ["Now", "Then"]),
        tiny.row("all tied", "Rank!", ["a", "b"], [{"kind": "ranking", "order": [[0, 1]]}]),
        tiny.row("half tied", "Rank!", ["a", "b", "c"], [{"kind": "ranking", "order": [[0, 1], [2]]}]),
    ]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    run = tiny.make_run(tmp_path, "reward")
    result = reward(run, data=data, init=tiny.base(tiny_model), lora=tiny.LORA)
    assert result.metrics["data/pairs"] == 1 + 2
    assert any("3 of 5 groups hold no strict preference" in note for note in run.notes)


def test_nothing_but_ties_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "p.jsonl", [tiny.row("tied", "Who?", ["Me", "You"], [TIE])])
    with pytest.raises(DataError, match="no preference pairs"):
        reward(tiny.make_run(tmp_path, "reward"), data=data, init=tiny.base(tiny_model), lora=tiny.LORA)
