"""Sources and row files: where a row stands, what is refused, and that nothing goes missing in silence."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import tracemalloc
from pathlib import Path

import pytest

from trimtab.errors import DataError
from trimtab.records.read import iter_groups, read_groups
from trimtab.records.rows import Place, Refused
from trimtab.records.sources import files, resolve
from trimtab.records.types import Answer, Group, Message

ROWS = [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(3)]


def lines(*rows: object) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def expected(stem: str, *numbers: int) -> tuple[Group, ...]:
    return tuple(
        Group(
            id=f"{stem}:{number}",
            prompt=(Message(role="user", content=f"question {i}"),),
            answers=(Answer(text=f"answer {i}"),),
        )
        for i, number in enumerate(numbers)
    )


# --- kinds of files ---------------------------------------------------------------------------------------------------


def test_jsonl_counts_blank_lines_and_bears_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", "\ufeff" + lines(ROWS[0], "", "  ", ROWS[1]) + json.dumps(ROWS[2]))
    reading = read_groups(path)
    assert reading.groups == expected("f", 1, 4, 5)
    assert [str(place) for place in reading.places] == [f"{path}, line {n}" for n in (1, 4, 5)]
    assert reading.format == "prompt_completion"
    assert reading.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reading.refused == ()


def test_line_separators_inside_a_text_do_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(json.dumps({"text": "a\u2028b\x85c"}, ensure_ascii=False).encode() + b"\r\n")
    assert read_groups(path).groups[0].answers[0].text == "a\u2028b\x85c"


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*ROWS).encode()))
    assert read_groups(path).groups == expected("f", 1, 2, 3)


def test_half_a_gzip_file_is_an_error_with_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress(lines(*ROWS).encode())[:-12])
    with pytest.raises(DataError, match=r"f\.jsonl\.gz: broken gzip file after line \d"):
        read_groups(path, on_bad="skip")
    path.write_text("no gzip")
    with pytest.raises(DataError, match=r"broken gzip file after line 0 \(Not a gzipped file"):
        read_groups(path)


def test_json_list_keeps_the_lines_its_items_begin_on(tmp_path: Path) -> None:
    reading = read_groups(write(tmp_path / "f.json", "\n" + json.dumps(ROWS, indent=1)))
    assert reading.groups == expected("f", 3, 7, 11)
    assert read_groups(write(tmp_path / "g.json", json.dumps(ROWS))).groups == expected("g", 1, 1, 1)


def test_json_file_of_one_object_a_line(tmp_path: Path) -> None:
    assert read_groups(write(tmp_path / "f.json", lines(*ROWS))).groups == expected("f", 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[{"text": "a"},\n {"text": }]', "f.json, line 2: not usable JSON: Expecting value"),
        ('[{"text": "a"}\n {"text": "b"}]', "f.json, line 1: expected ',' or ']' after this item of the list"),
        ('[{"text": "a"},', "f.json, line 1: not usable JSON: Expecting value"),
        ('[{"text": "a"}] 1', "f.json: there is more after the end of the list"),
        ('[{"text": NaN}]', "f.json, line 1: not usable JSON: NaN is not a JSON number"),
        ('[3]', "f.json, line 1: expected an object, found 3"),
        ('{"data":\n []}', "f.json, line 1: not JSON: Expecting value at column 9"),
    ],
)  # fmt: skip
def test_broken_json_lists(text: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.json", text)
    with pytest.raises(DataError) as caught:
        read_groups("f.json")
    assert str(caught.value) == sentence


def test_a_blank_line_ends_a_text_document(tmp_path: Path) -> None:
    path = write(tmp_path / "f.txt", "\n\nOne\ntwo \n\n \nThree\n")
    reading = read_groups(path)
    assert [(group.id, group.answers[0].text) for group in reading.groups] == [("f:3", "One\ntwo "), ("f:7", "Three")]
    assert reading.format == "text"


def test_text_that_is_not_utf8_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(b"One\n\n\xff\n\nTwo")
    reading = read_groups(path, on_bad="skip")
    assert [group.answers[0].text for group in reading.groups] == ["One", "Two"]
    assert [str(refused) for refused in reading.refused] == [f"{path}, line 3: not UTF-8 at byte 1 of the line"]
    (tmp_path / "f.jsonl").write_bytes(b'{"text": "One"}\n\xff\n')
    assert [refused.line for refused in read_groups(tmp_path / "f.jsonl", on_bad="skip").refused] == [2]
    (tmp_path / "f.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"f\.json, line 1: not UTF-8 at byte 1 of the line"):
        read_groups(tmp_path / "f.json", on_bad="skip")


def test_parquet_with_dates_and_decimals(tmp_path: Path) -> None:
    import datetime
    import decimal

    import pyarrow
    import pyarrow.parquet

    rows = [{**ROWS[0], "when": datetime.date(2026, 1, 2), "cost": decimal.Decimal("0.10"), "tags": ["a"]}, ROWS[1]]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "f.parquet")
    reading = read_groups(tmp_path / "f.parquet")
    assert reading.groups[0].meta == {"when": "2026-01-02", "cost": "0.10", "tags": ["a"]}
    assert reading.groups[1] == expected("f", 1, 2)[1]
    assert str(reading.places[1]) == f"{tmp_path / 'f.parquet'}, row 2"


def test_parquet_with_bytes_and_no_parquet_at_all(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "x", "b": b"x"}]), tmp_path / "f.parquet")
    with pytest.raises(
        DataError, match=r"f\.parquet, row 1: a column holds bytes values, which are no text, number, list"
    ):
        read_groups(tmp_path / "f.parquet")
    write(tmp_path / "g.parquet", "no parquet")
    with pytest.raises(DataError, match=r"g\.parquet: cannot be read as Parquet after row 0 \(.+\)"):
        read_groups(tmp_path / "g.parquet")


def test_memory_stays_flat_over_a_long_file(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.gz"
    text = "x" * 4000
    with gzip.open(path, "wt", compresslevel=1) as handle:
        for i in range(3000):
            handle.write(json.dumps({"text": f"{i} {text}"}) + "\n")
    tracemalloc.start()
    count = sum(1 for _ in iter_groups(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 3000
    assert peak < 1_000_000  # the texts alone are 12 MB


# --- refusals ---------------------------------------------------------------------------------------------------------

BAD = lines(
    ROWS[0],
    {"prompt": "x", "completion": 3},
    "{",
    "[1]",
    '{"prompt": "x", "prompt": "y"}',
    '{"prompt": "x", "completion": NaN}',
    "[" * 100_000,
    {"prompt": "x", "chosen": "a", "rejected": "b", "completion": "c"},
    {"prompt": "x"},
    ROWS[1],
)
SENTENCES = [
    "f.jsonl, line 2, field 'completion': expected text or a list of messages, found the number 3",
    "f.jsonl, line 3: not JSON: Expecting property name enclosed in double quotes at column 2",
    "f.jsonl, line 4: expected an object, found [1]",
    "f.jsonl, line 5: not usable JSON: the field 'prompt' stands there twice",
    "f.jsonl, line 6: not usable JSON: NaN is not a JSON number",
    "f.jsonl, line 7: not usable JSON: nested too deeply",
    "f.jsonl, line 8: looks like 'preference' (prompt, chosen, rejected), but the file began as 'prompt_completion'; "
    "name the format to insist on one",
    "f.jsonl, line 9, field 'completion': is missing (nor is there 'response' or 'output' or 'answer' or 'solution')",
]


def test_refused_rows_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.jsonl", BAD)
    reading = read_groups("f.jsonl", on_bad="skip")
    assert [str(refused) for refused in reading.refused] == SENTENCES
    assert [group.id for group in reading.groups] == ["f:1", "f:10"]
    assert reading.refused[0] == Refused(
        path="f.jsonl", line=2, field="completion", reason="expected text or a list of messages, found the number 3"
    )
    seen: list[Refused] = []
    assert tuple(iter_groups("f.jsonl", on_refused=seen.append)) == reading.groups
    assert tuple(seen) == reading.refused


def test_the_first_refused_row_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "f.jsonl", BAD)
    with pytest.raises(DataError) as caught:
        read_groups("f.jsonl")
    assert str(caught.value) == SENTENCES[0]
    found = iter_groups("f.jsonl")
    assert next(found).id == "f:1"
    with pytest.raises(DataError) as caught:
        next(found)
    assert str(caught.value) == SENTENCES[0]


def test_limit_stops_before_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", BAD)
    assert [group.id for group in read_groups(path, limit=1).groups] == ["f:1"]
    assert read_groups(path, limit=0).groups == ()


def test_a_named_format_is_insisted_on(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", lines(ROWS[0], {"prompt": "x", "chosen": "a", "rejected": "b"}))
    reading = read_groups(path, format="prompts")
    assert [group.answers for group in reading.groups] == [(), ()]
    assert reading.groups[1].meta == {"chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"^no format 'prompt'; did you mean 'prompts'\?$"):
        read_groups(path, format="prompt")


def test_detection_failure_names_the_fields_and_the_formats(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", lines({"b": 1, "a": 2}))
    with pytest.raises(
        DataError, match=r"line 1: no known format has the fields 'a', 'b'; known formats: group .*alpaca"
    ):
        read_groups(path)


def test_a_source_without_rows_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "f.jsonl", "\n")
    with pytest.raises(DataError, match=r"f\.jsonl: there are no rows in it$"):
        read_groups(path, on_bad="skip")


# --- sources ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    write(tmp_path / "d" / "b" / "z.jsonl", lines(ROWS[0]))
    write(tmp_path / "d" / "c.txt", "A text.")
    for about in ("README.md", "LICENSE", ".hidden.jsonl", "_cache/x.jsonl"):
        write(tmp_path / "d" / about, "about the data")
    reading = read_groups(tmp_path / "d")
    assert [group.id for group in reading.groups] == ["b/z:1", "c:1"]
    assert reading.format == "prompt_completion+text"
    sums = [(hashlib.sha256((tmp_path / "d" / name).read_bytes()).hexdigest(), name) for name in ("b/z.jsonl", "c.txt")]
    assert reading.digest == hashlib.sha256("".join(f"{s}  {n}\n" for s, n in sums).encode()).hexdigest()


def test_a_file_of_another_kind_in_a_folder_is_named(tmp_path: Path) -> None:
    write(tmp_path / "d" / "a.jsonl", lines(ROWS[0]))
    write(tmp_path / "d" / "b.csv", "x,y")
    reading = read_groups(tmp_path / "d", on_bad="skip")
    assert len(reading.groups) == 1
    assert str(reading.refused[0]).startswith(f"{tmp_path / 'd' / 'b.csv'}: not a data file; known endings: .jsonl, ")


def test_saved_data_sets_and_their_splits(tmp_path: Path) -> None:
    import datasets

    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(tmp_path / "two"))
    datasets.DatasetDict({"test": table}).save_to_disk(str(tmp_path / "single"))
    reading = read_groups(tmp_path / "one")
    assert reading.groups == expected("one", 1, 2, 3)
    assert str(reading.places[0]) == f"{tmp_path / 'one'}, row 1"
    assert len(reading.digest) == 64
    assert read_groups(f"{tmp_path / 'two'}:test").groups == expected("two", 1)
    assert len(read_groups(tmp_path / "single").groups) == 3
    with pytest.raises(DataError, match=r"two has the splits train, test: say which, as in .+two:train$"):
        read_groups(tmp_path / "two")
    with pytest.raises(DataError, match=r"two has no split 'tset'; did you mean 'test'\?$"):
        read_groups(f"{tmp_path / 'two'}:tset")
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"one: cannot be read as a saved data set \(.+\)$"):
        read_groups(tmp_path / "one")


def test_what_is_not_there_is_said_with_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", lines(*ROWS))
    with pytest.raises(DataError) as caught:
        read_groups(tmp_path / "trian.jsonl")
    assert str(caught.value) == f"no file or folder {str(tmp_path / 'trian.jsonl')!r}; did you mean 'train.jsonl'?"
    with pytest.raises(DataError, match=r"^no file or folder 'nowhere/at/all'$"):
        read_groups("nowhere/at/all")
    write(tmp_path / "f.csv", "x,y")
    with pytest.raises(DataError, match=r"f\.csv: cannot tell what kind of file this is; known endings: \.jsonl, "):
        read_groups(tmp_path / "f.csv")


def test_quickstart_sets_come_from_the_package_unless_a_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"^no quickstart data 'preferencs'"):
        resolve("quickstart/preferencs")
    write(tmp_path / "quickstart" / "mine" / "f.jsonl", lines(*ROWS))
    assert read_groups("quickstart/mine").groups == expected("f", 1, 2, 3)


def test_every_bundled_quickstart_set_loads() -> None:
    folder = Path(str(sys.modules["trimtab"].__file__)).parent / "data" / "quickstart"
    names = sorted(path.stem for path in folder.glob("*.jsonl"))
    if not names:
        pytest.skip("the quickstart sets are not written yet")
    for name in names:
        assert resolve(f"quickstart/{name}").path == folder / f"{name}.jsonl"
        assert read_groups(f"quickstart/{name}").groups


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_hub_id_and_its_split() -> None:
    found = resolve("owner/name:train[:10%]")
    assert (found.kind, found.name, found.split) == ("hub", "owner/name", "train[:10%]")
    assert resolve("owner/name").split is None
    assert files(found) == ()


def test_without_a_network_the_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"^'nobody/nothing' is no file or folder here, and no data set could be fetched"
    ):
        read_groups("nobody/nothing")


def test_without_the_package_the_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"^owner/name: a data set on the hub needs the package 'datasets' \("):
        read_groups("owner/name")
    write(tmp_path / "saved" / "state.json", "{}")
    with pytest.raises(DataError, match=r"saved: a saved data set needs the package 'datasets' \("):
        read_groups(tmp_path / "saved")


def test_a_hub_data_set_is_read_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load_dataset(name: str, split: str | None) -> datasets.Dataset:
        assert (name, split) == ("owner/name", "train")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    reading = read_groups("owner/name:train")
    assert reading.groups == expected("owner/name", 1, 2, 3)
    assert reading.places[0] == Place(path="owner/name:train", line=1, unit="row")
    canonical = "".join(json.dumps(row, sort_keys=True) + "\n" for row in ROWS)
    assert reading.digest == hashlib.sha256(canonical.encode()).hexdigest()


# --- what happens between and after -----------------------------------------------------------------------------------


def test_a_hub_row_that_json_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    table = datasets.Dataset.from_list([{"text": "x", "blob": b"\x00"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: table)
    reading = read_groups("owner/name", on_bad="skip")
    assert [str(refused).split(":")[0] for refused in reading.refused] == ["owner/name, row 1"]
    assert reading.digest == hashlib.sha256(b"").hexdigest()


def test_a_file_that_vanishes_while_its_folder_is_read(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", lines(ROWS[0]))
    gone = write(tmp_path / "b.jsonl", lines(ROWS[1]))
    found = iter_groups(tmp_path)
    assert next(found).id == "a:1"
    gone.unlink()
    with pytest.raises(DataError, match=r"b\.jsonl: cannot be read \(No such file or directory\)"):
        next(found)


def test_a_verdict_on_an_answer_that_is_not_there_names_the_line(tmp_path: Path) -> None:
    row = {"id": "g", "answers": [{"text": "a"}], "verdicts": [{"kind": "thumb", "answer": 1, "up": True}]}
    path = write(tmp_path / "f.jsonl", lines(row))
    with pytest.raises(DataError) as caught:
        read_groups(path)
    assert (
        str(caught.value)
        == f"{path}, line 1: group 'g': thumb names answer 1, but there are 1 answers (numbered from 0)"
    )


def test_text_that_ends_with_a_blank_line(tmp_path: Path) -> None:
    assert [group.id for group in read_groups(write(tmp_path / "f.txt", "One\n\n")).groups] == ["f:1"]
