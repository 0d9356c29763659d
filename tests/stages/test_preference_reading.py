"""What the preference stage counts and reads: tokens through the model, trained tokens, strangers, bad rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.errors import DataError
from trimtab.model.roles import Role
from trimtab.model.trunk import Trunk
from trimtab.records.types import Message
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.stages import Result
from trimtab.stages._items import Item, _stranger
from trimtab.stages._preference import Objective, Preference
from trimtab.stages.preference import _heldout, _probe, preference
from trimtab.tensors.tree import TokenGroup, pack
from trimtab.train.run import Run

PAIR = {"kind": "pair", "better": 0, "worse": 1}
CIRCLE = [PAIR, {"kind": "pair", "better": 1, "worse": 0}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def train(run: Run, init: ModelRef, data: DataRef, **settings: object) -> Result:
    return preference(run, data=data, init=init, **{"lora": tiny.LORA, "batch": 6, "steps": 1, **settings})  # type: ignore[arg-type]


def thumb(answer: int, up: bool) -> dict[str, object]:
    return {"kind": "thumb", "answer": answer, "up": up}


def thumbs(folder: Path) -> DataRef:
    rows = [
        tiny.row("a", "What?", ["a leaf"], [thumb(0, True)]),
        tiny.row("b", "Why?", ["no", "rain"], [thumb(0, False), thumb(1, True)]),
    ]
    return tiny.write_rows(folder / "thumbs.jsonl", rows)


# --- tokens through the model -----------------------------------------------------------------------------------------


def test_every_token_that_the_policy_reads_is_counted(tmp_path: Path, tuned: ModelRef) -> None:
    """The batch, each prompt with its stranger, and the texts; an answer is its bytes and its end."""
    chat = Trunk.open(tuned)[0].chat

    def tokens(question: str, *answers: str) -> int:
        return len(chat.prompt((Message(role="user", content=question),))) + sum(len(text) + 1 for text in answers)

    def counted(name: str, **settings: object) -> float:
        train(tiny.make_run(tmp_path / name, "preference"), tuned, thumbs(tmp_path), batch=2, **settings)
        return tiny.metrics(tmp_path / name)[0]["train/tokens"]

    own = tokens("What?", "a leaf") + tokens("Why?", "no", "rain")
    strangers = tokens("What?", "no") + tokens("Why?", "a leaf")
    texts = sum(tokens(question, answer) for question, answer in zip(tiny.QUESTIONS, tiny.ANSWERS, strict=True))
    mixed = {"sft": tiny.demonstrations(tmp_path), "sft_batch": 6}
    assert counted("kto", method="kto") == own + strangers
    assert counted("mixed", method="kto", **mixed) == own + strangers + texts


# --- trained tokens ---------------------------------------------------------------------------------------------------

# A conversation's rest: of the first answer, tokens 2 and 3 are the other side's.
TURNS = TokenGroup(
    prompt=(256, 65), answers=((1, 67, 68, 2), (101, 257)), trained=((True, False, False, True), (True, True))
)


def test_means_are_over_trained_tokens(tuned: ModelRef) -> None:
    trunk, adapter = Trunk.open(tuned)
    policy, item = Role(trunk, adapter), Item(tokens=TURNS, pairs=((0, 1, 1.0),))
    assert item.targets == (2, 2)
    assert Item(tokens=TokenGroup(prompt=(), answers=((1, 2, 3),))).targets == (2,)  # nothing predicts the first
    batch = pack([TURNS])
    with torch.no_grad(), trunk.using(adapter):
        chosen, rejected = batch.sum_by_answer(trunk.logps(batch)[0]).tolist()
    found = _probe(policy, [item], 64)
    assert found == pytest.approx({"chosen/logp": chosen / 2, "rejected/logp": rejected / 2})

    assert chosen / 4 > rejected / 2 > chosen / 2  # over all tokens the order would be another
    objective = Objective(PREFERENCE_LOSSES["simpo"], {"beta": 2.0, "gamma": 1.0})
    task = Preference(policy, None, objective, [item], batch=1, micro_tokens=64, seed=0)
    assert _heldout(task, [item])["heldout/accuracy"] == 0.0


def test_a_stranger_keeps_its_trained_tokens_and_fits() -> None:
    """Items 0 and 1 have one prompt; item 2's answer is too long for item 3's prompt."""
    items = [
        Item(tokens=TokenGroup(prompt=(1,), answers=((10,), (9,)))),
        Item(tokens=TokenGroup(prompt=(1,), answers=((11,), (9,)))),
        Item(tokens=TokenGroup(prompt=(2,), answers=((20, 21, 22), (9,)), trained=((True, False, True), (True,)))),
        Item(tokens=TokenGroup(prompt=(3, 3, 3), answers=((30, 31),))),
    ]
    assert _stranger(items, 0, 6) == TokenGroup(
        prompt=(1,), answers=((20, 21, 22),), trained=((True, False, True),)
    )  # fmt: skip
    assert _stranger(items, 2, 6) == TokenGroup(prompt=(2,), answers=((30, 31),))
    assert _stranger(items, 3, 4) == TokenGroup(prompt=(3, 3, 3), answers=((10,),))
    assert _stranger(items, 1, 3) == TokenGroup(prompt=(1,), answers=((30, 31),))  # 1 + 3 would be too long
    assert _stranger(items, 3, 3) == TokenGroup(prompt=(3, 3, 3), answers=((10,),))  # nothing fits: the shortest


def test_held_out_answers_need_no_strangers(tmp_path: Path, tuned: ModelRef) -> None:
    """Not even another prompt."""
    heldout = tiny.write_rows(tmp_path / "h.jsonl", [tiny.row("h", "Who?", ["Me", "You"], [PAIR])])
    run = tiny.make_run(tmp_path / "run", "preference")
    found = train(run, tuned, thumbs(tmp_path), method="kto", heldout=heldout).metrics
    assert found["heldout/n"] == 1
    assert [note for note in run.notes if note.startswith("the reference reads")] == [
        "the reference reads 3 answers, once", "the reference reads 2 answers, once",  # the answers, the strangers
        "the reference reads 2 answers, once",
    ]  # fmt: skip


def test_held_out_answers_that_are_in_no_order_are_said(tmp_path: Path, tuned: ModelRef) -> None:
    single = tiny.row("h", "Who?", ["Me"], [thumb(0, True)])
    run = tiny.make_run(tmp_path / "run", "preference")
    found = train(
        run, tuned, thumbs(tmp_path), method="kto", heldout=tiny.write_rows(tmp_path / "h.jsonl", [single])
    ).metrics
    assert not any(name.startswith("heldout/") for name in found)
    assert any("h.jsonl: no prompt has a better and a worse answer, so there is no accuracy" in n for n in run.notes)


def test_without_its_options_a_method_has_its_own_beta() -> None:
    assert Objective(PREFERENCE_LOSSES["dpo"], {}).beta == 0.1
    assert Objective(PREFERENCE_LOSSES["simpo"], {}).beta == 2.0
    assert Objective(PREFERENCE_LOSSES["dpo"], {"beta": 0.7}).beta == 0.7
    assert Objective(PREFERENCE_LOSSES["orpo"], {}).beta == 1.0


# --- bad rows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpo", "kto", "rrhf"])
def test_a_row_that_is_too_long_can_stop_the_run(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    rows = [tiny.row("short", "Why?", ["So", "No"], [PAIR]), tiny.row("long", "Who?", ["x" * 200, "No"], [PAIR])]
    data = tiny.write_rows(tmp_path / "p.jsonl", [*rows, tiny.row("other", "How?", ["So", "No"], [PAIR])])
    run = tiny.make_run(tmp_path / "skip", "preference")
    assert train(run, tuned, data, method=method, max_length=100).metrics["data/prompts"] == 2
    assert any("1 of 3 preferences are longer than 100 tokens" in note for note in run.notes)
    with pytest.raises(
        DataError, match=r"^group 'long' of the preferences: \d+ tokens, and max_length=100 \(bad: skip"
    ):
        train(tiny.make_run(tmp_path / "stop", "preference"), tuned, data, method=method, max_length=100, bad="stop")


@pytest.mark.parametrize("method", ["kto", "rrhf"])
def test_verdicts_that_cancel_out_can_stop_the_run(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    rows = [tiny.row("circle", "Why?", ["So", "No"], CIRCLE), tiny.row("good", "Who?", ["Me", "You"], [PAIR])]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(DataError, match=r"p\.jsonl, line 1: its verdicts cancel out \(bad: skip goes on without it\)$"):
        train(tiny.make_run(tmp_path, "preference"), tuned, data, method=method, bad="stop")


def test_texts_that_cannot_be_read_are_counted(tmp_path: Path, tuned: ModelRef) -> None:
    texts = tiny.demonstrations(tmp_path)
    path = Path(texts.source)
    path.write_text(path.read_text() + '{"id": "bad", "prompt": 3}\n')
    run = tiny.make_run(tmp_path / "skip", "preference")
    train(run, tuned, tiny.preferences(tmp_path), sft=texts)
    assert any("demonstrations.jsonl: 1 of 7 rows cannot be read (the first: " in note for note in run.notes)
    with pytest.raises(DataError, match=r"demonstrations\.jsonl, line 7"):
        train(tiny.make_run(tmp_path / "stop", "preference"), tuned, tiny.preferences(tmp_path), sft=texts, bad="stop")
