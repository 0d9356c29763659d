"""The reward stage on rankings and labels: what is learned, what is missing, raters, weights, real data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny_stages as tiny
from trimtab.config import DataRef, check_recipe
from trimtab.data.encode import encode
from trimtab.data.judged import read_judged, with_labels, with_orders
from trimtab.errors import ConfigError, DataError, ModelError
from trimtab.losses.reward.plackett_luce import plackett_luce
from trimtab.model.trunk import ScalarHead, Trunk
from trimtab.records.read import read_groups
from trimtab.registry import REWARD_LOSSES
from trimtab.rewards.reward_model import ATTRIBUTE_HEADS, CARD, AttributeHeads, RewardModel
from trimtab.stages._reward_labels import LabelScale
from trimtab.stages._reward_task import Labels, Orders, Task
from trimtab.stages.reward import reward
from trimtab.tensors.tree import pack

FAST = {"lr": 1e-2, "head_lr": 1e-2}
Numbers = Mapping[str, float]


def train(folder: Path, model: Path, data: DataRef, **settings: Any) -> dict[str, float]:
    run = tiny.make_run(folder, "reward")
    return dict(reward(run, data=data, init=tiny.base(model), **{"lora": tiny.LORA, **settings}).metrics)


def opened(folder: Path, model: Path) -> RewardModel:
    return RewardModel.open(tiny.finished(folder, "reward", "reward", str(model)), dtype="float32")


def labelled(name: str, answers: Sequence[tuple[str, Numbers]], rater: str | None = None) -> dict[str, Any]:
    said = {} if rater is None else {"rater": rater}
    verdicts = [{"kind": "score", "answer": i, "values": dict(v), **said} for i, (_, v) in enumerate(answers) if v]
    return tiny.row(name, f"{name}?", [text for text, _ in answers], verdicts)


def ratings() -> list[dict[str, Any]]:
    """Answers whose first letter gives them ``wit`` (scale 1 to 5); ``tact`` (0 to 100) is missing of every other."""
    rows = []
    for i, name in enumerate(("Tea", "Why", "Tower", "Word")):
        answers = [("ah " + name, {"wit": 5.0, "tact": 20.0 + i}), ("no " + name, {"wit": 1.0 + i / 4, "tact": 80.0})]
        rows.append(labelled(name, [answers[0], (answers[1][0], {"wit": answers[1][1]["wit"]})] if i % 2 else answers))
    return rows


# --- rankings ---------------------------------------------------------------------------------------------------------


def test_a_ranking_is_learned(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.preferences(tmp_path)
    found = train(tmp_path, tiny_model, data, loss="plackett_luce", epochs=15, batch=6, heldout=data, **FAST)
    rows = tiny.metrics(tmp_path)
    assert found["data/orders"] == 6
    assert rows[0]["train/loss"] == pytest.approx((5 * math.log(2) + math.log(6)) / 6, rel=1e-6)
    assert rows[-1]["train/loss"] < 0.5 * rows[0]["train/loss"]
    assert found["heldout/accuracy"] == 1.0
    assert found["heldout/n"] == 5 + 3
    model = opened(tmp_path, tiny_model)
    ranking = model.score(read_groups(data.source).groups)[-1]  # 2 > 0 > 1
    assert ranking[2] > ranking[0] > ranking[1]
    assert model.card.loss == "plackett_luce"


def test_orders_of_a_prompt_weigh_one_together(tmp_path: Path, tiny_model: Path) -> None:
    """A prompt with three orders of different lengths beside one with a pair; gradients by single answers."""
    orders = [[[2], [0], [1]], [[1], [2]], [[0, 1], [2]]]
    rows = [
        tiny.row("k", "Rank!", ["one", "two two", "3"], [{"kind": "ranking", "order": order} for order in orders]),
        tiny.row("p", "Why?", ["So", "No"], [{"kind": "pair", "better": 0, "worse": 1}]),
    ]
    run = tiny.make_run(tmp_path, "reward")
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    trunk = Trunk.load(tiny_model, dtype="float32")
    head = ScalarHead(trunk.hidden_size, std=0.5, seed=1)
    judged = read_judged(data.source, with_orders, run=run)
    groups, tokens = encode(judged.groups, trunk.chat, max_length=512, run=run, what="rows")
    objective = Orders(loss=REWARD_LOSSES["plackett_luce"], center=0.01)
    scores = [head(trunk.hidden(pack([item]))[pack([item]).last].detach()) for item in tokens]

    def cost(own: torch.Tensor, *ranks: int) -> torch.Tensor:
        known = torch.tensor([[rank > 0 for rank in ranks]])
        centre = (2 * own[known[0]].mean()) ** 2
        return plackett_luce(own[None], torch.tensor([ranks]), known)[0] + 0.01 * centre

    k, p = scores
    hand = ((cost(k, 2, 3, 1) + cost(k, 0, 1, 2) + cost(k, 1, 1, 2)) / 3 + cost(p, 1, 2)) / 2
    expected = torch.autograd.grad(hand, list(head.parameters()))
    for micro_tokens in (1, 4096):
        task = Task(trunk, head, objective, groups, tokens, batch=2, micro_tokens=micro_tokens, seed=0)
        for micro in [task.micro([0], 2), task.micro([1], 2)] if micro_tokens == 1 else [task.micro([0, 1], 2)]:
            task.accumulate(micro)
        for parameter, gradient in zip(head.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
            parameter.grad = None


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_learned_and_the_score_is_their_mean(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "r.jsonl", ratings())
    found = train(tmp_path, tiny_model, data, loss="mse", epochs=40, batch=4, heldout=data, **FAST)
    assert found["data/labels"] == 8 + 6
    rows = tiny.metrics(tmp_path)
    assert rows[-1]["train/loss"] < 0.3 * rows[0]["train/loss"]
    assert found["heldout/mse"] < 0.5 * found["heldout/mse_of_mean"]
    assert found["heldout/explained/wit"] > 0.5
    assert (found["heldout/labels"], found["heldout/missing_labels"]) == (14, 2)
    model = opened(tmp_path, tiny_model)
    tables = torch.cat(model.read_tokens([model.trunk.chat.group(g) for g in read_groups(data.source).groups]))
    score, outputs = tables[:, 0].double(), tables[:, 1:].double()  # (8,), (8, 2)
    assert [attribute.name for attribute in model.card.attributes] == ["tact", "wit"]
    standard = (outputs - outputs.mean(0)) / outputs.std(0, correction=0)
    mean = standard.mean(1)
    torch.testing.assert_close(score, mean / mean.std(correction=0), rtol=1e-3, atol=1e-3)
    assert float(score.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(score.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    wit = model.card.attributes[1]
    assert wit.label_mean == pytest.approx((4 * 5 + 1 + 1.25 + 1.5 + 1.75) / 8)
    assert wit.weight == 0.5
    assert wit.output_mean == pytest.approx(float(outputs[:, 1].mean()), abs=1e-5)


def test_weights_of_attributes(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "r.jsonl", ratings())
    train(tmp_path, tiny_model, data, loss="mse", weights={"wit": -2.0}, epochs=4, batch=4, **FAST)
    model = opened(tmp_path, tiny_model)
    tables = torch.cat(model.read_tokens([model.trunk.chat.group(g) for g in read_groups(data.source).groups]))
    wit = tables[:, 2].double()
    torch.testing.assert_close(tables[:, 0].double(), -(wit - wit.mean()) / wit.std(correction=0), rtol=1e-3, atol=1e-3)
    assert [attribute.weight for attribute in model.card.attributes] == [0.0, -2.0]


def test_what_is_saved_is_plain(tmp_path: Path, tiny_model: Path) -> None:
    """One row of weights for whoever wants one number, a row for each attribute beside it, the names in JSON."""
    data = tiny.write_rows(tmp_path / "r.jsonl", ratings())
    train(tmp_path, tiny_model, data, loss="mse", attributes=["wit"], batch=4)
    head, heads = load_file(tmp_path / "score_head.safetensors"), load_file(tmp_path / ATTRIBUTE_HEADS)
    assert {name: tuple(value.shape) for name, value in head.items()} == {"weight": (64,), "bias": ()}
    assert {name: tuple(value.shape) for name, value in heads.items()} == {"weight": (1, 64), "bias": (1,)}
    card = json.loads((tmp_path / CARD).read_text())
    assert card["loss"] == "mse"
    assert [attribute["name"] for attribute in card["attributes"]] == ["wit"]
    names = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert names <= {".safetensors", ".json", ".jsonl"}
    ScalarHead.read(tmp_path)
    (tmp_path / ATTRIBUTE_HEADS).unlink()
    with pytest.raises(ModelError, match="its card names 1 attributes"):
        opened(tmp_path, tiny_model)
    (tmp_path / CARD).write_text("{nonsense")
    with pytest.raises(ModelError, match="not a reward model's card"):
        opened(tmp_path, tiny_model)


def test_a_missing_attribute_has_no_gradient(tmp_path: Path, tiny_model: Path) -> None:
    """Prompts 1 and 3 lack ``tact`` of one answer: their heads' gradients are those of what is known, by hand."""
    run = tiny.make_run(tmp_path, "reward")
    trunk = Trunk.load(tiny_model, dtype="float32")
    rows = [*ratings(), labelled("Only wit", [("yes", {"wit": 4.0}), ("nope", {})])]
    judged = read_judged(tiny.write_rows(tmp_path / "r.jsonl", rows).source, with_labels(), run=run)
    groups, tokens = encode(judged.groups, trunk.chat, max_length=512, run=run, what="rows")
    scale = LabelScale.fit(groups, ("wit", "tact"), per_rater=False, standardised=True)
    heads = AttributeHeads(trunk.hidden_size, 2)
    task = Task(
        trunk, heads, Labels(loss=REWARD_LOSSES["mse"], scale=scale), groups, tokens, batch=5, micro_tokens=64, seed=0
    )
    task.check_start()
    task.accumulate(task.micro([4], 1))
    assert heads.weight.grad is not None
    assert heads.weight.grad[0].any()
    assert not heads.weight.grad[1].any()
    assert [len(group.answers) for group in groups] == [2, 2, 2, 2, 1]  # an answer that nobody rated is not read

    heads.zero_grad()
    task.accumulate(task.micro([1], 1))
    table = scale.table(groups[1])
    assert [math.isnan(x) for x in table[0]] == [False, False]
    assert [math.isnan(x) for x in table[1]] == [False, True]
    batch = pack([tokens[1]])
    hidden = trunk.hidden(batch)[batch.last]
    # d/dw of [(w0 h0 - wit0)^2 + (w1 h0 - tact0)^2] / 2 and (w0 h1 - wit1)^2, averaged, at w = 0
    wit = (-table[0][0] * hidden[0] - 2 * table[1][0] * hidden[1]) / 2
    tact = -table[0][1] * hidden[0] / 2
    torch.testing.assert_close(heads.weight.grad, torch.stack([wit, tact]), rtol=1e-4, atol=1e-6)


def test_per_rater_undoes_a_raters_offset_and_scale(tmp_path: Path, tiny_model: Path) -> None:
    """A second rater who says 100 + 20 times the same changes nothing."""
    plain, double = [], []
    for i, name in enumerate(("Tea", "Why", "Tower", "Word")):
        answers = [("ah " + name, {"wit": 5.0}), ("no " + name, {"wit": 1.0 + i})]
        stretched = [(text, {"wit": 100 + 20 * values["wit"]}) for text, values in answers]
        one, other = labelled(name, answers, "human:1"), labelled(name, stretched, "human:2")
        plain.append(one)
        double.append({**one, "verdicts": [*one["verdicts"], *other["verdicts"]]})
    settings: dict[str, Any] = {"loss": "mse", "epochs": 5, "batch": 4, **FAST}
    for name, rows in (("plain", plain), ("double", double)):
        data = tiny.write_rows(tmp_path / f"{name}.jsonl", rows)
        train(tmp_path / name, tiny_model, data, per_rater=name == "double", **settings)
    tiny.same_curves(tmp_path / "plain", tmp_path / "double", tolerance=1e-5)


def test_thumbs_are_chances(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        tiny.row(f"t{i}", tiny.QUESTIONS[i], [("Ah, " if i % 2 else "No ") + tiny.ANSWERS[i]],
                 [{"kind": "thumb", "answer": 0, "up": bool(i % 2)}])
        for i in range(6)
    ]  # fmt: skip
    data = tiny.write_rows(tmp_path / "t.jsonl", rows)
    found = train(tmp_path, tiny_model, data, loss="bce", epochs=30, batch=6, heldout=data, **FAST)
    curve = tiny.metrics(tmp_path)
    assert curve[0]["train/loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert curve[-1]["train/loss"] < 0.5 * curve[0]["train/loss"]
    assert found["heldout/brier"] < 0.15
    assert found["heldout/mse_of_mean"] == pytest.approx(0.25)
    assert "heldout/accuracy" not in found  # one answer a prompt: nothing to compare
    (attribute,) = opened(tmp_path, tiny_model).card.attributes
    assert (attribute.name, attribute.label_mean) == ("thumb", 0.5)


def test_labels_that_are_no_chances_are_left_out(tmp_path: Path, tiny_model: Path) -> None:
    run = tiny.make_run(tmp_path, "reward")
    rows = [*ratings(), labelled("Good", [("yes", {"wit": 1.0}), ("no", {"wit": 0.0})])]
    data = tiny.write_rows(tmp_path / "r.jsonl", rows)
    reward(run, data=data, init=tiny.base(tiny_model), lora=tiny.LORA, loss="bce", attributes=("wit",))
    assert any("4 of 5 rows hold a number outside 0 to 1" in note for note in run.notes)
    with pytest.raises(DataError, match="line 1: holds a number outside 0 to 1"):
        train(tmp_path, tiny_model, data, loss="bce", bad="stop")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"attributes": ("witt",)}, r"r\.jsonl: no label of witt in it that could be learned from"),
        ({"attributes": ("tact", "witt")}, r"^stages\.reward\.attributes: no label has the attribute 'witt'"),
        ({"weights": {"witt": 1.0}}, r"^stages\.reward\.weights: no attribute 'witt'; did you mean 'wit'"),
        ({"weights": {"wit": 0.0}}, r"^stages\.reward\.weights: every weight is 0"),
        ({"attributes": ("wit",), "weights": {"wit": 3.0}}, r"^stages\.reward\.weights would change nothing"),
        ({"per_rater": True}, r"^stages\.reward\.per_rater would change nothing: the data names fewer than two raters"),
    ],
)
def test_what_labels_cannot_bear(tmp_path: Path, tiny_model: Path, settings: dict[str, Any], words: str) -> None:
    data = tiny.write_rows(tmp_path / "r.jsonl", ratings())
    with pytest.raises((ConfigError, DataError), match=words):
        train(tmp_path, tiny_model, data, loss="mse", **settings)


def test_a_recipe_writes_attributes_and_weights_plainly() -> None:
    options = {"data": "d", "loss": "mse", "attributes": ["wit", "tact"], "weights": {"wit": 2}, "bad": "stop"}
    settings = (
        check_recipe({"stages": {"reward": options}}, "here", ["reward.weights.tact=-0.5"]).stages["reward"].settings
    )
    assert settings["attributes"] == ("wit", "tact")
    assert settings["weights"] == {"wit": 2.0, "tact": -0.5}
    with pytest.raises(ConfigError, match=r"^here: stages\.reward\.bad='halt': input should be 'skip' or 'stop'$"):
        check_recipe({"stages": {"reward": {**options, "bad": "halt"}}}, "here")


def test_labels_without_heldout_ones_of_the_same_attributes(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "r.jsonl", ratings())
    other = tiny.write_rows(tmp_path / "o.jsonl", [labelled("x", [("yes", {"charm": 1.0})])])
    with pytest.raises(DataError, match="no label in it of tact, wit"):
        train(tmp_path, tiny_model, data, loss="mse", heldout=other)


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("usr_topical_chat/train.jsonl.gz", {"loss": "mse"}, {"heldout/pearson/overall", "heldout/accuracy"}),
        ("squality_ratings/train.jsonl.gz", {"loss": "mse", "per_rater": True}, {"heldout/spearman/correctness"}),
        ("usr_topical_chat/train.jsonl.gz", {"loss": "plackett_luce"}, {"heldout/accuracy", "heldout/ece"}),
    ],
)
def test_real_data(
    name: str, settings: dict[str, Any], wanted: set[str], shared_data: Path, tmp_path: Path, tiny_model: Path
) -> None:
    share, rest = (DataRef(f"{shared_data / name}@{part}") for part in ("0:0.1", "0.1:0.15"))
    found = train(tmp_path, tiny_model, share, heldout=rest, max_length=2048, **settings)
    assert wanted <= found.keys()
    assert all(math.isfinite(value) for value in found.values())
