"""Documentation is tested: links lead somewhere, commands exist, recipes check, decisions are told in full."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from trimtab.cli import app
from trimtab.config import check_recipe, find_recipe, load_recipe, read_yaml
from trimtab.errors import ConfigError
from trimtab.registry import PREFERENCE_LOSSES, REWARD_LOSSES

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md",
                 *sorted((ROOT / "docs").rglob("*.md"))]
    if page.is_file()
]  # fmt: skip
DECISIONS = sorted((ROOT / "docs" / "adr").glob("*.md"))

FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```\s*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\((?P<target>[^)\s]+)(?:\s+\"[^\"]*\")?\)")
# Somebody's home or working folder. Characters in brackets keep the pattern from finding itself.
MACHINE = re.compile(
    r"(?<![\w.~$}-])/(?:home/[a-z]|Users/[A-Za-z]|roo[t]/|wor[k]/|worksp[a]ce/|mn[t]/|tm[p]/w/)|\b[A-Z]:\\Users"
)

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
every_decision = pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page: (language, text)."""
    return ((found["language"], found["text"]) for found in FENCE.finditer(text))


def dead_links(page: Path, text: str) -> list[str]:
    """Relative links of a page that point at nothing; what stands in code is not a link."""
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    targets = [found["target"].split("#")[0] for found in LINK.finditer(prose)]
    return [t for t in targets if t and not re.match(r"[a-z]+:", t) and not (page.parent / t).exists()]


def commands(text: str) -> Iterator[list[str]]:
    """The words of every ``trimtab`` command in a page's code blocks; a line ending in a backslash goes on."""
    for _, block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"^\s*(?:\$ )?(?:\.venv/bin/)?trimtab(?= |$)(?P<rest>.*)", line)
            if found:
                yield shlex.split(found["rest"], comments=True)


def check_command(words: list[str]) -> str | None:
    """What is wrong with a command, if anything: its subcommand, an option, the recipe, a setting."""
    command = typer.main.get_command(app)
    if words and words[0].startswith("--"):
        return None if words[0] in {"--help", "--version"} else f"no option {words[0]}"
    for depth, word in enumerate(words):
        inner = getattr(command, "commands", None)
        if inner is None:
            rest = words[depth:]
            break
        if word not in inner:
            return f"no command {' '.join(words[: depth + 1])!r}"
        command = inner[word]
    else:
        rest = []
    options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in rest:
        if word.startswith("--") and word.split("=")[0] not in options:
            return f"{' '.join(words)}: no option {word}"
    if words[:1] == ["run"] and rest:
        try:
            load_recipe(ROOT / rest[0] if (ROOT / rest[0]).is_file() else find_recipe(rest[0]), rest[1:])
        except ConfigError as error:
            return str(error)
    return None


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


@every_page
def test_commands_are_known(page: Path) -> None:
    wrong = [check_command(words) for words in commands(page.read_text(encoding="utf-8"))]
    assert [said for said in wrong if said] == []


@every_page
def test_recipes_in_pages_check(page: Path) -> None:
    for language, text in blocks(page.read_text(encoding="utf-8")):
        if language == "yaml":
            raw = read_yaml(text, str(page))
            if isinstance(raw, dict) and "stages" in raw:
                check_recipe(raw, str(page))


@every_page
def test_make_targets_in_pages_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for _, text in blocks(page.read_text(encoding="utf-8")):
        for line in text.splitlines():
            found = re.match(r"^\s*(?:\$ )?make(?P<rest>( [a-z]+)*)\s*(#|$)", line)
            if found:
                assert set(found["rest"].split()) <= targets, line


@pytest.mark.parametrize(
    ("words", "good"),
    [
        ("run quickstart seed=1 policy.steps=20", True),
        ("data inspect my.jsonl --window 1024", True),
        ("--version", True),
        ("", True),
        ("fly quickstart", False),
        ("data dance my.jsonl", False),
        ("generate runs/x/policy --promt hello", False),
        ("run quickstrat", False),
        ("run quickstart policy.stepps=20", False),
    ],
)
def test_the_checker_of_commands(words: str, good: bool) -> None:
    assert (check_command(words.split()) is None) is good


def test_the_checker_of_pages() -> None:
    text = "\n".join(
        (
            "[here](test_docs.py) [there](https://example.org/x) [down](#below) ![gone](no/such.png) `[code](nothing)`",
            "```sh",
            "$ trimtab run quickstart \\",
            "    seed=1  # again",
            "trimtab list [not](a link)",
            "trimtabs are flaps",
            "```",
        )
    )
    assert dead_links(Path(__file__), text) == ["no/such.png"]
    assert list(commands(text)) == [["run", "quickstart", "seed=1"], ["list", "[not](a", "link)"]]


def test_there_are_pages_and_decisions() -> None:
    assert {"README.md", "CONTRIBUTING.md", "architecture.md"} <= {page.name for page in PAGES}
    numbers = [page.name[:5] for page in DECISIONS]
    assert numbers == [f"{n:04}-" for n in range(1, len(DECISIONS) + 1)]
    assert len(numbers) >= 8


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md") if page.name != "README.md"]
    assert [str(page) for page in pages if f"({page.as_posix()})" not in index] == []


@every_decision
def test_a_decision_is_told_in_full(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Choice", "Rejected", "Price"]
    assert re.match(rf"# {int(page.name[:4])}\. \S", text)
    assert 20 <= len(text.splitlines()) <= 40


def test_no_file_names_a_developers_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of the project's own files")
    found: list[str] = []
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        data = path.read_bytes() if path.is_file() else b""
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8").splitlines(), 1):
            if MACHINE.search(line):
                found.append(f"{name}:{number}")
    assert found == []


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("see " + "/ho" + "me/ann/x", True),
        ("'/Us" + "ers/Ann/x'", True),
        ("cd /roo" + "t/x", True),
        ("https://example.org/home/ann", False),
        ("$HOME/.cache, ~/work/x, runs/work/x, /usr/bin/env", False),
    ],
)
def test_the_checker_of_machine_paths(line: str, named: bool) -> None:
    assert bool(MACHINE.search(line)) is named


def test_the_readme_lists_every_loss_with_its_file_paper_and_oracle() -> None:
    """What `trimtab list losses` says from the registry, the README says in short."""
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|")]
    for entry in [*PREFERENCE_LOSSES.values(), *REWARD_LOSSES.values()]:
        assert entry.path is not None
        found = [row for row in rows if f"[{entry.name}]({entry.path.relative_to(ROOT)})" in row]
        assert len(found) == 1, f"{entry.name} stands in {len(found)} rows"
        _, _, paper, confirmed, _ = found[0].split("|")
        ours = set(re.findall(r"\d{4}\.\d{5}", entry.paper)) or {entry.paper.split()[0]}
        assert any(told in paper for told in ours), f"{entry.name}: {paper} against {entry.paper}"
        assert ("TRL" in confirmed) == ("TRL" in entry.confirmed), entry.name
