"""What a judge said before: a verdict is paid once."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trimtab.errors import ModelError
from trimtab.rewards._ai_judge_words import LETTERS, Call


@dataclass
class Memory:
    """Verdicts by the digest of what was shown, in a file that only grows: a line each, written when it is in.

    Half a line, which a kill leaves, is passed over, and so is any other that is not one of ours.
    """

    path: Path
    _known: dict[str, Call] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, digest: str) -> Call | None:
        """What was said of a showing."""
        with self._lock:
            if self._known is None:
                self._known = dict(_kept(self.path))
            return self._known.get(digest)

    def keep(self, digest: str, call: Call) -> None:
        """Remember it. Errors: ModelError where the cache cannot be written."""
        line = json.dumps({"shown": digest, "verdict": call.verdict, "chance": call.chance}) + "\n"
        with self._lock:
            if self._known is not None:
                self._known[digest] = call
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("ab+") as file:
                    size = file.tell()
                    file.seek(max(0, size - 1))
                    torn = size > 0 and file.read(1) != b"\n"
                    file.write((b"\n" if torn else b"") + line.encode())
            except OSError as error:
                raise ModelError(
                    f"the cache {self.path.parent} cannot be written ({error.strerror}); set TRIMTAB_CACHE to a "
                    "folder that can"
                ) from error


def _kept(path: Path) -> Iterator[tuple[str, Call]]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():
        try:
            said = json.loads(line)
            letter = next(letter for letter in LETTERS if letter == said["verdict"])
            chance = None if said["chance"] is None else float(said["chance"])
            yield str(said["shown"]), Call(verdict=letter, chance=chance)
        except (ValueError, KeyError, TypeError, StopIteration):
            continue
