from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import ATTACK, write_run

from trimtab.report.page import best_answers, duration, samples, visible
from trimtab.report.read import ModelAnswer, PromptRow
from trimtab.report.summary import write_report

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Tree(HTMLParser):
    """Checks nesting and keeps what the tests ask for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> is out of place"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("page") / "run", prompts=120, steps=35)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tree(page: str) -> Tree:
    return Tree(page)


def test_the_page_is_well_formed(page: str, tree: Tree) -> None:
    assert page.startswith("<!doctype html>\n<html lang=")
    counts = Counter(attrs["id"] for _, attrs in tree.tags if "id" in attrs)
    assert [name for name, n in counts.items() if n > 1] == []


def test_the_page_asks_nothing_of_anybody(page: str, tree: Tree) -> None:
    for tag, attrs in tree.tags:
        assert tag not in {"script", "iframe", "object", "embed", "link", "base", "form", "img", "foreignobject"}
        for name, value in attrs.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "action", "data", "xlink:href"):
                assert (value or "").startswith("#"), f"<{tag} {name}={value!r}>"
    assert not re.search(r"@import|url\((?!#)", page)
    assert "http://" not in page
    assert "https://" not in page
    policy = next(m["content"] for m in tree.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert (policy or "").startswith("default-src 'none'")


def test_a_models_markup_is_text(page: str, tree: Tree) -> None:
    assert "&lt;script&gt;alert(" in page
    assert "<script>alert('owned')</script><img src=x onerror=alert(1)>" in tree.text
    assert "\u202e" not in page
    assert "\x07" not in page
    assert (
        visible(ATTACK) == "<script>alert('owned')</script><img src=x onerror=alert(1)> \ufffd \ufffdevil </textarea>"
    )


def test_every_text_of_a_run_is_escaped(tmp_path: Path) -> None:
    """Names, notes, topics, limits, hardware: put an attack wherever a string may stand."""
    folder = write_run(tmp_path, stages=("sft", "evaluate"), prompts=4, steps=4)
    bad = "</style></pre></code><script>x</script>\"' onload=x {{ 7 * 7 }} {% raw %}"
    for path in (folder / "run.json", folder / "evaluate" / "evaluation.json", folder / "sft" / "manifest.json"):
        raw = json.loads(path.read_text())
        path.write_text(json.dumps(_poison(raw, bad)))
    page = write_report(folder).read_text(encoding="utf-8")
    tree = Tree(page)
    assert {tag for tag, _ in tree.tags}.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attrs in tree.tags for name in attrs)
    assert "{{ 7 * 7 }}" in tree.text


def _poison(value: object, bad: str) -> object:
    """Append the attack to every string that does not steer how the run is read."""
    steering = {"stage", "folder", "finish", "models", "a", "b"}
    if isinstance(value, dict):
        kept = {k: v if k in steering else _poison(v, bad) for k, v in value.items()}
        if "skipped" in kept:
            kept["name"] = value["name"]
        return kept
    if isinstance(value, list):
        return [_poison(item, bad) for item in value]
    return value + bad if isinstance(value, str) else value


def test_the_figures_and_their_words(page: str, tree: Tree) -> None:
    charts = tree.all("svg")
    assert len(charts) == 2 + 4 + 5 + 15  # win rates, lengths; SFT, reward and policy panels
    assert all(chart["role"] == "img" and len(chart["aria-label"] or "") > 20 for chart in charts)
    assert page.count("<figure") == page.count("<figcaption") == len(charts)
    assert "budget" in tree.text


def test_the_verdicts_are_the_files(folder: Path, tree: Tree) -> None:
    stored = json.loads((folder / "evaluate" / "evaluation.json").read_text())
    for match in stored["head_to_head"]:
        assert f"{100 * match['win_rate']:.1f}%" in tree.text
        assert f"{100 * match['lo']:.1f}% to {100 * match['hi']:.1f}%" in tree.text
        assert f"{100 * match['always_valid_lo']:.1f}% to {100 * match['always_valid_hi']:.1f}%" in tree.text
        matched = match["length_matched"]
        assert f"{100 * matched['lo']:.1f}% to {100 * matched['hi']:.1f}%, {matched['n']} prompts" in tree.text
    scores = stored["judge"]["scores"]
    won = sum(a > b for a, b in zip(scores["policy"], scores["sft"], strict=True))
    tied = sum(a == b for a, b in zip(scores["policy"], scores["sft"], strict=True))
    assert f"{won} / {tied} / {120 - won - tied}" in tree.text


def test_the_page_says_what_it_cannot_show(tree: Tree) -> None:
    for words in (
        "The judge is a model, not people",
        "it cannot check facts",
        "what feedback added is the comparison with sft",
        "“The longer answer is better”",
        "61.0%",
        "“The answer that was not cut off is better”",
        "3 rows were too long and left out",
        "smollm2-135m-instruct",
        "b214224",
        "15 min 40 s",
    ):
        assert words in tree.text


def test_a_reader_without_eyes_or_mouse(tree: Tree) -> None:
    levels = [int(tag[1]) for tag, _ in tree.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels)), "a level was skipped"
    ids = {attrs["id"] for _, attrs in tree.tags if "id" in attrs}
    for _, attrs in tree.tags:
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        if (attrs.get("href") or "").startswith("#"):
            assert (attrs["href"] or "")[1:] in ids
        if attrs.get("class") == "scroll":
            assert attrs.get("tabindex") == "0", "a part that scrolls is reached with the keyboard"
    assert len(tree.all("caption")) == len(tree.all("table"))
    assert all(attrs.get("scope") in ("row", "col") for attrs in tree.all("th"))
    assert tree.all("a")[0]["class"] == "skip"
    assert len(tree.all("main")) == len(tree.all("nav")) == 1


def test_the_same_run_gives_the_same_page(folder: Path, page: str) -> None:
    assert write_report(folder).read_text(encoding="utf-8") == page


def test_samples_are_at_a_fixed_stride_and_the_rest_is_folded(page: str, tree: Tree) -> None:
    numbers = [int(n) for n in re.findall(r'id="prompt-(\d+)"', page)]
    assert numbers[:10] == [1 + 11 * i for i in range(10)]  # 11 is the largest prime up to 120 / 10
    assert len(numbers) == len(set(numbers)) == 50
    assert "40 more prompts" in tree.text
    assert "The other 70 are in evaluation.json" in tree.text


def row(i: int, **scores: float) -> PromptRow:
    answers = {model: ModelAnswer(text="x", score=score) for model, score in scores.items()}
    return PromptRow(id=str(i), prompt="p", answers=answers)


@given(st.integers(0, 400))
def test_no_prompt_is_shown_twice(n: int) -> None:
    first, more = samples([row(i) for i in range(n)])
    numbers = [number for number, _ in first + more]
    assert len(set(numbers)) == len(numbers) == min(n, len(first) + 40)
    assert len(first) == min(n, 10)
    assert all(int(prompt.id) == number - 1 for number, prompt in first + more)


def test_judges_choice() -> None:
    assert best_answers(row(0, a=1.0, b=2.0, c=2.0)) == {"b", "c"}
    assert best_answers(row(0, a=1.0, b=1.0)) == frozenset()
    assert best_answers(row(0, a=1.0, b=float("nan"))) == frozenset()


def test_a_long_answer_is_folded_not_cut(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("evaluate",), prompts=2)
    path = folder / "evaluate" / "evaluation.json"
    raw = json.loads(path.read_text())
    raw["prompts"][1]["answers"]["sft"]["text"] = "word " * 1000 + "the end"
    raw["prompts"][1]["answers"]["base"]["text"] = "  "
    path.write_text(json.dumps(raw))
    text = Tree(write_report(folder).read_text(encoding="utf-8")).text
    assert "4,107 more characters" in text
    assert "the end" in text
    assert "(nothing)" in text


@given(st.text(st.characters(codec=None), max_size=40))
def test_visible_text_can_be_written_and_says_the_same(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert visible(shown) == shown
    kept = [c for c in shown if c != "\ufffd"]
    assert all(c in text or c == "\n" for c in kept)


def test_visible_keeps_other_scripts() -> None:
    assert visible("naïve 日本語 العربية 🙂\tx\r\ny") == "naïve 日本語 العربية 🙂\tx\ny"


def test_lone_surrogates_do_not_stop_the_page(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("evaluate",), prompts=1)
    path = folder / "evaluate" / "evaluation.json"
    path.write_text(path.read_text().replace("</textarea>", "\\ud83d cut in two"))
    assert "\ufffd cut in two" in write_report(folder).read_text(encoding="utf-8")


def test_duration() -> None:
    given_seconds = (0.04, 3.21, 42.4, 59.7, 200, 7505)
    assert [duration(s) for s in given_seconds] == [
        "0.0 s", "3.2 s", "42 s", "1 min 00 s", "3 min 20 s", "2 h 05 min",
    ]  # fmt: skip


def test_a_stage_type_without_panels_shows_what_it_logged(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("sft",), steps=4)
    for path, stage in ((folder / "run.json", None), (folder / "sft" / "manifest.json", "stage")):
        raw = json.loads(path.read_text())
        if stage:
            raw["stage"] = "newcomer"
        else:
            raw["stages"][0]["stage"] = "newcomer"
        path.write_text(json.dumps(raw))
    tree = Tree(write_report(folder).read_text(encoding="utf-8"))
    titles = [attrs["aria-label"] for attrs in tree.all("svg")]
    assert len(titles) == 5  # loss, accuracy, learning rate, gradient norm, tokens; not the seconds
    assert any((title or "").startswith("train/tokens over steps") for title in titles)


def test_an_evaluation_that_measured_little(tmp_path: Path) -> None:
    folder = write_run(tmp_path, stages=("evaluate",), prompts=3)
    path = folder / "evaluate" / "evaluation.json"
    raw = json.loads(path.read_text())
    bare = {key: raw[key] for key in ("models", "prompts", "head_to_head")}
    for match in bare["head_to_head"]:
        match["length_matched"] = match["always_valid_lo"] = None
    path.write_text(json.dumps(bare))
    tree = Tree(write_report(folder).read_text(encoding="utf-8"))
    assert "was not tested on pairs" in tree.text
    assert "none such" in tree.text
    assert not re.search(r"\b(nan|unknown|None)\b", tree.text)
    assert "– (–)" in tree.text
    assert json.loads((folder / "summary.json").read_text())["answers/sft/ended"] is None
