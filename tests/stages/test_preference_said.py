"""What the preference stage says of its data and its settings, what it refuses, and how a recipe names a method."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef, check_recipe
from trimtab.errors import ConfigError, DataError
from trimtab.pipeline import run_recipe
from trimtab.stages import Result
from trimtab.stages.preference import preference
from trimtab.train.run import Run

PAIR = {"kind": "pair", "better": 0, "worse": 1}
TIE = {**PAIR, "tie": "tie"}
BEFORE, AFTER = "chosen/logp_before", "chosen/logp_after"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


def train(run: Run, init: ModelRef, data: DataRef, **settings: object) -> Result:
    return preference(run, data=data, init=init, **{"lora": tiny.LORA, "batch": 6, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "what"),
    [("dpo", "strict preference"), ("kto", "thumb or strict preference"), ("rrhf", "order of answers")],
)
@pytest.mark.parametrize("verdicts", [[], [TIE]])
def test_data_without_preferences_is_refused(
    tmp_path: Path, tiny_model: Path, method: str, what: str, verdicts: list[dict[str, object]]
) -> None:
    data = tiny.write_rows(tmp_path / "p.jsonl", [tiny.row("a", "Why?", ["So", "No"], verdicts)])
    why = "a tie" if verdicts else f"no {what}"
    with pytest.raises(
        DataError, match=rf"p\.jsonl: no {what} in it that could be learned from; the first row: .*: holds {why}$"
    ):
        train(tiny.make_run(tmp_path, "preference"), tiny.base(tiny_model), data, method=method)


ROWS = [
    tiny.row("judged", "Why?", ["Because", "No"], [PAIR]),
    tiny.row("tied", "Who?", ["Me", "You"], [TIE]),
    tiny.row("unjudged", "When?", ["Now", "Then"]),
    tiny.row("half tied", "Rank!", ["a", "b", "c"], [{"kind": "ranking", "order": [[0, 1], [2]]}]),
    tiny.row("empty", "Say it", ["", "It"], [PAIR]),
    tiny.row("twins", "Which?", ["This ", "This"], [PAIR]),
]


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path, tiny_model: Path) -> None:
    run = tiny.make_run(tmp_path, "preference")
    result = train(run, tiny.base(tiny_model), tiny.write_rows(tmp_path / "p.jsonl", ROWS))
    assert result.metrics["data/prompts"] == 2
    assert result.metrics["data/items"] == 1 + 2
    said = "\n".join(run.notes)
    for note in (
        "2 of 6 rows hold a tie", "1 of 6 rows hold no strict preference", "1 of 6 rows hold an empty answer",
        "1 of 6 rows prefer an answer to one of the same text", "4 of 6 rows were left out",
    ):  # fmt: skip
        assert f"p.jsonl: {note}" in said


def test_the_first_bad_row_can_stop_the_run(tmp_path: Path, tiny_model: Path) -> None:
    data = tiny.write_rows(tmp_path / "p.jsonl", [ROWS[0], ROWS[5]])
    with pytest.raises(DataError, match=r"p\.jsonl.*: prefers an answer to one of the same text \(bad: skip goes on"):
        train(tiny.make_run(tmp_path, "preference"), tiny.base(tiny_model), data, bad="stop")


@pytest.mark.parametrize("method", ["kto", "rrhf"])
def test_verdicts_that_cancel_out_are_counted(tmp_path: Path, tiny_model: Path, method: str) -> None:
    circle = tiny.row("circle", "Why?", ["So", "No"], [PAIR, {"kind": "pair", "better": 1, "worse": 0}])
    rows = [circle, ROWS[0], tiny.row("other", "Who?", ["Me", "You"], [PAIR])]
    run = tiny.make_run(tmp_path, "preference")
    result = train(run, tiny.base(tiny_model), tiny.write_rows(tmp_path / "p.jsonl", rows), method=method)
    assert result.metrics["data/prompts"] == 2
    assert [note for note in run.notes if "in 1 of 3 groups the verdicts cancel out" in note]
    only = tiny.write_rows(tmp_path / "only.jsonl", [circle])
    with pytest.raises(DataError, match=r"only\.jsonl: no .* that could be learned from: all verdicts cancel out$"):
        train(tiny.make_run(tmp_path, "preference"), tiny.base(tiny_model), only, method=method)


def test_kto_needs_two_prompts(tmp_path: Path, tiny_model: Path) -> None:
    rows = [tiny.row(f"p{i}", "Why?", [f"So{i}", "No"], [PAIR]) for i in range(2)]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    with pytest.raises(ConfigError, match=r"stages\.preference: .* answers to other prompts; there is only one$"):
        train(tiny.make_run(tmp_path, "preference"), tiny.base(tiny_model), data, method="kto")


def test_the_chosen_answers_becoming_less_likely_is_said(tmp_path: Path, tuned: ModelRef) -> None:
    """The better answer begins as the worse one goes on: what makes the one unlikely makes the other so."""
    rows = [tiny.row(f"p{i}", tiny.QUESTIONS[i], [text * 6, text * 30], [PAIR]) for i, text in enumerate("abc")]
    data = tiny.write_rows(tmp_path / "p.jsonl", rows)
    fallen = {}
    for method in ("dpo", "dpop"):
        run = tiny.make_run(tmp_path / method, "preference")
        found = train(run, tuned, data, method=method, steps=10, lr=1e-2).metrics
        fallen[method] = found[BEFORE] - found[AFTER]
        notes = [note for note in run.notes if note.startswith("the chosen answers became less likely")]
        if method == "dpo":
            assert notes == [
                f"the chosen answers became less likely, from {found[BEFORE]:.2f} to {found[AFTER]:.2f} nats a token: "
                "the model moves to a third kind of answer; method=dpop holds them, or sft with sft_weight"
            ]
        else:
            assert not notes
    assert fallen["dpo"] > 0.05 > fallen["dpop"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sft_weight": 0.5}, "sft_weight and sft_batch would change nothing: there is no sft"),
        ({"sft_batch": 4}, "sft_weight and sft_batch would change nothing: there is no sft"),
        ({"steps": 3, "epochs": 2.0}, "epochs would change nothing: there are 3 steps"),
        ({"beta": 0.0}, "dpo: beta must be a number above 0, not 0"),
        ({"method": "rdpo", "label_smoothing": 0.5}, "rdpo: label_smoothing must be at least 0 and below 0.5"),
        ({"method": "dp0"}, "no preference loss 'dp0'; did you mean 'dpo'"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, tiny_model: Path, settings: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        train(tiny.make_run(tmp_path, "preference"), tiny.base(tiny_model), tiny.preferences(tmp_path), **settings)


def test_a_methods_options_stand_beside_the_stages() -> None:
    def settings(**given: object) -> dict[str, object]:
        recipe = check_recipe({"stages": {"preference": {"data": "p.jsonl", **given}}}, "recipe")
        return dict(recipe.stages["preference"].settings)

    assert settings()["method"] == "dpo"
    assert settings()["beta"] == 0.1
    simpo = settings(method="simpo", gamma=1.5, lr=1e-6)
    assert (simpo["gamma"], simpo["beta"], simpo["lr"]) == (1.5, 2.0, 1e-6)
    assert "gamma" not in settings(method="orpo")
    for given, says in (
        ({"method": "simpo", "gama": 1.0}, r"stages\.preference: no option 'gama'; did you mean 'gamma'"),
        ({"gamma": 1.0}, r"stages\.preference: no option 'gamma'"),
        ({"betta": 0.1}, r"stages\.preference: no option 'betta'; did you mean 'beta'"),
        ({"method": "kt0"}, r"stages\.preference\.method: no preference loss 'kt0'; did you mean 'kto'"),
        ({"beta": "wide"}, r"stages\.preference\.beta='wide'"),
    ):
        with pytest.raises(ConfigError, match=says):
            settings(**given)


def test_two_methods_are_two_artifacts(tmp_path: Path, tiny_model: Path) -> None:
    """Even where their options have the same names and values (DPO, hinge)."""
    stage = {"data": tiny.preferences(tmp_path).source, "lora": {"rank": 4, "alpha": 8}, "steps": 1}
    raw = {"model": str(tiny_model), "dtype": "float32", "output": str(tmp_path), "stages": {"preference": stage}}
    made = []
    for method in ("dpo", "hinge", "dpo"):
        root = run_recipe(check_recipe(raw, "recipe", [f"preference.method={method}"], name="run"))
        made.append((root / "preference").resolve())
    assert made[0] == made[2] != made[1]
    assert len(list((root / "artifacts").iterdir())) == 2
