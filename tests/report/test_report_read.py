from __future__ import annotations

import json
from math import isnan
from pathlib import Path

import pytest
from synthetic_run import write_run

from trimtab.errors import DataError
from trimtab.report.read import read_rows, read_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, prompts=12, steps=5))
    assert [record.name for record in run.stages] == ["sft", "reward", "policy", "evaluate"]
    sft, reward, policy, _ = run.stages
    assert (sft.skipped, sft.finished, sft.seconds, len(sft.rows), sft.init) == (True, True, 352.0, 10, "base")
    assert reward.metrics["heldout/accuracy"] == 0.765
    assert policy.rows[0]["step"] == 1
    assert run.seed == 1
    evaluation = run.evaluation
    assert evaluation is not None
    assert evaluation.models == ("base", "sft", "policy")
    assert len(evaluation.prompts) == 12
    assert evaluation.prompts[3].topic == "everyday maths"
    match = evaluation.versus("sft", "policy")
    stored = evaluation.versus("policy", "sft")
    assert match is not None
    assert stored is not None
    assert match.rate.mean == pytest.approx(1 - stored.rate.mean)
    assert match.rate.lo == pytest.approx(1 - stored.rate.hi)
    assert match.flipped() == stored or match.flipped().rate.lo == pytest.approx(stored.rate.lo)
    assert evaluation.versus("policy", "nobody") is None


def test_the_judges_scores_go_with_their_prompts(tmp_path: Path) -> None:
    folder = write_run(tmp_path, prompts=3, steps=3)
    path = folder / "evaluate" / "evaluation.json"
    raw = json.loads(path.read_text())
    raw["judge"]["scores"] = {"base": [0.1, None, 0.3], "sft": [1.0]}
    path.write_text(json.dumps(raw))
    evaluation = read_run(folder).evaluation
    assert evaluation is not None
    base = [row.answers["base"].score for row in evaluation.prompts]
    assert (base[0], base[2]) == (0.1, 0.3)
    assert isnan(base[1])
    assert [isnan(row.answers["sft"].score) for row in evaluation.prompts] == [False, True, True]
    assert isnan(evaluation.prompts[0].answers["policy"].score)


def test_a_bare_run(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    run = read_run(tmp_path)
    assert (run.name, run.stages, run.evaluation) == (tmp_path.name, (), None)


def test_a_stage_without_files_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"stages": [{"name": "sft", "stage": "sft", "folder": "elsewhere"}]}))
    (record,) = read_run(tmp_path).stages
    assert not record.finished
    assert record.rows == ()
    assert isnan(record.seconds)


def test_a_stage_folder_elsewhere(tmp_path: Path) -> None:
    kept = tmp_path / "artifacts" / "0a1b"
    kept.mkdir(parents=True)
    (kept / "manifest.json").write_text(json.dumps({"stage": "sft", "metrics": {"heldout/loss": 1.5}}))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"stages": [{"name": "first", "folder": str(kept)}]}))
    (record,) = read_run(run).stages
    assert (record.stage, record.metrics) == ("sft", {"heldout/loss": 1.5})


def test_messages_as_a_prompt(tmp_path: Path) -> None:
    folder = write_run(tmp_path, prompts=2, steps=3)
    path = folder / "evaluate" / "evaluation.json"
    raw = json.loads(path.read_text())
    raw["prompts"][0]["prompt"] = [{"role": "user", "content": "Hello"}]
    raw["prompts"][1]["prompt"] = [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hello"}]
    path.write_text(json.dumps(raw))
    evaluation = read_run(folder).evaluation
    assert evaluation is not None
    assert [row.prompt for row in evaluation.prompts] == ["Hello", "system: Be kind\n\nuser: Hello"]


def test_rows_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 1, "train/loss": 3}\n{"step": 2, "train/loss": 9}\n\n{"step": 2, "train/loss": 2}\n{"step": 3, "tra'
    )
    assert read_rows(path) == ({"step": 1, "train/loss": 3}, {"step": 2, "train/loss": 2})
    assert read_rows(tmp_path / "none.jsonl") == ()


def test_rows_with_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": NaN, "train/lr": null, "note": "words are left out"}\n')
    (row,) = read_rows(path)
    assert isnan(row["train/loss"])
    assert isnan(row["train/lr"])
    assert "note" not in row


@pytest.mark.parametrize(
    ("text", "says"), [("{broken\n{}\n", "line 1: not JSON"), ("[1]\n{}\n", "line 1: .* not list")]
)
def test_broken_rows_are_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=says):
        read_rows(path)


def test_not_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(DataError, match="a JSON object is needed, not list"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_run(tmp_path)
