"""The folder is the registry: what is in it, what is not, and a method that somebody drops in."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab.registry import ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES, STAGES, Entry, Folder

FOLDERS = (STAGES, ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES)

DOCUMENTED = '''
def documented():
    """Do it.

        x = Source: not this one

    Source: Somebody 2026 (arXiv:2601.00001), eq. 1;
    somebody else
    Confirmed by: hand-worked numbers,
    a slow loop

    Afterwards.
    """
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    package = tmp_path / "dropped_in"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "foo.py").write_text(
        'def foo(x, *, beta: float = 0.1, label):\n    """Do it.\n\n    At length.\n    """\n    return x\n'
    )
    (package / "bar.py").write_text("def bar(x):\n    return x\n")
    (package / "_helper.py").write_text("raise RuntimeError('never imported')\n")
    (package / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield Folder("dropped_in", "gadget")
    for name in [name for name in sys.modules if name.startswith("dropped_in")]:
        del sys.modules[name]


def write(folder: Path, **files: str) -> None:
    """Write Python files, by name, into a folder."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def test_a_file_is_a_method(folder: Folder) -> None:
    assert list(folder) == ["bar", "empty", "foo"]
    assert len(folder) == 3
    assert "foo" in folder
    assert "_helper" not in folder
    assert 3 not in folder
    entry = folder["foo"]
    assert (entry.name, entry.summary) == ("foo", "Do it.")
    assert entry.function(5, label=1) == 5
    assert list(entry.options) == ["beta", "label"]
    assert entry.options["beta"].default == 0.1
    assert entry.options["label"].default is inspect.Parameter.empty


def test_without_a_docstring_or_options(folder: Folder) -> None:
    bar = folder["bar"]
    assert (bar.summary, bar.paper, bar.confirmed, dict(bar.options)) == ("", "", "", {})
    assert (folder["foo"].paper, folder["foo"].confirmed) == ("", "")


def test_an_entry_knows_its_file_its_paper_and_what_confirmed_it(folder: Folder, tmp_path: Path) -> None:
    assert folder["foo"].path == tmp_path / "dropped_in" / "foo.py"
    own = tmp_path / "own"
    write(own, documented=DOCUMENTED)
    folder.add(own)
    entry = folder["documented"]
    assert entry.path == own / "documented.py"
    assert entry.paper == "Somebody 2026 (arXiv:2601.00001), eq. 1; somebody else"
    assert entry.confirmed == "hand-worked numbers, a slow loop"
    assert PREFERENCE_LOSSES["dpo"].paper == "Rafailov et al. 2023 (arXiv:2305.18290), eq. 7"
    assert PREFERENCE_LOSSES["dpo"].confirmed.startswith("TRL 1.16")
    assert POLICY_LOSSES["ppo"].confirmed.startswith("TRL 1.16")


def test_what_is_not_there(folder: Folder) -> None:
    with pytest.raises(ConfigError, match=r"^no gadget 'fooo'; did you mean 'foo'\?$"):
        folder["fooo"]
    with pytest.raises(ConfigError, match=r"^no gadget 'zzzz'; known: bar, empty, foo$"):
        folder["zzzz"]
    with pytest.raises(ConfigError, match=r"empty\.py: the gadget 'empty' needs a function of that name$"):
        folder["empty"]


def test_our_own_folders_hold_documented_functions() -> None:
    found = [entry for folder in FOLDERS for entry in folder.values()]
    assert {"sft", "reward", "policy", "evaluate", "gae", "ppo"} <= {entry.name for entry in found}
    for entry in found:
        assert isinstance(entry, Entry)
        assert entry.summary.endswith((".", ":")), entry.name
        assert entry.function.__module__.endswith(f".{entry.name}")


def test_a_users_own_folder(folder: Folder, tmp_path: Path) -> None:
    """Its files stand beside the built-in ones; helpers and editors' files are no methods; nothing is left behind."""
    own = tmp_path / "own"
    write(own, mine="def mine(x, *, tau: float = 2.0):\n    return x * tau\n", _helper="raise RuntimeError\n")
    write(own, **{".mine": "raise RuntimeError\n"})
    (own / "notes.txt").write_text("not Python")
    path, modules = list(sys.path), set(sys.modules)
    assert folder.add(own) == ("mine",)
    assert sys.path == path
    assert not (own / "__pycache__").exists()
    assert list(folder) == ["bar", "empty", "foo", "mine"]
    assert len(folder) == 4
    assert "mine" in folder
    assert folder["mine"].function(3) == 6.0
    assert list(folder["mine"].options) == ["tau"]
    assert folder["foo"].function(5, label=1) == 5
    (new,) = (name for name in set(sys.modules) - modules if name.startswith("trimtab_added_"))
    assert new.endswith("_mine")
    folder.clear_added()
    assert list(folder) == ["bar", "empty", "foo"]
    with pytest.raises(ConfigError, match="no gadget 'mine'"):
        folder["mine"]


def test_a_relative_path_is_resolved(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "own", mine="def mine():\n    return 1\n")
    monkeypatch.chdir(tmp_path)
    folder.add(Path("own"))
    assert folder["mine"].path == tmp_path / "own" / "mine.py"


def test_two_folders_may_use_the_same_helper_names_and_dataclasses(folder: Folder, tmp_path: Path) -> None:
    """A dataclass with annotations as text looks its module up by name: the name must be there, and its own."""
    body = (
        "from __future__ import annotations\nimport dataclasses\n\n@dataclasses.dataclass\nclass Terms:\n    x: {0}\n\n"
        "def {1}(x):\n    return Terms(x)\n"
    )
    write(tmp_path / "one", first=body.format("int", "first"))
    write(tmp_path / "two", second=body.format("float", "second"))
    folder.add(tmp_path / "one")
    folder.add(tmp_path / "two")
    assert list(folder) == ["bar", "empty", "first", "foo", "second"]
    first, second = folder["first"].function(1), folder["second"].function(1)
    assert type(first) is not type(second)
    assert type(first).__module__ != type(second).__module__


def test_a_folder_added_again_is_read_anew(folder: Folder, tmp_path: Path) -> None:
    own = tmp_path / "own"
    write(own, mine="def mine():\n    return 1\n", gone="def gone():\n    return 1\n")
    folder.add(own)
    write(own, mine="def mine():\n    return 2\n")
    (own / "gone.py").unlink()
    assert folder.add(own / ".." / "own") == ("mine",)
    assert folder["mine"].function() == 2
    assert "gone" not in folder


def test_a_folder_that_is_not_there(folder: Folder, tmp_path: Path) -> None:
    (tmp_path / "file.py").write_text("")
    for path in (tmp_path / "nowhere", tmp_path / "file.py"):
        with pytest.raises(ConfigError, match=r"^.*(nowhere|file\.py): no such folder, so there is no gadget to add$"):
            folder.add(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("mine = 3\n", r"mine\.py: the gadget 'mine' needs a function of that name$"),
        ("def other():\n    return 1\n", r"mine\.py: the gadget 'mine' needs a function of that name$"),
        ("import nothing_of_that_name\n", r"mine\.py: cannot be imported: ModuleNotFoundError: No module named "),
        ("def mine(:\n", r"mine\.py: cannot be imported: SyntaxError: .*line 1"),
        ("1 / 0\n", r"mine\.py: cannot be imported: ZeroDivisionError: division by zero$"),
        ("from ._helper import x\n", r"mine\.py: cannot be imported: ImportError: attempted relative import"),
    ],
)
def test_a_file_that_is_no_method(folder: Folder, tmp_path: Path, text: str, reason: str) -> None:
    """One sentence with the file and the reason, the original behind it; and nothing of the folder comes in."""
    own, modules = tmp_path / "own", set(sys.modules)
    write(own, alright="def alright():\n    return 1\n", mine=text)
    with pytest.raises(ConfigError, match=reason) as caught:
        folder.add(own)
    assert "\n" not in str(caught.value)
    assert (caught.value.__cause__ is not None) == ("cannot be imported" in reason)
    assert list(folder) == ["bar", "empty", "foo"]
    assert not any(name.endswith("_mine") for name in set(sys.modules) - modules) or "needs" in reason


def test_a_name_that_is_taken(folder: Folder, tmp_path: Path) -> None:
    """By a built-in method or another folder; and then no file of it is run at all."""
    write(tmp_path / "one", mine="def mine():\n    return 1\n")
    folder.add(tmp_path / "one")
    for name in ("foo", "mine"):
        write(tmp_path / f"has_{name}", **{"a_bomb": "raise RuntimeError\n", name: f"def {name}():\n    return 2\n"})
        with pytest.raises(ConfigError, match=rf"{name}\.py: there is a gadget '{name}' already; give the file"):
            folder.add(tmp_path / f"has_{name}")
    assert folder["mine"].function() == 1
    assert "a_bomb" not in folder
