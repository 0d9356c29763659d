"""The reward stage on preferences: the first loss, what is learned, weights of prompts, the report, bad rows."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import tiny_stages as tiny
from trimtab.config import DataRef
from trimtab.data.encode import encode
from trimtab.data.judged import read_judged, with_pairs
from trimtab.errors import ConfigError, DataError, InvariantError
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.read import read_groups
from trimtab.records.types import Group
from trimtab.registry import REWARD_LOSSES
from trimtab.rewards.reward_model import CARD, Card, RewardModel
from trimtab.stages._reward_task import Pairs, Task
from trimtab.stages.reward import _measure, reward
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack
from trimtab.train.run import Means

LN2 = float(torch.tensor(math.log(2.0)))  # in float32
PAIR = {"kind": "pair", "better": 0, "worse": 1}
TIE = {**PAIR, "tie": "tie"}


def train(folder: Path, model: Path, data: DataRef, **settings: object) -> dict[str, float]:
    run = tiny.make_run(folder, "reward")
    result = reward(run, data=data, init=tiny.base(model), **{"lora": tiny.LORA, "epochs": 1.0, **settings})  # type: ignore[arg-type]
    return dict(result.metrics)


def load(data: DataRef, trunk: Trunk, folder: Path) -> tuple[list[Group], list[TokenGroup]]:
    run = tiny.make_run(folder, "reward")
    judged = read_judged(data.source, with_pairs, run=run)
    return encode(judged.groups, trunk.chat, max_length=512, run=run, what="preferences")


def measure(model: RewardModel, groups: list[Group], tokens: list[TokenGroup]) -> dict[str, float]:
    return _measure(model, groups, tokens, None)


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
    groups, tokens = load(data, trunk, tmp_path)
    pairs = Pairs(loss=REWARD_LOSSES["bradley_terry"], center=0.01)
    task = Task(trunk, head, pairs, groups, tokens, batch=2, micro_tokens=micro_tokens, seed=0)
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
    groups, tokens = load(data, trunk, tmp_path)
    found = measure(RewardModel(trunk, None, ScalarHead(trunk.hidden_size)), groups, tokens)
    assert found["heldout/n"] == 6
    assert found["heldout/accuracy"] == 0.5  # a head of zeros ties everywhere
    assert found["heldout/longer_wins"] == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert found["heldout/finished_wins"] == pytest.approx((0.5 + 1 + 0.5 * 4) / 6)
    assert found["heldout/accuracy/vague"] == found["heldout/accuracy/rude"] == 0.5


def test_heldout_accuracy_counts_the_right_pairs(tmp_path: Path, tiny_model: Path) -> None:
    trunk = Trunk.load(tiny_model, dtype="float32")
    data = tiny.write_rows(tmp_path / "heldout.jsonl", heldout_rows())
    groups, tokens = load(data, trunk, tmp_path)
    verdicts = [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 1, 0), (3, 1, 2), (3, 0, 2)]
    seen = set()
    for seed in range(4):
        model = RewardModel(trunk, None, ScalarHead(trunk.hidden_size, std=1.0, seed=seed))
        scores = model.score(groups)
        right = [float(scores[g][b] > scores[g][w]) for g, b, w in verdicts]
        found = measure(model, groups, tokens)
        assert found["heldout/accuracy"] == pytest.approx(sum(right) / 6)
        assert found["heldout/accuracy/vague"] == right[0]
        assert found["heldout/accuracy_lo"] <= found["heldout/accuracy"] <= found["heldout/accuracy_hi"]
        seen.add(sum(right))
    assert len(seen) > 1


def test_heldout_is_reported_by_the_stage(tmp_path: Path, tiny_model: Path) -> None:
    heldout = tiny.write_rows(tmp_path / "heldout.jsonl", heldout_rows())
    found = train(tmp_path, tiny_model, tiny.preferences(tmp_path), batch=6, heldout=heldout)
    assert found["heldout/longer_wins"] == pytest.approx(3.5 / 6)
    assert {"heldout/ece", "heldout/brier", "heldout/by_length/tercile_low"} <= found.keys()


def test_a_stated_chance_is_that_of_the_scores_before_rescaling(tmp_path: Path, tiny_model: Path) -> None:
    """The stage's Brier score, from the saved scores and the deviation on the card."""
    data = tiny.preferences(tmp_path)
    found = train(tmp_path, tiny_model, data, epochs=4, batch=6, lr=1e-2, head_lr=1e-2, heldout=data)
    model = RewardModel.open(tiny.finished(tmp_path, "reward", "reward", str(tiny_model)), dtype="float32")
    assert model.card == Card(mean=found["score/mean_before"], std=found["score/std_before"])
    groups, tokens = load(data, model.trunk, tmp_path)
    rows = model.score_tokens(tokens)
    leads = [
        model.card.std * (row[verdict.better] - row[verdict.worse])  # type: ignore[union-attr]
        for group, row in zip(groups, rows, strict=True)
        for verdict in group.verdicts
    ]
    brier = sum((1 / (1 + math.exp(-lead)) - 1) ** 2 for lead in leads) / len(leads)
    assert found["heldout/brier"] == pytest.approx(brier, rel=1e-4)
    assert measure(model, groups, tokens)["heldout/brier"] == pytest.approx(brier, rel=1e-4)


def test_a_folder_written_without_a_card_loads(tmp_path: Path, tiny_model: Path) -> None:
    """A head of one row, as every version has written it."""
    data = tiny.preferences(tmp_path)
    train(tmp_path, tiny_model, data, batch=6)
    reference = tiny.finished(tmp_path, "reward", "reward", str(tiny_model))
    groups = read_groups(data.source).groups
    before = RewardModel.open(reference, dtype="float32").score(groups)
    (tmp_path / CARD).unlink()
    model = RewardModel.open(reference, dtype="float32")
    assert (model.card, model.heads) == (Card(), None)
    assert model.score(groups) == before


def test_a_head_that_does_not_start_at_zero_is_found(tmp_path: Path, tiny_model: Path) -> None:
    trunk = Trunk.load(tiny_model, dtype="float32")
    groups, tokens = load(tiny.preferences(tmp_path), trunk, tmp_path)
    pairs = Pairs(loss=REWARD_LOSSES["bradley_terry"], margin=0.5)
    for head in (ScalarHead(trunk.hidden_size), ScalarHead(trunk.hidden_size, std=0.1)):
        task = Task(trunk, head, pairs, groups, tokens, batch=2, micro_tokens=512, seed=0)
        if head.weight.any():
            with pytest.raises(InvariantError, match="step 0"):
                task.check_start()
        else:
            task.check_start()


# --- rows that cannot be used -----------------------------------------------------------------------------------------


def bad_rows() -> list[dict[str, object]]:
    """Two rows and a half that can be used, and three that cannot."""
    return [
        tiny.row("judged", "Why?", ["Because", "No"], [PAIR]),
        tiny.row("tied", "Who?", ["Me", "You"], [TIE]),
        tiny.row("unjudged", "When?", ["Now", "Then"]),
        tiny.row("all tied", "Rank!", ["a", "b"], [{"kind": "ranking", "order": [[0, 1]]}]),
        tiny.row("half tied", "Rank!", ["a", "b", "c"], [{"kind": "ranking", "order": [[0, 1], [2]]}]),
        tiny.row("empty", "Rank!", ["a", " ", "c"], [{"kind": "ranking", "order": [[0], [1], [2]]}]),
        tiny.row("too long", "Why? " * 200, ["Because", "No"], [PAIR]),
    ]


def test_bad_rows_are_left_out_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "p.jsonl", bad_rows())
    run = tiny.make_run(tmp_path, "reward")
    result = reward(run, data=data, init=tiny.base(tiny_model), lora=tiny.LORA, max_length=512)
    assert result.metrics["data/pairs"] == 1 + 2 + 1
    assert result.metrics["data/left_out"] == 4
    said = " ".join(run.notes)
    for words in (
        "3 of 7 rows hold a tie", "1 of 7 rows hold no strict preference", "1 of 7 rows hold an empty answer",
        "3 of 7 rows were left out", "1 of 4 judged prompts are longer than 512 tokens", "p.jsonl, line 2",
    ):  # fmt: skip
        assert words in said


@pytest.mark.parametrize(("name", "words"), [("tied", "line 2: holds a tie"), ("too long", "group 'too long'")])
def test_stop_stops_before_training(tmp_path: Path, tiny_model: Path, name: str, words: str) -> None:
    rows = [row for row in bad_rows() if row["id"] in ("judged", name)]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=words):
        train(tmp_path, tiny_model, data, bad="stop", max_length=512)
    assert not (tmp_path / "metrics.jsonl").exists()
    good = tiny.preferences(tmp_path)
    with pytest.raises(DataError, match=words):
        train(tmp_path, tiny_model, good, heldout=data, bad="stop", max_length=512)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_nothing_but_ties_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "p.jsonl", [tiny.row("tied", "Who?", ["Me", "You"], [TIE])])
    with pytest.raises(DataError, match="no strict preference in it"):
        train(tmp_path, tiny_model, data)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"loss": "mse", "margin": 1.0}, "margin"),
        ({"loss": "plackett_luce", "margin": 1.0}, "margin"),
        ({"loss": "bce", "center": 0.0}, "center"),
        ({"attributes": ("wit",)}, "attributes"),
        ({"loss": "plackett_luce", "weights": {"wit": 1.0}}, "weights"),
        ({"per_rater": True}, "per_rater"),
        ({"loss": "bce", "per_rater": True}, "per_rater"),
    ],
)
def test_options_that_would_change_nothing(
    tmp_path: Path, tiny_model: Path, settings: dict[str, object], option: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^stages\.reward\.{option} would change nothing: loss "):
        train(tmp_path, tiny_model, tiny.preferences(tmp_path), **settings)


def test_an_unknown_loss(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="no reward loss 'plackett'; did you mean 'plackett_luce'"):
        train(tmp_path, tiny_model, tiny.preferences(tmp_path), loss="plackett")
