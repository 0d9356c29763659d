"""Where rows come from: a file, a folder, a saved ``datasets`` folder, the hub, or the bundled quickstart sets.

resolve("data/train.jsonl.gz")      a file
resolve("data/")                    a folder: every data file under it, in order of path
resolve("data/saved:train")         what ``Dataset.save_to_disk`` wrote; the split where there are several
resolve("quickstart/preferences")   shipped with the package, unless a file of that name is there
resolve("owner/name:train")         a data set on the Hugging Face hub
resolve("data/train.jsonl@0:0.8")   any of these, and of it the share of the prompts whose hash falls into [0, 0.8)
"""

from __future__ import annotations

import hashlib
import importlib.resources
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from trimtab.errors import DataError, did_you_mean
from trimtab.records.types import Group
from trimtab.seeds import derive

SUFFIXES = (".jsonl", ".ndjson", ".json", ".txt", ".jsonl.gz", ".ndjson.gz", ".json.gz", ".txt.gz", ".parquet")
_HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?::(?P<split>[\w.\[\]%:-]+))?")
_SHARE = re.compile(r"(?P<source>.+)@(?P<low>[\d.]*):(?P<high>[\d.]*)")
_SPLIT = re.compile(r"(?P<path>.+):(?P<split>\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A source that was found: ``name`` is what the user wrote before a colon, ``split`` what stood after it."""

    name: str
    kind: Literal["file", "folder", "saved", "hub"]
    path: Path = Path()
    split: str | None = None
    share: tuple[float, float] = (0.0, 1.0)

    def holds(self, group: Group) -> bool:
        """Tell whether a Group is in the share: by its prompt alone, so that a prompt never lies on both sides."""
        words = [f"{message.role}: {message.content}" for message in group.prompt] or [group.id]
        low, high = self.share
        return low <= derive(0, "share", *words) / 2**63 < high


def resolve(source: str | Path) -> Source:
    """Return what a source's name stands for; what is on the disk comes before quickstart sets and the hub."""
    name = str(source)
    path = Path(source)
    share = _SHARE.fullmatch(name)
    if share and not path.exists():
        low, high = float(share["low"] or 0), float(share["high"] or 1)
        if not 0 <= low < high <= 1:
            raise DataError(f"{name}: a share is LOW:HIGH with 0 <= LOW < HIGH <= 1, as in @0:0.8")
        return replace(resolve(share["source"]), share=(low, high))
    if path.exists():
        return _on_disk(name, path)
    if name.startswith("quickstart/"):
        return Source(name=name, kind="file", path=_bundled(name))
    split = _SPLIT.fullmatch(name)
    if split and is_saved(Path(split["path"])):
        return Source(name=split["path"], kind="saved", path=Path(split["path"]), split=split["split"])
    hub = _HUB_ID.fullmatch(name)
    if hub and not name.endswith(SUFFIXES) and isinstance(source, str):
        return Source(name=hub["name"], kind="hub", split=hub["split"])
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    meant = did_you_mean(path.name, beside)
    raise DataError(f"no file or folder {name!r}" + (meant if meant.startswith("; did") else ""))


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by ``save_to_disk`` of the package ``datasets``."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def files(source: Source) -> tuple[Path, ...]:
    """Return the files whose bytes are the source, in order of path; none for the hub.

    A folder's README, LICENCE, other Markdown and hidden files are no data and are left out.
    """
    match source.kind:
        case "file":
            return (source.path,)
        case "hub":
            return ()
        case _:
            return tuple(sorted(p for p in source.path.rglob("*") if p.is_file() and not _about(p, source.path)))


def digest(source: Source) -> str:
    """Return the SHA-256 of a file's bytes; of a folder, that of its ``sha256sum`` lines (relative paths, sorted)."""
    if source.kind == "file":
        return _sha256(source.path)
    lines = (f"{_sha256(path)}  {path.relative_to(source.path).as_posix()}\n" for path in files(source))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def without_suffix(path: Path) -> str:
    """Return a path, with forward slashes and without its data suffix."""
    text = path.as_posix()
    found = max((suffix for suffix in SUFFIXES if text.lower().endswith(suffix)), key=len, default="")
    return text[: len(text) - len(found)]


def _on_disk(name: str, path: Path) -> Source:
    if path.is_dir():
        return Source(name=name, kind="saved" if is_saved(path) else "folder", path=path)
    if not path.name.lower().endswith(SUFFIXES):
        raise DataError(f"{name}: cannot tell what kind of file this is; known endings: {', '.join(SUFFIXES)}")
    return Source(name=name, kind="file", path=path)


def _bundled(name: str) -> Path:
    folder = Path(str(importlib.resources.files("trimtab").joinpath("data", "quickstart")))
    path = folder / f"{name.removeprefix('quickstart/')}.jsonl"
    known = sorted(p.stem for p in folder.glob("*.jsonl"))
    if path.stem not in known:
        raise DataError(f"no quickstart data {path.stem!r}{did_you_mean(path.stem, known)}")
    return path


def _about(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
    return hidden or path.suffix.lower() == ".md" or path.stem.upper() in ("README", "LICENSE", "LICENCE", "NOTICE")


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
