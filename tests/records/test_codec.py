"""Our own format gives back what was written, and refuses what it does not know."""

# ruff: noqa: E501  (a refusal is one line)
from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import DataError
from trimtab.records.codec import decode_group, encode_group, write_groups
from trimtab.records.read import read_groups
from trimtab.records.types import ROLES, Answer, Edit, Group, Message, Pair, Ranking, Score, Thumb

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
NUMBER = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | NUMBER | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.builds(Message, role=st.sampled_from(ROLES), content=TEXT)
ANSWER = st.builds(
    Answer,
    text=TEXT,
    messages=st.lists(MESSAGE, max_size=3).map(tuple),
    model=st.none() | TEXT,
    finish=st.sampled_from([None, "stop", "length"]),
    logprob=st.none() | NUMBER,
)


def verdict(count: int) -> st.SearchStrategy:
    said = {
        "rater": st.none() | TEXT,
        "time": st.none() | TEXT,
        "seconds": st.none() | NUMBER,
        "reason": st.none() | TEXT,
    }
    index = st.integers(0, count - 1)
    two = st.permutations(range(count)).map(lambda order: order[:2])
    pair = two.flatmap(
        lambda both: st.builds(
            Pair,
            better=st.just(both[0]),
            worse=st.just(both[1]),
            strength=st.none() | NUMBER,
            probability=st.none() | st.floats(0, 1),
            tie=st.sampled_from([None, "tie", "both_good", "both_bad"]),
            **said,
        )
    )
    order = st.tuples(st.permutations(range(count)), st.integers(1, count)).map(
        lambda drawn: (tuple(drawn[0][: drawn[1]]), tuple(drawn[0][drawn[1] :]))
    )
    values = st.dictionaries(TEXT, NUMBER, max_size=3)
    return st.one_of(
        pair,
        st.builds(Ranking, order=order, **said),
        st.builds(Score, answer=index, values=values, **said),
        st.builds(Thumb, answer=index, up=st.booleans(), **said),
        st.builds(Edit, answer=index, text=TEXT, **said),
    )


@st.composite
def groups(draw: st.DrawFn) -> Group:
    answers = tuple(draw(st.lists(ANSWER, max_size=4)))
    verdicts = draw(st.lists(verdict(len(answers)), max_size=3)) if len(answers) > 1 else []
    prompt = tuple(draw(st.lists(MESSAGE, max_size=3)))
    meta = draw(st.dictionaries(TEXT, JSON, max_size=3))
    return Group(id=draw(TEXT), prompt=prompt, answers=answers, verdicts=tuple(verdicts), meta=meta)


@given(groups())
def test_decoding_undoes_encoding(group: Group) -> None:
    assert decode_group(json.loads(json.dumps(encode_group(group)))) == group


@settings(max_examples=25, deadline=None)
@given(st.lists(groups(), min_size=1, max_size=4), st.sampled_from([".jsonl", ".jsonl.gz", ".parquet"]))
def test_files_give_back_what_was_written(written: list[Group], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"groups{suffix}"
        assert write_groups(path, written) == len(written)
        assert read_groups(path, format="group").groups == tuple(written)
        assert [p.name for p in path.parent.iterdir()] == [path.name]  # no temporary file is left


GROUP = Group(
    id="g1",
    prompt=(Message(role="user", content="Hi"),),
    answers=(Answer(text="Hello", finish="stop"), Answer(text="Go away")),
    verdicts=(Pair(better=0, worse=1, rater="human:rater-07"),),
    meta={"topic": "greetings"},
)


def test_a_line_is_what_the_documentation_shows(tmp_path: Path) -> None:
    write_groups(tmp_path / "g.jsonl", [GROUP])
    assert json.loads((tmp_path / "g.jsonl").read_text()) == {
        "id": "g1",
        "prompt": [{"role": "user", "content": "Hi"}],
        "answers": [{"text": "Hello", "finish": "stop"}, {"text": "Go away"}],
        "verdicts": [{"kind": "pair", "better": 0, "worse": 1, "rater": "human:rater-07"}],
        "meta": {"topic": "greetings"},
    }


def test_the_same_groups_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz", "a.parquet", "b.parquet"):
        write_groups(tmp_path / name, [GROUP] * 3)
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == 3


def test_chinese_is_written_as_it_is(tmp_path: Path) -> None:
    write_groups(tmp_path / "g.jsonl", [Group(id="一")])
    assert (tmp_path / "g.jsonl").read_text(encoding="utf-8") == '{"id": "一", "answers": []}\n'


def test_parquet_loads_as_a_hugging_face_data_set(tmp_path: Path) -> None:
    import datasets

    scored = Group(id="s", answers=(Answer(text="a"),), verdicts=(Score(answer=0, values={"x": 0.5}),), meta={"k": [1]})
    write_groups(tmp_path / "g.parquet", [GROUP, scored])
    loaded = datasets.Dataset.from_parquet(str(tmp_path / "g.parquet"), cache_dir=str(tmp_path / "cache"))
    loaded.save_to_disk(str(tmp_path / "saved"))
    assert read_groups(tmp_path / "saved").groups == (GROUP, scored)


def test_a_group_that_fails_half_way_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    write_groups(path, [GROUP])
    before = path.read_bytes()
    bad = Group(id="bad", meta={"x": {"y": {1, 2}}})
    with pytest.raises(DataError, match=r"^group 'bad': meta\.x\.y: set values cannot be written as JSON$"):
        write_groups(path, [GROUP, GROUP, bad])
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["g.jsonl"]


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        (Group(id="g", meta={"x": float("nan")}), "cannot be written: Out of range float values"),
        (Group(id="g", answers=(Answer(text="a", logprob=float("-inf")),)), "cannot be written: Out of range float"),
        (Group(id="g", answers=(Answer(text="\ud800"),)), "cannot be written: 'utf-8' codec"),
        (Group(id="g", meta={"x": {1: 2}}), "meta.x: an object's keys must be text"),
        (Group(id="g", meta={"x": [b"bytes"]}), "meta.x[0]: bytes values cannot be written as JSON"),
    ],
)
def test_what_json_cannot_hold_is_refused(group: Group, reason: str, tmp_path: Path) -> None:
    for name in ("g.jsonl", "g.parquet"):
        with pytest.raises(DataError) as caught:
            write_groups(tmp_path / name, [group])
        assert reason in str(caught.value)


def test_where_it_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere/g\.jsonl: cannot be written \(No such file or directory\)"):
        write_groups(tmp_path / "nowhere" / "g.jsonl", [GROUP])
    with pytest.raises(DataError, match=r"g\.csv: cannot tell what kind of file to write; known endings: \.jsonl, "):
        write_groups(tmp_path / "g.csv", [GROUP])


TWO = {"id": "g", "answers": [{"text": "a"}, {"text": "b"}]}


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"answers": []}, "field 'id': is missing"),
        ({"id": None, "answers": []}, "field 'id': is null"),
        ({"id": 3, "answers": []}, "field 'id': expected text, found the number 3"),
        ({**TWO, "verdict": []}, "field 'verdict': is not known here; did you mean 'verdicts'?"),
        ({"id": "g", "prompt": "Hi"}, "field 'prompt': expected a list, found text"),
        ({"id": "g", "prompt": [{"role": "usr", "content": "x"}]}, "field 'prompt[0].role': no role 'usr'; did you mean 'user'?"),
        ({"id": "g", "prompt": [{"role": "user"}]}, "field 'prompt[0].content': is missing"),
        ({"id": "g", "answers": [{"txt": "a"}]}, "field 'answers[0].txt': is not known here; did you mean 'text'?"),
        ({"id": "g", "answers": ["a"]}, "field 'answers[0]': expected an object, found text"),
        ({"id": "g", "answers": [{"text": "a", "finish": "eos"}]}, "field 'answers[0].finish': 'eos' is not one of stop, length"),
        ({"id": "g", "answers": [{"text": "a", "logprob": True}]}, "field 'answers[0].logprob': expected a number, found true"),
        ({**TWO, "verdicts": [{"kind": "pairs", "better": 0, "worse": 1}]}, "field 'verdicts[0].kind': no verdict 'pairs'; did you mean 'pair'?"),
        ({**TWO, "verdicts": [{"better": 0, "worse": 1}]}, "field 'verdicts[0].kind': is missing"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0}]}, "field 'verdicts[0].worse': is missing"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0, "worse": 0}]}, "field 'verdicts[0]': a pair of answer 0 with itself"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0.0, "worse": 1}]}, "field 'verdicts[0].better': expected an answer's number, found the number 0.0"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0, "worse": 1, "probability": 1.5}]}, "field 'verdicts[0].probability': expected a probability from 0 to 1, found 1.5"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0, "worse": 1, "tie": "draw"}]}, "field 'verdicts[0].tie': 'draw' is not one of tie, both_good, both_bad"),
        ({**TWO, "verdicts": [{"kind": "pair", "better": 0, "worse": 2}]}, "group 'g': pair names answer 2, but there are 2 answers (numbered from 0)"),
        ({**TWO, "verdicts": [{"kind": "ranking", "order": [[0], [0, 1]]}]}, "field 'verdicts[0].order': ranks an answer twice"),
        ({**TWO, "verdicts": [{"kind": "thumb", "answer": 0, "up": 1}]}, "field 'verdicts[0].up': expected true or false, found the number 1"),
        ({**TWO, "verdicts": [{"kind": "score", "answer": 0, "values": {"x": "7"}}]}, "field 'verdicts[0].values.x': expected a number, found text"),
        ({**TWO, "verdicts": [{"kind": "score", "answer": 0, "values": [{"value": 1}]}]}, "field 'verdicts[0].values[0].attribute': is missing"),
        ({**TWO, "meta": "{"}, "field 'meta': not JSON: Expecting property name enclosed in double quotes at column 2"),
        ({**TWO, "meta": [1]}, "field 'meta': expected an object, found a list"),
    ],
)  # fmt: skip
def test_refusals_name_the_field_and_what_was_meant(row: dict, sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        decode_group(row)
    assert str(caught.value) == sentence


def test_null_means_absent() -> None:
    row = {
        "id": None,
        "prompt": None,
        "answers": [{"text": "a", "model": None}],
        "verdicts": None,
        "meta": None,
        "x": None,
    }
    assert decode_group(row, default_id="f:1") == Group(id="f:1", answers=(Answer(text="a"),))


def test_integers_are_good_floats() -> None:
    row = {**TWO, "verdicts": [{"kind": "pair", "better": 1, "worse": 0, "strength": 3}]}
    strength = decode_group(row).verdicts[0].strength
    assert strength == 3.0
    assert isinstance(strength, float)
