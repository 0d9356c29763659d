"""The user's cache: folders that are made once, appear whole or not at all, and may be deleted at any time."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trimtab.errors import ModelError

MANIFEST = "trimtab-cache.json"
WHOLE_BYTES = 512 * 2**20
NUM_BLOCKS = 4096
BLOCK_BYTES = 4096
STALE_S = 24 * 3600
MAKING = ".making-"  # what is under way; swept a day later if nobody finished it
BROKEN = ".broken-"


def cache_folder() -> Path:
    """Return ``$TRIMTAB_CACHE``, else the platform's cache folder for Trimtab (``~/.cache/trimtab`` on Linux).

    The folder need not exist yet. ``$XDG_CACHE_HOME`` is honoured on Linux, ``%LOCALAPPDATA%`` on Windows.
    """
    if chosen := os.environ.get("TRIMTAB_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "trimtab"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "trimtab" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trimtab"


def models_folder() -> Path:
    """Return the part of the cache that holds models."""
    return cache_folder() / "models"


def file_digest(path: Path) -> str:
    """Return a file's identity as hexadecimal digits, cheap enough to compute at every run.

    Up to 512 MiB: the SHA-256 of the whole file, as ``sha256sum`` prints it. Above that: the SHA-256 of the size and
    of 4,096 blocks of 4 KiB spread evenly from the first byte to the last (16 MiB read), which tells trained weights
    apart, for training moves nearly every matrix, but would miss a change of a few bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256(f"sampled {size}".encode())
        for block in range(NUM_BLOCKS):
            file.seek((size - BLOCK_BYTES) * block // (NUM_BLOCKS - 1))
            digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


def is_complete(folder: Path) -> bool:
    """Tell whether a cached folder has its manifest and every file that it lists, with its size."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["sizes"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(sizes) and all(_size(folder / name) == size for name, size in sizes.items())


def made_once(folder: Path, make: Callable[[Path], None], *, origin: Mapping[str, str]) -> Path:
    """Return ``folder``; when it is not there whole, have ``make`` fill a temporary folder beside it and rename that.

    The manifest (``origin`` and the size of each file) is written last, before the rename, so whatever is killed
    leaves no folder of that name. Of two processes at once, both work and the first to finish wins. A folder of that
    name without a sound manifest (half copied, or a file lost) is replaced. Temporary folders that a killed process
    left are removed when they are a day old. Raises ModelError when the cache cannot be written.
    """
    if is_complete(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        work = Path(tempfile.mkdtemp(prefix=f"{MAKING}{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise ModelError(
            f"the cache {folder.parent} cannot be written ({error.strerror}); set TRIMTAB_CACHE to a folder that can"
        ) from error
    try:
        make(work)
        _write_manifest(work, origin)
        _publish(work, folder)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ModelError(
            f"no space left to make {folder.name} in {folder.parent}; set TRIMTAB_CACHE to a folder on another disk"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _write_manifest(folder: Path, origin: Mapping[str, str]) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    text = json.dumps({"origin": dict(origin), "sizes": sizes}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _publish(work: Path, folder: Path) -> None:
    """Rename ``work`` to ``folder`` unless somebody else has put a whole one there; a broken one is moved away."""
    # Temporary folders and safetensors files are the user's alone; what a cache shares follows the umask, as the
    # manifest does.
    mode = (work / MANIFEST).stat().st_mode & 0o777
    for path in work.rglob("*"):
        path.chmod(_for_folders(mode) if path.is_dir() else mode)
    work.chmod(_for_folders(mode))
    try:
        work.rename(folder)
    except OSError:
        if is_complete(folder):
            return
        if not folder.exists():
            raise
        broken = Path(tempfile.mkdtemp(prefix=BROKEN, dir=folder.parent))
        folder.rename(broken / "folder")
        work.rename(folder)
        shutil.rmtree(broken, ignore_errors=True)


def _for_folders(mode: int) -> int:
    """Give whoever may read a file the right to enter its folder."""
    return mode | (mode & 0o444) >> 2


def _sweep(parent: Path) -> None:
    for prefix in (MAKING, BROKEN):
        for path in parent.glob(f"{prefix}*"):
            if (modified := _modified(path)) is not None and time.time() - modified > STALE_S:
                shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _modified(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
