"""The preference stage on the tiny model: every method learns, numbers by hand, kills, and the reference read once."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_stages as tiny
from trimtab.artifacts import ITSELF
from trimtab.config import DataRef, ModelRef
from trimtab.errors import InvariantError
from trimtab.model.cache import cache_folder
from trimtab.model.tuning import Lora
from trimtab.registry import PREFERENCE_LOSSES
from trimtab.stages import Result
from trimtab.stages._preference import Objective
from trimtab.stages.preference import preference
from trimtab.stages.sft import sft
from trimtab.train.run import Row, Run, Silent

PAIR = {"kind": "pair", "better": 0, "worse": 1}
LN2 = math.log(2)
TUNES: dict[str, dict[str, object]] = {"lora": {"lora": tiny.LORA}, "full": {"tune": "full", "lora": Lora()}}
BEFORE, AFTER = "chosen/logp_before", "chosen/logp_after"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that a reference said in another test is known here."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def train(run: Run, init: ModelRef, data: DataRef, **settings: object) -> Result:
    return preference(run, data=data, init=init, **{"lora": tiny.LORA, "batch": 6, **settings})  # type: ignore[arg-type]


def thumb(answer: int, up: bool) -> dict[str, object]:
    return {"kind": "thumb", "answer": answer, "up": up}


def thumbs(folder: Path) -> DataRef:
    """Single answers that somebody liked or not, and one prompt with one of each."""
    rows = [tiny.row(f"t{i}", tiny.QUESTIONS[i], [tiny.ANSWERS[i]], [thumb(0, i % 2 == 0)]) for i in range(5)]
    return tiny.write_rows(
        folder / "thumbs.jsonl", [*rows, tiny.row("both", "Both?", ["yes", "no"], [thumb(0, True), thumb(1, False)])]
    )


def rankings(folder: Path) -> DataRef:
    """Three answers to each question in order, two of them tied once."""
    order = {"kind": "ranking", "order": [[2], [0], [1]]}
    rows = [tiny.row(f"r{i}", tiny.QUESTIONS[i], ["No" * (i + 1), "?", tiny.ANSWERS[i]], [order]) for i in range(5)]
    tied = {"kind": "ranking", "order": [[1], [0, 2]]}
    return tiny.write_rows(folder / "rankings.jsonl", [*rows, tiny.row("tied", "Rank!", ["a", "bb", "c"], [tied])])


# What each kind of method learns from in its own terms, and its items there.
OWN: dict[str, tuple[Callable[[Path], DataRef], int]] = {
    "pair": (tiny.preferences, 5 + 3), "answer": (thumbs, 5 + 2), "list": (rankings, 6),
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(PREFERENCE_LOSSES))
def test_every_method_learns(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    make, items = OWN[Objective(PREFERENCE_LOSSES[method], {}).kind]
    result = train(tiny.make_run(tmp_path, "preference"), tuned, make(tmp_path), method=method, epochs=8.0, lr=1e-2)
    rows = tiny.metrics(tmp_path)
    assert result.metrics["data/items"] == items
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["train/accuracy"] > max(rows[0]["train/accuracy"], 0.7)
    assert rows[-1]["rewards/chosen"] > rows[-1]["rewards/rejected"]
    assert result.base == tuned.base
    assert not tiny.same_weights(tmp_path, folder_of(tuned))


@pytest.mark.parametrize("method", ["dpo", "kto", "rrhf"])
def test_pairs_are_enough_for_every_kind(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    """A winner was liked and a loser was not; comparisons put answers in order."""
    result = train(tiny.make_run(tmp_path, "preference"), tuned, tiny.preferences(tmp_path), method=method)
    # Five pairs and a ranking of three, whose middle answer won once and lost once: it was neither liked nor disliked.
    assert result.metrics["data/items"] == {"dpo": 5 + 3, "kto": 5 * 2 + 2, "rrhf": 5 + 1}[method]
    assert result.metrics["data/prompts"] == 6


@pytest.mark.parametrize("method", ["dpo", "tdpo2", "simpo"])
def test_all_weights_can_be_trained(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    """The start is then gone from memory; what it said of the data, and for TDPO a second copy of it, stay."""
    options = {"method": method, "epochs": 4.0, "lr": 3e-3, **TUNES["full"]}
    result = train(tiny.make_run(tmp_path, "preference"), tuned, tiny.preferences(tmp_path), **options)
    rows = tiny.metrics(tmp_path)
    if method != "simpo":
        assert rows[0]["train/loss"] == pytest.approx(LN2, rel=1e-5)
        assert rows[0]["rewards/chosen"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"] - 0.1
    assert result.base == ITSELF
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype is torch.float32
    assert not (tmp_path / "adapter_config.json").exists()


def test_starts_at_the_reference(tmp_path: Path, tuned: ModelRef) -> None:
    """Whatever was learned before: log-ratios are 0, and the losses are what they are there."""
    data = tiny.preferences(tmp_path)
    at_zero = {"dpo": LN2, "cdpo": LN2, "rdpo": LN2, "hinge": 1.0, "ipo": 25.0, "tdpo1": LN2, "tdpo2": LN2, "kto": 0.5}
    for method, expected in at_zero.items():
        train(tiny.make_run(tmp_path / method, "preference"), tuned, data, method=method, steps=1)
        (row,) = tiny.metrics(tmp_path / method)
        assert row["train/loss"] == pytest.approx(expected, rel=1e-5), method
        for name in ("rewards/chosen", "rewards/rejected"):
            assert row[name] == pytest.approx(0, abs=1e-5), method


# --- against plain transformers ---------------------------------------------------------------------------------------


def plain_logps(model: Path | str, adapter: Path, texts: Sequence[tuple[str, str]]) -> list[float]:
    """Sums over an answer's tokens and its end, one (question, answer) at a time."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter))
    found = []
    for question, answer in texts:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=True, return_dict=False)
        ids = [*prompt, *tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            each = F.log_softmax(plain(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)
        found.append(float(each[range(len(ids) - 1), ids[1:]][len(prompt) - 1 :].sum()))
    return found


def folder_of(model: ModelRef) -> Path:
    assert model.artifact is not None
    return model.artifact.folder


@pytest.mark.parametrize(("method", "beta"), [("dpo", 0.5), ("simpo", 2.0)])
def test_heldout_accuracy_by_hand(tmp_path: Path, tuned: ModelRef, method: str, beta: float) -> None:
    rows = [
        tiny.row("long", "Why?", ["a long answer", "short"], [PAIR]),
        tiny.row("short", "Why not?", ["short", "a long answer"], [PAIR]),
        tiny.row("equal", "Who?", ["abc", "def"], [PAIR]),
        tiny.row("rank", "Rank!", ["four", "seven77", "sixsix"], [{"kind": "ranking", "order": [[1], [0], [2]]}]),
    ]
    verdicts = [(0, 0, 1), (1, 0, 1), (2, 0, 1), (3, 1, 0), (3, 1, 2), (3, 0, 2)]
    texts = [(row["prompt"][0]["content"], answer["text"]) for row in rows for answer in row["answers"]]
    found = train(
        tiny.make_run(tmp_path, "preference"), tuned, tiny.preferences(tmp_path), method=method, beta=beta, lr=1e-2,
        epochs=6.0, heldout=tiny.write_rows(tmp_path / "heldout.jsonl", rows),
    ).metrics  # fmt: skip
    after, before = plain_logps(tuned.base, tmp_path, texts), plain_logps(tuned.base, folder_of(tuned), texts)
    if method == "simpo":  # no reference, and the mean over tokens
        before, after = [0.0] * len(texts), [x / (len(answer) + 1) for x, (_, answer) in zip(after, texts, strict=True)]
    rewards = [a - b for a, b in zip(after, before, strict=True)]
    first = [0, 2, 4, 6]  # where a prompt's answers begin
    right = [float(rewards[first[i] + better] > rewards[first[i] + worse]) for i, better, worse in verdicts]
    assert found["heldout/accuracy"] == pytest.approx((sum(right[:3]) + sum(right[3:]) / 3) / 4)  # a prompt counts once
    assert found["heldout/n"] == 6
    assert found["heldout/prompts"] == 4
    assert found["heldout/longer_wins"] == pytest.approx((1 + 0 + 0.5 + 1 + 1 + 0) / 6)
    assert found["heldout/accuracy_lo"] < found["heldout/accuracy"] <= found["heldout/accuracy_hi"]


def test_rewards_are_those_of_the_saved_adapter(tmp_path: Path, tuned: ModelRef) -> None:
    """The second step's numbers, from what the first step alone would have saved (both have the full rate)."""
    data, settings = tiny.preferences(tmp_path, 3), {"lr": 1e-2, "batch": 3, "beta": 0.5}
    for steps in (1, 2):
        train(tiny.make_run(tmp_path / str(steps), "preference"), tuned, data, steps=steps, **settings)
    row = tiny.metrics(tmp_path / "2")[1]
    texts = [
        *((tiny.QUESTIONS[i], text) for i in range(2) for text in (tiny.ANSWERS[i], "No" * (i + 1))),
        *(("Rank!", text) for text in ("one", "two two", "3")),
    ]
    mine = plain_logps(tuned.base, tmp_path / "1", texts)
    gain = [0.5 * (a - b) for a, b in zip(mine, plain_logps(tuned.base, folder_of(tuned), texts), strict=True)]
    pairs = [(0, 1), (2, 3), (6, 4), (6, 5), (4, 5)]
    weights = [1 / 3, 1 / 3, 1 / 9, 1 / 9, 1 / 9]
    margins = torch.tensor([gain[a] - gain[b] for a, b in pairs], dtype=torch.float64)
    assert margins.abs().min() > 1e-3
    assert row["rewards/chosen"] == pytest.approx(sum(gain[a] for a, _ in pairs) / 5, abs=1e-4)
    assert row["rewards/rejected"] == pytest.approx(sum(gain[b] for _, b in pairs) / 5, abs=1e-4)
    assert row["logps/chosen"] == pytest.approx(sum(mine[a] for a, _ in pairs) / 5, rel=1e-5)
    assert row["train/accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    losses = -F.logsigmoid(margins)
    minimised = float(losses @ torch.tensor(weights, dtype=torch.float64))  # every prompt counts the same
    assert row["train/loss"] == pytest.approx(minimised, abs=1e-4)
    assert minimised != pytest.approx(float(losses.mean()), abs=1e-3)


def test_ktos_baseline_is_the_drift_on_the_next_prompts_answer(tmp_path: Path, tuned: ModelRef) -> None:
    rows = [
        tiny.row("a", "What?", ["unjudged", "a leaf"], [thumb(1, True)]),
        tiny.row("b", "Why?", ["no", "rain"], [thumb(0, False), thumb(1, True)]),
        tiny.row("c", "Why?", ["never"], [thumb(0, False)]),  # the same prompt as the one before
    ]
    data = tiny.write_rows(tmp_path / "thumbs.jsonl", rows)
    for steps in (1, 2):
        run = tiny.make_run(tmp_path / str(steps), "preference")
        train(run, tuned, data, method="kto", steps=steps, batch=3, lr=1e-2)
    strange = [("What?", "no"), ("Why?", "a leaf"), ("Why?", "a leaf")]
    after, before = (plain_logps(tuned.base, f, strange) for f in (tmp_path / "1", folder_of(tuned)))
    drift = sum(after) / 3 - sum(before) / 3
    first, second = tiny.metrics(tmp_path / "2")
    assert first["train/baseline"] == pytest.approx(0, abs=1e-5)
    assert abs(drift) > 1e-2
    assert second["train/baseline"] == pytest.approx(max(drift, 0.0), abs=1e-4)


# --- soft labels ------------------------------------------------------------------------------------------------------


def labelled(folder: Path, name: str, probability: float | None, swap: bool = False) -> DataRef:
    verdict = {"kind": "pair", "better": int(swap), "worse": int(not swap)}
    verdict |= {} if probability is None else {"probability": probability}
    rows = [tiny.row(f"p{i}", tiny.QUESTIONS[i], [tiny.ANSWERS[i], "No"], [verdict]) for i in range(4)]
    return tiny.write_rows(folder / f"{name}.jsonl", rows)


def test_a_soft_label_weighs_both_directions(tmp_path: Path, tuned: ModelRef) -> None:
    """At the start l(h) has the gradient -beta/2, so the whole is (2P - 1) of a sure label's: nothing at P = 1/2."""
    norms = {}
    for name, probability in {"sure": None, "one": 1.0, "soft": 0.8, "half": 0.5, "no": 0.0}.items():
        data = labelled(tmp_path, name, probability)
        train(tiny.make_run(tmp_path / name, "preference"), tuned, data, lr=1e-2, steps=4)
        norms[name] = tiny.metrics(tmp_path / name)[0]["train/grad_norm"]
        assert tiny.metrics(tmp_path / name)[0]["train/loss"] == pytest.approx(LN2, rel=1e-5)
    assert norms["sure"] > 0.01
    assert norms["half"] < 1e-5 * norms["sure"]
    assert norms["soft"] == pytest.approx(0.6 * norms["sure"], rel=1e-3)
    assert tiny.same_weights(tmp_path / "sure", tmp_path / "one")
    train(
        tiny.make_run(tmp_path / "swapped", "preference"), tuned, labelled(tmp_path, "swapped", None, swap=True),
        lr=1e-2, steps=4,
    )  # fmt: skip
    mine, theirs = ([row["train/loss"] for row in tiny.metrics(tmp_path / name)] for name in ("no", "swapped"))
    assert mine == pytest.approx(theirs, rel=1e-5)


# --- the same again ---------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for a kill."""


class Dies(Silent):
    """Stops the run when so many steps are done, before their checkpoint is written."""

    def __init__(self, at: int) -> None:
        self.at = at

    def advance(self, done: int, values: Row) -> None:
        if done == self.at:
            raise Killed


@pytest.mark.parametrize(
    ("method", "tune", "cache"),
    [("dpo", "lora", "kept"), ("kto", "lora", "deleted"), ("tdpo2", "full", "deleted"), ("rrhf", "lora", "kept")],
)
def test_killed_and_started_again_it_ends_with_the_same_bits(
    tmp_path: Path, tuned: ModelRef, method: str, tune: str, cache: str
) -> None:
    data = OWN[Objective(PREFERENCE_LOSSES[method], {}).kind][0](tmp_path)
    options = {
        "method": method, "epochs": 3.0, "batch": 3, "lr": 1e-2, "heldout": data,
        "sft": tiny.demonstrations(tmp_path), "sft_weight": 0.5, "sft_batch": 2, **TUNES[tune],
    }  # fmt: skip
    often = {"checkpoint_seconds": 0}
    whole = train(tiny.make_run(tmp_path / "whole", "preference", **often), tuned, data, **options)
    with pytest.raises(Killed):
        train(tiny.make_run(tmp_path / "killed", "preference", **often, reporter=Dies(3)), tuned, data, **options)
    if cache == "deleted":
        shutil.rmtree(cache_folder(), ignore_errors=True)
    run = tiny.make_run(tmp_path / "killed", "preference", **often)
    again = train(run, tuned, data, **options)
    assert any(note.startswith("resumed after step 2 of") for note in run.notes)
    assert tiny.same_weights(tmp_path / "whole", tmp_path / "killed")
    assert tiny.metrics(tmp_path / "whole") == tiny.metrics(tmp_path / "killed")
    assert again == whole


@pytest.mark.parametrize("method", ["dpo", "kto", "tdpo1", "orpo", "rrhf"])
def test_micro_tokens_change_nothing(
    tmp_path: Path, tuned: ModelRef, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    data = OWN[Objective(PREFERENCE_LOSSES[method], {}).kind][0](tmp_path)
    for micro_tokens in (1, 128, 4096):
        folder = tmp_path / str(micro_tokens)
        monkeypatch.setenv("TRIMTAB_CACHE", str(folder / "cache"))  # the reference is cut differently, too
        train(
            tiny.make_run(folder, "preference"), tuned, data, method=method, steps=3, batch=4, lr=1e-3,
            micro_tokens=micro_tokens, sft=tiny.demonstrations(tmp_path), sft_batch=3,
        )  # fmt: skip
    tiny.same_curves(tmp_path / "4096", tmp_path / "1", tolerance=1e-5)
    tiny.same_curves(tmp_path / "4096", tmp_path / "128", tolerance=1e-5)


def test_the_seed_decides(tmp_path: Path, tuned: ModelRef) -> None:
    data = tiny.preferences(tmp_path)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(tiny.make_run(tmp_path / name, "preference", seed=seed), tuned, data, batch=2)
    assert tiny.same_weights(tmp_path / "a", tmp_path / "b")
    assert not tiny.same_weights(tmp_path / "a", tmp_path / "c")


# --- the reference ----------------------------------------------------------------------------------------------------


def readings(run: Run) -> list[str]:
    return [note for note in run.notes if note.startswith("the reference reads")]


def test_the_reference_reads_the_data_once(tmp_path: Path, tiny_model: Path, tuned: ModelRef) -> None:
    data, other = tiny.preferences(tmp_path), tiny.preferences(tmp_path / "other", 5)

    def said(name: str, init: ModelRef, data: DataRef, method: str = "dpo", seed: int = 0) -> list[str]:
        run = tiny.make_run(tmp_path / name, "preference", seed=seed)
        train(run, init, data, method=method, steps=2)
        return readings(run)

    assert said("first", tuned, data) == ["the reference reads 13 answers, once"]
    assert said("again", tuned, data) == []
    assert said("method", tuned, data, method="ipo", seed=3) == []
    assert said("data", tuned, other) == ["the reference reads 11 answers, once"]
    assert said("none", tiny.base(tiny_model), data, method="orpo") == []  # needs none
    assert said("base", tiny.base(tiny_model), data) == ["the reference reads 13 answers, once"]
    assert tiny.same_weights(tmp_path / "first", tmp_path / "again")

    sft(
        tiny.make_run(tmp_path / "sft", "sft"), data=tiny.demonstrations(tmp_path), init=tiny.base(tiny_model),
        lora=tiny.LORA, lr=1e-2, batch=3,
    )  # fmt: skip
    changed = tiny.finished(tmp_path / "sft", "sft", "sft", str(tiny_model))
    assert said("changed", changed, data) == ["the reference reads 13 answers, once"]


def test_the_cache_is_worth_nothing_but_time(tmp_path: Path, tuned: ModelRef) -> None:
    data = tiny.preferences(tmp_path)
    for name in ("first", "again"):
        run = tiny.make_run(tmp_path / name, "preference")
        train(run, tuned, data, method="kto", steps=2)
        assert len(readings(run)) == 2  # the answers, and each prompt with another's
        shutil.rmtree(cache_folder())
    assert tiny.same_weights(tmp_path / "first", tmp_path / "again")


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_reference_that_is_another_model_is_caught(tmp_path: Path, tuned: ModelRef, method: str) -> None:
    data = tiny.preferences(tmp_path)
    train(tiny.make_run(tmp_path / "first", "preference"), tuned, data, method=method, steps=1)
    for path in cache_folder().glob("reference/*/*.safetensors"):  # as if another model had said it
        save_file({name: tensor + 0.5 for name, tensor in load_file(path).items()}, path)
    with pytest.raises(InvariantError, match=r"step 0: policy and reference differ by .* nats a token"):
        train(tiny.make_run(tmp_path / "second", "preference"), tuned, data, method=method, steps=1)


# --- beside the loss --------------------------------------------------------------------------------------------------


def test_drift_is_measured_by_the_token(tmp_path: Path, tuned: ModelRef) -> None:
    found = train(tiny.make_run(tmp_path, "preference"), tuned, tiny.preferences(tmp_path, 3), steps=3, lr=1e-2).metrics
    chosen = [(tiny.QUESTIONS[0], "A leaf."), (tiny.QUESTIONS[1], tiny.ANSWERS[1]), ("Rank!", "3"), ("Rank!", "3")]
    chosen.append(("Rank!", "one"))
    tokens = sum(len(answer) + 1 for _, answer in chosen)
    for name, adapter in ((BEFORE, folder_of(tuned)), (AFTER, tmp_path)):
        assert found[name] == pytest.approx(sum(plain_logps(tuned.base, adapter, chosen)) / tokens, rel=1e-5)
    assert found["rejected/logp_after"] < found["rejected/logp_before"]


def test_texts_mixed_in_change_the_training(tmp_path: Path, tuned: ModelRef) -> None:
    data, texts = tiny.preferences(tmp_path), tiny.demonstrations(tmp_path)

    def run(name: str, **settings: object) -> list[dict[str, float]]:
        train(tiny.make_run(tmp_path / name, "preference"), tuned, data, steps=6, lr=1e-2, **settings)
        return tiny.metrics(tmp_path / name)

    off, idle, on = run("off"), run("idle", sft=texts, sft_weight=0.0), run("on", sft=texts)
    assert tiny.same_weights(tmp_path / "off", tmp_path / "idle")
    assert not tiny.same_weights(tmp_path / "off", tmp_path / "on")
    assert not any("sft/loss" in row for row in off)
    assert on[0]["sft/loss"] == pytest.approx(idle[0]["sft/loss"])  # the loss itself, whatever its weight
    assert on[-1]["sft/loss"] < min(on[0]["sft/loss"], idle[-1]["sft/loss"])
    # A mean over the texts' tokens: the whole file in one batch of six.
    whole = run("whole", sft=texts, sft_batch=6)[0]["sft/loss"]
    demonstrations = list(zip(tiny.QUESTIONS, tiny.ANSWERS, strict=True))
    nats = -sum(plain_logps(tuned.base, folder_of(tuned), demonstrations))
    assert whole == pytest.approx(nats / sum(len(answer) + 1 for answer in tiny.ANSWERS), rel=1e-5)
