from __future__ import annotations

import re
from math import nan
from xml.etree import ElementTree

import matplotlib
import pytest

from trimtab.report.charts import SERIES, VARIABLES, Series, curves, histograms, win_rates
from trimtab.report.read import HeadToHead, Interval

LINE = Series(name="KL <b>&$x$", steps=[1, 2, 3], values=[0.5, nan, 2.25])
OTHER = Series(name="other", steps=[1, 2, 3], values=[1, 1, 1], colour=2)
MATCH = HeadToHead(
    a="policy",
    b="sft",
    rate=Interval(mean=0.61, lo=0.54, hi=0.67, n=200),
    length_matched=Interval(mean=0.48, lo=0.35, hi=0.6, n=60),
)


def all_charts() -> list[str]:
    return [
        curves(
            [LINE, Series(name="other", steps=[1, 2, 3], values=[1, 1, 1], colour=2)], name="c-1", what="KL", mark=1.0
        ),
        curves([Series(name="flat", steps=range(40), values=[0.05] * 40)], name="c-2", what="Beta"),
        win_rates([MATCH], name="win"),
        histograms({"base": [1, 5, 9], "sft": [2.0, nan, 3.0]}, name="h", what="Length", unit="tokens"),
    ]


@pytest.mark.parametrize("which", range(4))
def test_a_chart_is_plain_inline_svg(which: int) -> None:
    svg = all_charts()[which]
    root = ElementTree.fromstring(svg)  # well-formed, and with no prefix that would need a namespace
    assert root.tag == "svg"
    assert root.get("role") == "img"
    assert root.get("aria-label")
    assert root.get("width") is None, "the page sets the size"
    assert not re.search(r"https?:|xmlns|<metadata|<style|<script|<!|font-family", svg)
    assert not any(colour in svg for colour in VARIABLES), "a stand-in colour was left"
    assert "var(--" in svg


@pytest.mark.parametrize("which", range(4))
def test_references_meet_ids_of_the_same_chart(which: int) -> None:
    svg = all_charts()[which]
    ids = re.findall(r' id="([^"]*)"', svg)
    used = set(re.findall(r'url\(#([^)"]+)\)|href="#([^"]+)"', svg))
    assert len(ids) == len(set(ids))
    assert {a or b for a, b in used} == set(ids)
    prefix = ("c-1-", "c-2-", "win-", "h-")[which]
    assert all(one.startswith(prefix) for one in ids)


def test_the_same_numbers_give_the_same_bytes() -> None:
    assert all_charts() == all_charts()


def test_the_users_matplotlib_settings_change_nothing() -> None:
    before = all_charts()
    with matplotlib.rc_context(
        {"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "lines.linewidth": 9}
    ):
        assert all_charts() == before
        assert matplotlib.rcParams["font.size"] == 30, "the settings are the user's again"


def test_names_are_text_not_markup_nor_mathematics() -> None:
    svg = curves([LINE, Series(name="b", steps=[1], values=[1.0])], name="x", what="A & B")
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert "KL <b>&$x$" in texts


def test_descriptions_say_the_numbers() -> None:
    label = ElementTree.fromstring(curves([LINE], name="x", what="KL", unit="nats")).get("aria-label")
    assert label == "KL (nats) over steps: KL <b>&$x$ from 0.5 to 2.25, between 0.5 and 2.25."
    label = ElementTree.fromstring(win_rates([MATCH], name="x")).get("aria-label")
    assert label == (
        "Win rates. policy over sft: 61%, 95% interval 54% to 67%, 200 prompts; "
        "policy over sft, answers of equal length: 48%, 95% interval 35% to 60%, 60 prompts."
    )
    label = ElementTree.fromstring(histograms({"m": [1, 2, 4]}, name="x", what="Length", unit="t")).get("aria-label")
    assert label == "Length (t). m: median 2, nine in ten up to 3.6."


def test_nothing_to_draw() -> None:
    assert curves([], name="x", what="KL") == ""
    assert curves([Series(name="a", steps=[1, 2], values=[nan, nan])], name="x", what="KL") == ""
    assert win_rates([], name="x") == ""
    assert histograms({"a": [nan], "b": []}, name="x", what="", unit="") == ""


def test_a_bar_ends_where_its_win_rate_is() -> None:
    """The bar reaches from one half to 0.61 on an axis from 0 to 1, measured between the ticks' numbers."""
    root = ElementTree.fromstring(win_rates([MATCH], name="x"))
    ticks = {e.text: float(e.get("x", "nan")) for e in root.iter("text") if e.get("x")}
    zero, one = ticks["0%"], ticks["100%"]
    bars = [
        e.get("d", "") for e in root.iter("path") if "var(--series-1, #5b6472); opacity: 0.3" in (e.get("style") or "")
    ]
    xs = sorted({float(x) for x in re.findall(r"[ML] ([\d.]+) ", bars[0])})
    assert (xs[0] - zero) / (one - zero) == pytest.approx(0.5, abs=1e-3)
    assert (xs[1] - zero) / (one - zero) == pytest.approx(0.61, abs=1e-3)


def test_the_palette_is_the_pages() -> None:
    assert [VARIABLES[colour][:14] for colour in SERIES] == [f"var(--series-{i}" for i in range(5)]
