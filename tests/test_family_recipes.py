"""The recipes for each kind of feedback, from the command in their own header, on slices of real data.

What they report is counted again here from the raw rows, without our readers.
"""

from __future__ import annotations

import gzip
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from trimtab.cli import app
from trimtab.config import load_recipe
from trimtab.records.read import read_groups
from trimtab.records.types import Score
from trimtab.registry import PREFERENCE_LOSSES

RECIPES = Path(__file__).parents[1] / "recipes"
SMALL = ("model=tiny", "dtype=float32")
FEW_WORDS = ("evaluate.limit=4", "evaluate.sampling.max_tokens=6", "evaluate.base_max_tokens=6")
LONG = 240
TRAIN, HELDOUT = "@0:0.6", "@0.8:1"

Row = dict[str, Any]
Metrics = Mapping[str, float]


# --- slices of real data ----------------------------------------------------------------------------------------------


def cut(value: Any) -> Any:
    """The same, with a quarter of every long text: the tiny model reads bytes."""
    if isinstance(value, str):
        return value if len(value) <= LONG else value[: len(value) // 4]
    if isinstance(value, list):
        return [cut(item) for item in value]
    return {key: cut(item) for key, item in value.items()} if isinstance(value, dict) else value


def sliced(
    source: Path, target: Path, keep: Callable[[Row], bool] = lambda _: True, *, count: int, most: int
) -> list[Row]:
    """Write the first rows of a sample that are short by then; give them back."""
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        rows: list[Row] = [cut(row) for line in lines if keep(row := json.loads(line))]
    rows = [row for row in rows if size(row) <= most][:count]
    assert len(rows) == count
    write(target, rows)
    return rows


def write(target: Path, rows: Sequence[Row]) -> None:
    target.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def size(row: Row) -> int:
    """Characters of a row's prompt and of its longest answer."""
    prompt = row["prompt"] if "prompt" in row else [{"content": row["question"]}]
    single = [row[key] for key in ("chosen", "rejected", "response", "response_a", "response_b") if key in row]
    answers = [*single, *(response["text"] for response in row.get("responses", ()))]
    return sum(len(turn["content"]) for turn in prompt) + max(map(len, answers))


def part(data: Path, rows: Sequence[Row], share: str) -> list[Row]:
    """The rows that lie in a share."""
    names = {group.id for group in read_groups(f"{data}{share}").groups}
    return [row for row in rows if row["id"] in names]


# --- the commands in the headers --------------------------------------------------------------------------------------


def commands(recipe: str) -> list[list[str]]:
    """The command lines in a recipe's header."""
    lines = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    head = "\n".join(line.removeprefix("#") for line in lines if line.startswith("#")).replace("\\\n", " ")
    return [shlex.split(line) for line in head.splitlines() if line.startswith("   trimtab ")]


def call(words: Sequence[str], **places: Path) -> str:
    """Run a command line in which the names of ``places`` stand for files."""
    for name, path in places.items():
        words = [word.replace(f"{name}@", f"{path}@") for word in words]
    result = CliRunner().invoke(app, list(words)[1:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Metrics]]:
    """Run a recipe by its own command; return what each stage measured."""
    monkeypatch.chdir(tmp_path)

    def start(recipe: str, *settings: str, **places: Path) -> dict[str, Metrics]:
        options = {name: stage.settings for name, stage in load_recipe(RECIPES / f"{recipe}.yaml").stages.items()}
        short = [f"{name}.epochs=0.1" for name, settings in options.items() if "epochs" in settings]
        wide = [f"{name}.max_length=2048" for name, settings in options.items() if "max_length" in settings]
        ours = (*SMALL, f"output={tmp_path / 'runs'}", *short, *wide)
        call([*commands(recipe)[0], *ours, *settings], **places)
        stages = json.loads((tmp_path / "runs" / recipe / "run.json").read_text())["stages"]
        folders = {stage["name"]: tmp_path / "runs" / recipe / stage["name"] for stage in stages}
        return {name: json.loads((folder / "manifest.json").read_text())["metrics"] for name, folder in folders.items()}

    return start


@pytest.fixture
def judge() -> None:
    """The judge of stage evaluate reads with a small encoder."""
    from trimtab.errors import ModelError
    from trimtab.model.bundled import bundled_folder

    try:
        bundled_folder("minilm-l6-v2")
    except ModelError as error:
        pytest.skip(f"the encoder cannot be had here: {error}")


def evaluation(tmp_path: Path, recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "runs" / recipe / "evaluate" / "evaluation.json").read_text())
    return found


def longer_wins(pairs: Sequence[tuple[str, str]]) -> float:
    """How often the longer of (better, worse) is the better one, in the tiny model's tokens, which are bytes."""
    hits = [(a > b) + (a == b) / 2 for better, worse in pairs for a, b in [(len(better.encode()), len(worse.encode()))]]
    return sum(hits) / len(hits)


def learned(texts: Sequence[str]) -> int:
    """Tokens to learn from: bytes, and the end of the turn."""
    return sum(len(text.encode()) + 1 for text in texts)


# --- checks without data ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(PREFERENCE_LOSSES))
def test_every_preference_method_is_one_override_away(method: str) -> None:
    recipe = load_recipe(RECIPES / "dpo.yaml", [f"preference.method={method}"])
    assert recipe.stages["preference"].settings["method"] == method


@pytest.mark.parametrize("recipe", ["dpo", "thumbs", "rankings", "attributes", "votes"])
def test_the_header_sets_every_source(recipe: str) -> None:
    """Whoever follows the header trains on nothing but their own data."""
    first = commands(recipe)[0]
    assert first[:3] == ["trimtab", "run", recipe]
    for stage in load_recipe(RECIPES / f"{recipe}.yaml", first[3:]).stages.values():
        for option in ("data", "heldout", "prompts", "judge", "judge_heldout", "preferences"):
            source = stage.settings.get(option)
            assert source is None or source.startswith(("D@", "P@")), f"{stage.name}.{option}"


# --- pairs ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(("name", "most"), [("ultrafeedback_pairs", 500), ("dpo_en_demo", 600)])
def test_pairs(name: str, most: int, shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]) -> None:
    data = tmp_path / "pairs.jsonl"
    rows = sliced(shared_data / name / "train.jsonl.gz", data, count=54, most=most)
    found = run("dpo", *FEW_WORDS, D=data)
    train, heldout = part(data, rows, TRAIN), part(data, rows, HELDOUT)
    assert len(train) > 20
    assert len(heldout) > 5
    assert found["sft"]["data/target_tokens"] == learned([row["chosen"] for row in train])
    assert found["preference"]["data/items"] == found["preference"]["data/prompts"] == len(train)
    assert found["preference"]["heldout/n"] == len(heldout)
    wins = longer_wins([(row["chosen"], row["rejected"]) for row in heldout])
    assert found["preference"]["heldout/longer_wins"] == pytest.approx(wins)
    assert 0 <= found["preference"]["heldout/accuracy_lo"] <= found["preference"]["heldout/accuracy"] <= 1
    report = evaluation(tmp_path, "dpo")
    assert report["judge"]["n"] == len(heldout)
    assert {"accuracy", "longer_wins"} <= report["judge"].keys()
    assert [(row["a"], row["b"]) for row in report["head_to_head"]] == [
        ("sft", "base"), ("preference", "base"), ("preference", "sft"),
    ]  # fmt: skip
    assert report["kl"]["sft"] == pytest.approx(0, abs=1e-4)


# --- thumbs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("kto_en_demo/train", 40), ("oasst_en100/thumbs_train", 70)])
def test_thumbs(
    name: str, count: int, shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]
) -> None:
    data = tmp_path / "thumbs.jsonl"
    rows = sliced(shared_data / f"{name}.jsonl.gz", data, count=count, most=600)
    found = run("thumbs", *FEW_WORDS, D=data)
    train = part(data, rows, TRAIN)
    heldout = [row for row in part(data, rows, HELDOUT) if row["label"] is not None]
    kept = [row["response"] for row in train if row["label"] is not False]
    assert 5 < len(kept) < len(train)
    assert found["sft"]["data/target_tokens"] == learned(kept)  # what was disliked is no demonstration
    assert found["kto"]["data/items"] == sum(row["label"] is not None for row in train)
    assert {"chosen/logp_after", "rejected/logp_after"} <= found["kto"].keys()
    assert found["referee"]["heldout/labels"] == len(heldout)
    assert {"heldout/mse", "heldout/mse_of_mean", "heldout/auc/thumb", "heldout/longer_auc/thumb"} <= found[
        "referee"
    ].keys()
    assert {"reward_model/base", "reward_model/sft", "reward_model/kto"} <= found["evaluate"].keys()
    said = evaluation(tmp_path, "thumbs")
    assert "head_to_head" not in said  # nobody is there to judge pairs
    assert [(row["a"], row["b"]) for row in said["by_reward"]] == [("sft", "base"), ("kto", "base"), ("kto", "sft")]
    assert all(row["n"] == len(said["prompts"]) for row in said["by_reward"])


# --- rankings ---------------------------------------------------------------------------------------------------------


def ranked_pairs(row: Row) -> Iterator[tuple[str, str]]:
    """All (better, worse) of a prompt's ranked answers, or of its pairwise labels."""
    answers = [response["text"] for response in row["responses"]]
    if "pairwise" in row:
        for said in row["pairwise"]:
            texts = {answers[said["a"]], answers[said["b"]]}
            if said["label"] and len(texts) > 1:  # what was cut may be the same now
                a, b = (said["a"], said["b"]) if said["label"] == 1 else (said["b"], said["a"])
                yield answers[a], answers[b]
        return
    ranks = [response["rank"] for response in row["responses"]]
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            yield (answers[i], answers[j]) if ranks[i] < ranks[j] else (answers[j], answers[i])


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("name", "loss"), [("oasst_en100/kwise_train", "bradley_terry"), ("finegrained_qa/train", "plackett_luce")]
)
def test_rankings(
    name: str, loss: str, shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]
) -> None:
    data = tmp_path / "ranked.jsonl"
    rows = sliced(shared_data / f"{name}.jsonl.gz", data, lambda row: len(row["responses"]) > 2, count=42, most=600)
    found = run("rankings", f"reward.loss={loss}", *FEW_WORDS, D=data)
    train = [list(ranked_pairs(row)) for row in part(data, rows, TRAIN)]
    heldout = [pair for row in part(data, rows, HELDOUT) for pair in ranked_pairs(row)]
    assert max(map(len, train)) == 6  # four answers in an order are six pairs
    kind = "data/pairs" if loss == "bradley_terry" else "data/orders"
    assert found["reward"][kind] == sum(map(len, train))
    assert found["rrhf"]["data/prompts"] == sum(map(bool, train))
    assert found["reward"]["heldout/n"] == len(heldout)
    for stage in ("reward", "rrhf"):
        assert 0 <= found[stage]["heldout/accuracy"] <= 1
    assert found["reward"]["heldout/longer_wins"] == pytest.approx(longer_wins(heldout))
    assert evaluation(tmp_path, "rankings")["judge"]["n"] == len(heldout)


# --- attributes -------------------------------------------------------------------------------------------------------


def test_attributes_and_their_raters(shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]) -> None:
    data = tmp_path / "rated.jsonl"
    rows = sliced(shared_data / "squality_ratings" / "train.jsonl.gz", data, count=60, most=900)
    found = run("attributes", "reward.per_rater=true", "gate.steps=5", D=data, P=data)
    train, heldout = part(data, rows, TRAIN), part(data, rows, HELDOUT)
    raters = {f"human:{said['annotator']}" for row in rows for a in row["responses"] for said in a["human"]}
    assert {v.rater for group in read_groups(data).groups for v in group.verdicts} == raters
    assert found["reward"]["data/labels"] == sum(3 * len(a["human"]) for row in train for a in row["responses"])
    assert found["reward"]["heldout/labels"] == sum(3 * len(row["responses"]) for row in heldout)
    names = ("correctness", "overall", "selection")
    assert {f"heldout/explained/{name}" for name in names} <= found["reward"].keys()
    for stage in ("reward", "gate"):
        assert {"heldout/accuracy", "heldout/longer_wins"} <= found[stage].keys()
    assert sum(found["gate"][f"gate/{name}"] for name in names) == pytest.approx(1, abs=1e-5)
    assert {"heldout/ungated", "heldout/ungated_undebiased"} <= found["gate"].keys()
    counted = {r: sum(len(list(rated_pairs(row, r))) for row in heldout) for r in raters}
    assert found["gate"]["heldout/n"] == sum(counted.values())
    shown = {key.removeprefix("heldout/by_rater/") for key in found["gate"] if "/by_rater/" in key}
    assert shown == {rater for rater, count in counted.items() if count >= 20}
    second = [word.replace("smollm2-135m-instruct", "tiny") for word in commands("attributes")[1]]
    told = call([*second, "max_tokens=4", "--out", "best.jsonl"], D=data)
    assert f"{len(heldout)} groups written" in told
    best = read_groups(tmp_path / "best.jsonl").groups
    assert [len(group.answers) for group in best] == [1] * len(heldout)
    said = [verdict for group in best for verdict in group.verdicts]
    assert all(isinstance(verdict, Score) and verdict.values.keys() == {"reward"} for verdict in said)


def rated_pairs(row: Row, rater: str) -> Iterator[tuple[int, int]]:
    """Pairs of answers that a rater's ranks put in order."""
    ranks = {
        i: said["overall_rank"] for i, answer in enumerate(row["responses"])
        for said in answer["human"] if f"human:{said['annotator']}" == rater
    }  # fmt: skip
    yield from ((i, j) for i, j in combinations(ranks, 2) if ranks[i] != ranks[j])


def test_attributes_of_which_some_are_missing(
    shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]
) -> None:
    data, pairs = tmp_path / "rated.jsonl", tmp_path / "pairs.jsonl"
    rows = sliced(shared_data / "usr_topical_chat" / "train.jsonl.gz", data, count=25, most=1560)
    compared = sliced(shared_data / "ultrafeedback_pairs" / "train.jsonl.gz", pairs, count=40, most=600)
    train, heldout = part(data, rows, TRAIN), part(data, rows, HELDOUT)
    del train[0]["responses"][0]["scores"]["groundedness"], heldout[0]["responses"][1]["scores"]["overall"]
    write(data, rows)
    found = run("attributes", "gate.steps=5", D=data, P=pairs)
    assert found["reward"]["data/labels"] == 6 * 6 * len(train) - 1
    assert found["reward"]["heldout/labels"] == 6 * 6 * len(heldout) - 1
    assert found["reward"]["heldout/missing_labels"] == 1
    assert {"heldout/accuracy", "heldout/longer_wins"} <= found["reward"].keys()
    assert found["gate"]["data/labels"] == found["reward"]["data/labels"]
    assert found["gate"]["data/pairs"] == len(part(pairs, compared, TRAIN))
    assert found["gate"]["heldout/n"] == len(part(pairs, compared, HELDOUT))


# --- votes ------------------------------------------------------------------------------------------------------------


def overall_votes(row: Row) -> list[str]:
    """What people and judges said of the two answers as a whole: a, b, or n."""
    judges = [labels["quality_overall"] for labels in row["judge"].values() if labels.get("quality_overall")]
    return [*(vote for vote in row["human"]["quality_overall"]["votes"] if vote), *judges]


@pytest.mark.usefixtures("judge")
def test_votes(shared_data: Path, tmp_path: Path, run: Callable[..., dict[str, Metrics]]) -> None:
    data = tmp_path / "votes.jsonl"
    topics: dict[str, int] = {}

    def few_of_a_topic(row: Row) -> bool:
        topics[row["topic"]] = topics.get(row["topic"], 0) + 1
        return topics[row["topic"]] <= 2

    rows = sliced(shared_data / "webis_rag_utility" / "pairs_train.jsonl.gz", data, few_of_a_topic, count=80, most=900)
    found = run("votes", *FEW_WORDS, D=data)
    train = [(row, overall_votes(row)) for row in part(data, rows, "@0:0.5")]
    heldout = [(row, overall_votes(row)) for row in part(data, rows, "@0.75:1")]
    strict = sum(vote in "ab" for _, votes in train for vote in votes)
    assert strict > 4 * len(train)
    assert found["reward"]["data/pairs"] == found["preference"]["data/items"] == strict
    liked: list[str] = []
    for row, votes in train:  # most votes decide what is a demonstration; as many on both sides: both are
        lead = votes.count("a") - votes.count("b")
        liked += [row["response_a"]] * (lead >= 0) + [row["response_b"]] * (lead <= 0)
    assert found["sft"]["data/target_tokens"] == learned(liked)
    said = [(row["response_a"], row["response_b"])[:: 1 if vote == "a" else -1]
            for row, votes in heldout for vote in votes if vote in "ab"]  # fmt: skip
    assert found["reward"]["heldout/n"] == len(said)
    assert found["reward"]["heldout/longer_wins"] == pytest.approx(longer_wins(said))
    assert {"heldout/accuracy", "heldout/ece"} <= found["reward"].keys()
    raters = {f"human:{number}" for row in rows for number in row["annotators"]}
    raters |= {f"judge:{name}" for row in rows for name in row["judge"]}
    assert {v.rater for group in read_groups(data).groups for v in group.verdicts} == raters


def test_votes_with_rows_that_cannot_be_read_can_be_converted(shared_data: Path, tmp_path: Path) -> None:
    """Six rows have answers that are no text."""
    raw, data = shared_data / "pandalm_human" / "train.jsonl.gz", tmp_path / "votes.jsonl"
    told = call(["trimtab", "data", "convert", str(raw), str(data), "--skip-bad"])
    assert "711 rows written" in told
    assert told.count("left out") == 6
    votes = [len(group.verdicts) for group in read_groups(data).groups]
    assert sum(votes) == 3511
    assert max(votes) == 5  # three people and two judges
