"""The folder is the registry: what is in it, what is not, and a method that somebody drops in."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest

from trimtab.errors import ConfigError
from trimtab.registry import ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES, STAGES, Entry, Folder

FOLDERS = (STAGES, ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES)


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
    assert (folder["bar"].summary, dict(folder["bar"].options)) == ("", {})


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
