from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_stages as tiny
from trimtab.artifacts import ITSELF, Artifact
from trimtab.config import ModelRef
from trimtab.errors import ConfigError, DataError, InvariantError
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora
from trimtab.stages._texts import Texts
from trimtab.stages.sft import sft
from trimtab.tensors.tree import TokenGroup
from trimtab.train.run import Row, Silent

TALK = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "What is tea?"},
    {"role": "assistant", "content": "A leaf."},
    {"role": "user", "content": "And coffee?"},
    {"role": "assistant", "content": "The seed of a fruit."},
    {"role": "user", "content": "Thanks"},
    {"role": "assistant", "content": "Any time!"},
]


def by_hand(model: Path, talks: list[list[dict[str, str]]]) -> tuple[float, int]:
    """Mean cross-entropy over all assistant words and their ends, from plain transformers' logits; and their count."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = AutoModelForCausalLM.from_pretrained(model)
    losses = []
    for talk in talks:
        ids: list[int] = []
        trained: list[bool] = []
        for message in talk:
            own = message["role"] == "assistant"
            for text, wanted in (
                (f"<|im_start|>{message['role']}\n", False), (message["content"] + "<|im_end|>", own), ("\n", False),
            ):  # fmt: skip
                piece = tokenizer(text, add_special_tokens=False)["input_ids"]
                ids += piece
                trained += [wanted] * len(piece)
        assert ids == tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0]
        each = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        losses.append(each[torch.tensor(trained[1:])])
    return float(torch.cat(losses).mean()), sum(map(len, losses))


def test_two_demonstrations_are_learned(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path, 2)
    result = sft(
        tiny.make_run(tmp_path, "sft"), data=data, init=tiny.base(tiny_model), epochs=30, batch=2, lr=1e-2,
        lora=tiny.LORA,
    )  # fmt: skip
    rows = tiny.metrics(tmp_path)
    assert len(rows) == 30
    # Before any training every one of 259 tokens is about as likely.
    assert result.metrics["train/loss_before"] == pytest.approx(math.log(259), abs=0.1)
    assert rows[0]["train/loss"] == pytest.approx(result.metrics["train/loss_before"], rel=1e-6)
    assert result.metrics["train/loss_after"] < rows[15]["train/loss"] < rows[0]["train/loss"] - 0.4
    assert result.base == str(tiny_model)
    # "A leaf." and "Because it rains a good deal there." in bytes, and their ends.
    assert result.metrics["data/target_tokens"] == 7 + 35 + 2
    assert result.metrics["data/demonstrations"] == 2


def test_every_assistant_turn_is_trained_and_nothing_else(tmp_path: Path, tiny_model: Path) -> None:
    talks = [TALK, TALK[1:3]]
    data = tiny.write_rows(tmp_path / "talks.jsonl", [{"messages": talk} for talk in talks])
    result = sft(
        tiny.make_run(tmp_path, "sft"), data=data, init=tiny.base(tiny_model), epochs=1, batch=2, lora=tiny.LORA
    )
    loss, count = by_hand(tiny_model, talks)
    assert count == 7 + 20 + 9 + 3 + 7 + 1
    assert result.metrics["train/loss_before"] == pytest.approx(loss, abs=1e-5)
    assert tiny.metrics(tmp_path)[0]["train/loss"] == pytest.approx(loss, abs=1e-5)
    assert result.metrics["data/target_tokens"] == count


def test_goes_on_from_an_earlier_stage(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    first = tmp_path / "first"
    before = sft(
        tiny.make_run(first, "sft"), data=data, init=tiny.base(tiny_model), epochs=2, batch=3, lr=5e-3, lora=tiny.LORA
    )  # fmt: skip
    init = tiny.finished(first, "sft", "sft", str(tiny_model))  # named as the new adapter is
    after = sft(tiny.make_run(tmp_path / "second", "sft"), data=data, init=init, epochs=1, batch=3, lora=tiny.LORA)
    assert after.metrics["train/loss_before"] == pytest.approx(before.metrics["train/loss_after"], rel=1e-6)
    assert after.metrics["train/loss_after"] < after.metrics["train/loss_before"]
    assert after.base == str(tiny_model)


def test_activation_checkpointing_changes_no_loss(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    for on in (False, True):
        sft(
            tiny.make_run(tmp_path / str(on), "sft"), data=data, init=tiny.base(tiny_model), epochs=2, batch=3, lr=1e-3,
            lora=tiny.LORA, checkpoint_activations=on,
        )  # fmt: skip
    tiny.same_curves(tmp_path / "False", tmp_path / "True", tolerance=1e-6)


def test_same_seed_same_bits_other_seed_others(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        sft(
            tiny.make_run(tmp_path / name, "sft", seed=seed), data=data, init=tiny.base(tiny_model), epochs=1, batch=3,
            lora=tiny.LORA,
        )  # fmt: skip
    assert tiny.same_weights(tmp_path / "a", tmp_path / "b")
    assert not tiny.same_weights(tmp_path / "a", tmp_path / "c")


def test_demonstrations_that_never_end_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    rows = [tiny.row("cut", "Tell me", ["Once upon a"])]
    rows[0]["answers"][0]["finish"] = "length"
    data = tiny.write_rows(tmp_path / "cut.jsonl", rows)
    with pytest.raises(InvariantError, match="never learn to stop"):
        sft(tiny.make_run(tmp_path, "sft"), data=data, init=tiny.base(tiny_model), lora=tiny.LORA)


def test_long_demonstrations_are_left_out_and_said(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    run = tiny.make_run(tmp_path, "sft")
    # A question takes 19 tokens more than its bytes, an answer 1: 39, 59 (d1), 69 (d2), 34 and so on.
    result = sft(run, data=data, init=tiny.base(tiny_model), epochs=1, max_length=58, lora=tiny.LORA)
    assert result.metrics["data/demonstrations"] == 4
    assert [note for note in run.notes if "d1" in note and "2 of 6" in note and "max_length" in note]
    result = sft(
        tiny.make_run(tmp_path / "59", "sft"), data=data, init=tiny.base(tiny_model), max_length=59, lora=tiny.LORA
    )
    assert result.metrics["data/demonstrations"] == 5
    with pytest.raises(DataError, match="no demonstrations left to train on"):
        sft(run, data=data, init=tiny.base(tiny_model), max_length=5, lora=tiny.LORA)


@pytest.mark.parametrize(("count", "read"), [(3, 3), (4, 4), (5, 3), (7, 4), (8, 4), (9, 3)])
def test_mean_loss_reads_at_most_the_limit(tiny_model: Path, count: int, read: int) -> None:
    trunk = Trunk.load(tiny_model, dtype="float32")
    items = [TokenGroup(prompt=(256, 65), answers=((66 + i, 257),)) for i in range(count)]
    task = Texts(trunk, None, items, batch=2, micro_tokens=7, seed=0)
    picked = items[:: -(-count // 4)]
    assert len(picked) == read
    whole = Texts(trunk, None, picked, batch=2, micro_tokens=4096, seed=0)
    assert task.mean_loss(limit=4) == pytest.approx(whole.mean_loss(), rel=1e-6)


def test_only_answers_that_lost_to_none_are_learned_from(tmp_path: Path, tiny_model: Path) -> None:
    pair = {"kind": "pair", "better": 1, "worse": 0}
    both = tiny.write_rows(tmp_path / "pairs.jsonl", [tiny.row("a", "Why?", ["No", "Because"], [pair])])
    good = tiny.write_rows(tmp_path / "good.jsonl", [tiny.row("a", "Why?", ["Because"])])
    for data, name in ((both, "both"), (good, "good")):
        sft(tiny.make_run(tmp_path / name, "sft"), data=data, init=tiny.base(tiny_model), epochs=2, lora=tiny.LORA)
    assert tiny.same_weights(tmp_path / "both", tmp_path / "good")


def test_what_teaches_nothing_or_cannot_be_read_is_left_out_and_said(tmp_path: Path, tiny_model: Path) -> None:
    rows = [
        tiny.row("good", "Why?", ["Because"]),
        tiny.row("asked", "And then?", []),
        tiny.row("disliked", "How?", ["Go away"], [{"kind": "thumb", "answer": 0, "up": False}]),
    ]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    with Path(data.source).open("a") as file:
        file.write('{"id": "broken", "prompt": 3}\n')
    run = tiny.make_run(tmp_path / "skip", "sft")
    result = sft(run, data=data, init=tiny.base(tiny_model), steps=2, lora=tiny.LORA)
    assert result.metrics["data/demonstrations"] == 1
    assert [note for note in run.notes if "2 of 3 demonstrations were left out" in note]
    assert [note for note in run.notes if "1 of 4 rows" in note and "line 4" in note], run.notes
    good = tiny.write_rows(tmp_path / "good.jsonl", rows[:1])
    sft(tiny.make_run(tmp_path / "good", "sft"), data=good, init=tiny.base(tiny_model), steps=2, lora=tiny.LORA)
    assert tiny.same_weights(tmp_path / "skip", tmp_path / "good")
    with pytest.raises(DataError, match="line 4"):
        sft(tiny.make_run(tmp_path, "sft"), data=data, init=tiny.base(tiny_model), bad="stop", lora=tiny.LORA)
    nothing = tiny.write_rows(tmp_path / "nothing.jsonl", rows[1:])
    with pytest.raises(DataError, match="no answer in it to learn from"):
        sft(tiny.make_run(tmp_path, "sft"), data=nothing, init=tiny.base(tiny_model), lora=tiny.LORA)


class Killed(BaseException):
    """Stands for a kill."""


class Dies(Silent):
    """Stops the run when so many steps are done, before their checkpoint is written."""

    def __init__(self, at: int) -> None:
        self.at = at

    def advance(self, done: int, values: Row) -> None:
        if done == self.at:
            raise Killed


def whole(folder: Path) -> ModelRef:
    """A whole model that an earlier stage left."""
    artifact = Artifact(folder, {"name": "whole", "stage": "sft", "key": "1" * 64, "base": ITSELF})
    assert artifact.base is not None
    return ModelRef("whole", artifact.base, artifact)


def test_full_fine_tuning_leaves_a_model_that_plain_transformers_loads(tmp_path: Path, tiny_model: Path) -> None:
    talks = [TALK, TALK[1:3]]
    data = tiny.write_rows(tmp_path / "talks.jsonl", [{"messages": talk} for talk in talks])
    run = tiny.make_run(tmp_path / "full", "sft")
    result = sft(run, data=data, init=tiny.base(tiny_model), epochs=8, batch=2, lr=5e-3, tune="full")
    assert result.base == ITSELF
    assert result.metrics["train/loss_before"] == pytest.approx(by_hand(tiny_model, talks)[0], abs=1e-5)
    assert result.metrics["train/loss_after"] == pytest.approx(by_hand(tmp_path / "full", talks)[0], abs=1e-5)
    assert result.metrics["train/loss_after"] < result.metrics["train/loss_before"] - 0.5
    before, after = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "full" / "model.safetensors")
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    assert not (tmp_path / "full" / "adapter_config.json").exists()
    assert run.notes == ["lr 0.005 is an adapter's rate; all weights are usually trained at 5e-05 or less"]
    assert {name.split("/")[0] for name in tiny.metrics(tmp_path / "full")[0]} == {"step", "train"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tune", ["full", "lora"])
def test_killed_and_started_again_it_ends_with_the_same_bits(
    tmp_path: Path, tiny_model: Path, tune: str, dtype: str
) -> None:
    data = tiny.demonstrations(tmp_path)
    options = {"data": data, "init": tiny.base(tiny_model), "epochs": 2, "batch": 3, "lr": 1e-3, "tune": tune}
    if tune == "lora":
        options["lora"] = Lora(rank=4, alpha=8, rslora=True, targets=("q_proj", "up_proj"), plus=16, layer_decay=0.5)
    settings = {"dtype": dtype, "checkpoint_seconds": 0}
    sft(tiny.make_run(tmp_path / "whole", "sft", **settings), **options)  # type: ignore[arg-type]
    with pytest.raises(Killed):
        sft(tiny.make_run(tmp_path / "killed", "sft", **settings, reporter=Dies(3)), **options)  # type: ignore[arg-type]
    again = tiny.make_run(tmp_path / "killed", "sft", **settings)
    sft(again, **options)  # type: ignore[arg-type]
    assert "resumed after step 2 of 4" in again.notes
    assert tiny.same_weights(tmp_path / "whole", tmp_path / "killed")
    assert tiny.metrics(tmp_path / "whole") == tiny.metrics(tmp_path / "killed")


def test_full_fine_tuning_goes_on_from_an_adapter_and_carries_another(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    same = {"data": data, "epochs": 2, "batch": 3}
    first = sft(
        tiny.make_run(tmp_path / "a", "sft"), init=tiny.base(tiny_model), lr=5e-3, lora=tiny.LORA, **same  # type: ignore[arg-type]
    )  # fmt: skip
    adapter = tiny.finished(tmp_path / "a", "sft", "sft", str(tiny_model))
    second = sft(tiny.make_run(tmp_path / "b", "sft"), init=adapter, lr=1e-3, tune="full", **same)  # type: ignore[arg-type]
    assert second.metrics["train/loss_before"] == pytest.approx(first.metrics["train/loss_after"], rel=1e-5)
    assert second.base == ITSELF
    third = sft(
        tiny.make_run(tmp_path / "c", "sft"), init=whole(tmp_path / "b"), lr=5e-3, lora=tiny.LORA, **same  # type: ignore[arg-type]
    )  # fmt: skip
    assert third.metrics["train/loss_before"] == pytest.approx(second.metrics["train/loss_after"], rel=1e-6)
    assert third.metrics["train/loss_after"] < third.metrics["train/loss_before"]
    assert third.base == str(tmp_path / "b")
    assert (tmp_path / "c" / "adapter_config.json").exists()
    fourth = sft(tiny.make_run(tmp_path / "d", "sft"), init=whole(tmp_path / "b"), lr=1e-3, tune="full", **same)  # type: ignore[arg-type]
    assert fourth.metrics["train/loss_before"] == third.metrics["train/loss_before"]


def test_full_fine_tuning_refuses_settings_of_an_adapter(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    with pytest.raises(ConfigError, match="lora would change nothing"):
        sft(tiny.make_run(tmp_path, "sft"), data=data, init=tiny.base(tiny_model), tune="full", lora=tiny.LORA)


def test_full_fine_tuning_with_activation_checkpointing_is_the_same(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.demonstrations(tmp_path)
    for on in (False, True):
        sft(
            tiny.make_run(tmp_path / str(on), "sft"), data=data, init=tiny.base(tiny_model), epochs=1, batch=3, lr=1e-3,
            tune="full", checkpoint_activations=on,
        )  # fmt: skip
    tiny.same_curves(tmp_path / "False", tmp_path / "True", tolerance=1e-6)


def test_steps_stand_in_for_epochs(tmp_path: Path, tiny_model: Path) -> None:
    run = tiny.make_run(tmp_path / "run", "sft")
    sft(run, data=tiny.demonstrations(tmp_path), init=tiny.base(tiny_model), steps=3, batch=2, lora=tiny.LORA)
    assert [row["step"] for row in tiny.metrics(tmp_path / "run")] == [0, 1, 2]
    with pytest.raises(ConfigError, match="epochs would change nothing: there are 3 steps"):
        sft(run, data=tiny.demonstrations(tmp_path), init=tiny.base(tiny_model), steps=3, epochs=1.0)
