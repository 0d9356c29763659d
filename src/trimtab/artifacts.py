"""Artifacts: folders that appear whole, named by what went into them.

A stage works in ``<run>/.work/<name>-<key>``; when it is done its manifest is written last and the folder is renamed to
``<run>/artifacts/<name>-<key>``. ``<run>/<name>`` is a link to the newest. Same key -> the stage is skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab import __version__
from trimtab.errors import ConfigError

MANIFEST = "manifest.json"
BESIDE = "artifact:"  # a base that is an artifact itself, by its path from the folder of the one that names it
ITSELF = f"{BESIDE}."  # the base of a whole model


@dataclass(frozen=True, slots=True)
class Artifact:
    """A finished stage's folder and what its manifest says."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The instance's name in its recipe."""
        return str(self.manifest["name"])

    @property
    def stage(self) -> str:
        """The stage that made it."""
        return str(self.manifest["stage"])

    @property
    def key(self) -> str:
        """The digest of everything that went into it."""
        return str(self.manifest["key"])

    @property
    def base(self) -> str | None:
        """The base model to load, if it is a model: what its adapter sits on, or its own folder (``whole``)."""
        value = self.manifest.get("base")
        if value is None or not str(value).startswith(BESIDE):
            return None if value is None else str(value)
        return str((self.folder / str(value).removeprefix(BESIDE)).resolve())

    @property
    def whole(self) -> bool:
        """Whether it is a whole model, not an adapter on another."""
        return self.manifest.get("base") == ITSELF


def digest_of(value: object) -> str:
    """SHA-256 of a JSON-able value in canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def read_artifact(folder: Path) -> Artifact | None:
    """Read a finished artifact, or nothing when the folder holds none."""
    path = folder / MANIFEST
    return Artifact(folder.resolve(), json.loads(path.read_text())) if path.is_file() else None


class Store:
    """The artifacts of one run folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of this run folder; the lock goes with the process, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.root} is in use by another process; wait for it, or give name=...") from None
            yield

    def _slot(self, name: str, key: str) -> str:
        return f"{name}-{key[:12]}"

    def find(self, name: str, key: str) -> Artifact | None:
        """The finished artifact with this key, if there is one."""
        found = read_artifact(self.root / "artifacts" / self._slot(name, key))
        return found if found is not None and found.key == key else None

    def work(self, name: str, key: str) -> Path:
        """The folder where the stage with this key works; what an earlier, killed try left is kept."""
        folder = self.root / ".work" / self._slot(name, key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def publish(self, name: str, key: str, manifest: Mapping[str, Any]) -> Artifact:
        """Write the manifest and move the work folder into place.

        A base that is another artifact of this run is named by its place beside this one, so that the run can move.
        """
        work = self.work(name, key)
        final = self.root / "artifacts" / self._slot(name, key)
        if (base := manifest.get("base")) and Path(base).parent == final.parent.resolve():
            manifest = {**manifest, "base": f"{BESIDE}../{Path(base).name}"}
        write_json(work / MANIFEST, {**manifest, "name": name, "key": key})
        final.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(final, ignore_errors=True)
        work.rename(final)
        self.link(name, final)
        artifact = read_artifact(final)
        assert artifact is not None
        return artifact

    def link(self, name: str, folder: Path) -> None:
        """Point ``<run>/<name>`` at an artifact, and drop its checkpoints.

        Only now, for a kill before the rename needs them; and here, so that whoever was killed in between does it when
        the artifact is found again.
        """
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        link = self.root / name
        fresh = self.root / f".link-{name}"  # one name (the run is locked): what a kill left is taken over
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(folder, self.root), target_is_directory=True)
        fresh.replace(link)


def write_json(path: Path, value: object) -> None:
    """Write JSON under a temporary name, then rename."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(value, indent=2, default=str) + "\n")
    partial.replace(path)


def revision() -> str:
    """The package version, with the git revision when it runs from a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return __version__
    try:
        out = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}+{out.stdout.strip()}"
