from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.errors import ModelError
from trimtab.model import cache
from trimtab.model.cache import MANIFEST, cache_folder, file_digest, is_complete, made_once


def fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"abc")
    (folder / "below").mkdir()
    (folder / "below" / "more").write_bytes(b"")


def refuse(folder: Path) -> None:
    raise AssertionError("made twice")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("TRIMTAB_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "trimtab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "trimtab"


def test_made_once_makes_once_and_lists_every_file(tmp_path: Path) -> None:
    folder = made_once(tmp_path / "m", fill, origin={"from": "here"})
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest == {"origin": {"from": "here"}, "sizes": {"weights": 3, "below/more": 0}}
    assert made_once(tmp_path / "m", refuse, origin={}) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_shared_cache_can_be_read_by_others(tmp_path: Path) -> None:
    def fill_private(folder: Path) -> None:
        fill(folder)
        (folder / "weights").chmod(0o600)

    before = os.umask(0o022)
    try:
        folder = made_once(tmp_path / "m", fill_private, origin={})
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in (".", "weights", "below", "below/more")}
    assert modes == {".": 0o755, "weights": 0o644, "below": 0o755, "below/more": 0o644}


def test_a_failing_maker_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise ModelError("no")

    with pytest.raises(ModelError, match=r"^no$"):
        made_once(tmp_path / "m", fail, origin={})
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from trimtab.model.cache import made_once

def make(folder):
    (folder / "weights").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

made_once(Path(sys.argv[1]), make, origin={})
"""


def test_a_killed_maker_leaves_no_folder_of_that_name_and_its_rest_goes_after_a_day(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "m")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "m").exists()
    (rest,) = tmp_path.iterdir()
    made_once(tmp_path / "m", fill, origin={})
    assert is_complete(tmp_path / "m")
    assert rest.exists(), "another process could still be working there"
    yesterday = time.time() - 25 * 3600
    os.utime(rest, (yesterday, yesterday))
    made_once(tmp_path / "n", fill, origin={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "n"]


@pytest.mark.parametrize("damage", ["no manifest", "half a manifest", "a file lost", "a file cut short"])
def test_a_broken_folder_is_made_again(tmp_path: Path, damage: str) -> None:
    folder = made_once(tmp_path / "m", fill, origin={})
    if damage == "no manifest":
        (folder / MANIFEST).unlink()
    elif damage == "half a manifest":
        (folder / MANIFEST).write_text('{"sizes": ')
    elif damage == "a file lost":
        (folder / "weights").unlink()
    else:
        (folder / "weights").write_bytes(b"ab")
    assert not is_complete(folder)
    made_once(folder, fill, origin={})
    assert is_complete(folder)
    assert (folder / "weights").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_the_second_of_two_makers_takes_the_firsts_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"

    def overtaken(work: Path) -> None:
        fill(work)
        (work / "weights").write_bytes(b"xyz")
        made_once(folder, fill, origin={})

    assert made_once(folder, overtaken, origin={}) == folder
    assert (folder / "weights").read_bytes() == b"abc"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def make_in_step(folder: Path, start: multiprocessing.synchronize.Event) -> None:
    start.wait()
    made_once(folder, fill, origin={})


def test_many_processes_at_once_do_no_harm(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Event()
    workers = [context.Process(target=make_in_step, args=(tmp_path / "m", start)) for _ in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert is_complete(tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_cache_that_cannot_be_written_says_what_to_set(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ModelError, match=r"the cache .*file cannot be written .*set TRIMTAB_CACHE to a folder that can$"
    ):
        made_once(tmp_path / "file" / "m", fill, origin={})


def test_file_digest_of_a_small_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert file_digest(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@settings(max_examples=30, deadline=None)
@given(at=st.integers(0, 99_999), size=st.integers(100_000, 120_000))
def test_samples_see_changes_as_wide_as_their_spacing(
    tmp_path_factory: pytest.TempPathFactory, at: int, size: int
) -> None:
    path = tmp_path_factory.mktemp("sampled") / "f"
    content = bytearray(size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "WHOLE_BYTES", 1000)
        patch.setattr(cache, "NUM_BLOCKS", 100)
        patch.setattr(cache, "BLOCK_BYTES", 16)
        path.write_bytes(content)
        first = file_digest(path)
        assert first != hashlib.sha256(content).hexdigest()
        spacing = -(-size // 99)
        content[at : at + spacing] = b"\1" * len(content[at : at + spacing])
        path.write_bytes(content)
        if at + spacing <= size:
            assert file_digest(path) != first
        path.write_bytes(bytes(size + 1))
        assert file_digest(path) != first
