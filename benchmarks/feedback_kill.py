"""kill -9 at random moments while people judge: is every acknowledged verdict there, and none twice?

A child process opens a store in a SQLite file; three raters in three threads claim items, judge, skip and take back,
each request under an idempotency key. A request is written to a pipe before it is sent and its acknowledgement after
the commit, as a browser would know it. The parent kills the child after a random number of acknowledgements (a tenth of
the kills strikes while it still starts), and looks at the file:

    every acknowledged event is there; no key gave two events; SQLite finds the file whole; the view is what the events
    say

Then the next child starts on the same file and first sends again what was never acknowledged, with the same keys.

    python benchmarks/feedback_kill.py [--kills N] [--acks N] [--seed S] [--no-record]

Exit code 1 where anything is missing, twice or broken. What a dying operating system or disk does is not tried here.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import select

from trimtab.artifacts import revision
from trimtab.feedback import events, ingest, people, projects, queue, requests, tables
from trimtab.feedback.errors import MissingError
from trimtab.feedback.events import Submission
from trimtab.feedback.projects import Project
from trimtab.feedback.store import Store, Tx, open_store
from trimtab.records.types import Answer, Group, Message, Pair

RESULTS = Path(__file__).parent / "results" / "feedback.jsonl"
RATERS = 3
EARLY = 0.1  # the share of kills while the child still starts

Request = dict[str, str]  # key, rater, act (submit | skip | undo) and item


# --- the child --------------------------------------------------------------------------------------------------------


def child(path: Path, pipe: int, resend: list[Request], seed: int) -> None:
    """Work until killed, or until nothing is left to judge."""
    with open_store(path) as store:
        with store.read() as tx:
            project = projects.get_project(tx, "kill")
        for request in resend:
            send(store, project, request, pipe)
        threads = [
            threading.Thread(target=work, args=(store, project, f"rater {i}", pipe, random.Random(seed * RATERS + i)))
            for i in range(RATERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def work(store: Store, project: Project, name: str, pipe: int, chance: random.Random) -> None:
    with store.read() as tx:
        rater = people.get_person(tx, name).id
    while leases := store.run(lambda tx: queue.claim(tx, project, rater)):
        for lease in leases:
            act = "skip" if chance.random() < 0.1 else "submit"
            send(
                store,
                project,
                {"key": f"{chance.getrandbits(96):x}", "rater": rater, "act": act, "item": lease.item},
                pipe,
            )
            if chance.random() < 0.1:
                send(
                    store,
                    project,
                    {"key": f"{chance.getrandbits(96):x}", "rater": rater, "act": "undo", "item": ""},
                    pipe,
                )


def send(store: Store, project: Project, request: Request, pipe: int) -> None:
    os.write(pipe, json.dumps({"sent": request}).encode() + b"\n")
    reply = store.run(
        lambda tx: requests.once(
            tx, project, request["rater"], request["key"], request, lambda: act(tx, project, request)
        )
    )
    os.write(pipe, json.dumps({"key": request["key"], "event": reply.value}).encode() + b"\n")


def act(tx: Tx, project: Project, request: Request) -> str | None:
    rater, item = request["rater"], request["item"]
    if request["act"] == "undo":
        try:
            return events.undo(tx, project, rater).id
        except MissingError:
            return None
    if request["act"] == "skip":
        return events.skip(tx, project, rater, item, "not clear").id
    return events.submit(tx, project, rater, item, Submission(verdicts=(Pair(better=0, worse=1),))).id


# --- the parent -------------------------------------------------------------------------------------------------------


@dataclass
class Known:
    """What the clients know: what they sent, and what was acknowledged (key -> event; no event: nothing to undo)."""

    waiting: dict[str, Request] = field(default_factory=dict)
    acked: dict[str, str | None] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)  # keys that were acknowledged twice, with another event

    def hear(self, line: bytes) -> bool:
        """Take a line from the pipe; say whether it is a new acknowledgement."""
        said = json.loads(line)
        if "sent" in said:
            self.waiting[said["sent"]["key"]] = said["sent"]
            return False
        key, event = said["key"], said["event"]
        if self.acked.get(key, event) != event:
            self.changed.append(key)
        self.acked[key] = event
        self.waiting.pop(key, None)
        return True


def strike(path: Path, known: Known, chance: random.Random, most: int) -> bool:
    """Start a child, kill it at a random moment, hear what it said to the end; say whether it was killed."""
    reader, writer = os.pipe()
    resend = list(known.waiting.values())
    number = chance.getrandbits(32)
    child_id = os.fork()
    if child_id == 0:
        os.close(reader)
        try:
            child(path, writer, resend, number)
        finally:
            os._exit(0)
    os.close(writer)
    early = chance.random() < EARLY
    left = chance.randint(1, most)
    if early:
        time.sleep(chance.random() * 0.1)
        os.kill(child_id, signal.SIGKILL)
    with os.fdopen(reader, "rb") as pipe:
        for line in pipe:
            if not line.endswith(b"\n"):
                break  # cut in the middle: never said
            left -= known.hear(line)
            if left == 0 and not early:
                os.kill(child_id, signal.SIGKILL)
    _, status = os.waitpid(child_id, 0)
    return os.WIFSIGNALED(status)


def look(path: Path, known: Known) -> dict[str, object]:
    """Return what is wrong with the file, and nothing where all is well."""
    with sqlite3.connect(path) as raw:
        whole = raw.execute("PRAGMA integrity_check").fetchone()[0]
        there = {row[0] for row in raw.execute("SELECT id FROM event")}
        replies = [json.loads(row[0]) for row in raw.execute("SELECT reply FROM request WHERE reply IS NOT NULL")]
    raw.close()
    said = [event for event in known.acked.values() if event is not None]
    with open_store(path) as store, store.read() as tx:
        project = projects.get_project(tx, "kill")
        same = events.replay(events.all_events(tx, project)) == events.view(tx, project)
        taken = tables.slot.c.done | (tables.slot.c.until > 0)
        held = Counter(tx.execute(select(tables.slot.c.item).where(taken)).scalars())
    found = {
        "lost": sorted(set(said) - there),
        "twice": sorted(event for event, n in Counter(said).items() if n > 1) + known.changed,
        "without a request": sorted(there - set(replies)),
        "integrity": [] if whole == "ok" else [whole],
        "view": [] if same else ["not what the events say"],
        "overfull": [item for item, n in held.items() if n > RATERS - 1],
    }
    return {name: wrong for name, wrong in found.items() if wrong}


def prepare(path: Path, items: int) -> None:
    with open_store(path) as store:
        with store.write() as tx:
            project = projects.create_project(tx, "kill", projects.Settings(overlap=RATERS - 1, lease_seconds=1.0))
            for i in range(RATERS):
                rater = people.add_person(tx, f"rater {i}", actor="system")
                people.set_role(tx, project.id, rater.id, "annotator", actor="system")
        answers = (Answer(text="Yes."), Answer(text="No."))
        ingest.add_groups(
            store,
            project,
            (Group(id=str(i), prompt=(Message(role="user", content=f"{i}?"),), answers=answers) for i in range(items)),
            actor="system",
        )


def run(folder: Path, kills: int, most: int, seed: int) -> dict[str, object]:
    """Kill ``kills`` times, then let one child finish what was not acknowledged; return the row to record."""
    path, known, chance = folder / "feedback.sqlite", Known(), random.Random(seed)
    prepare(path, items=kills * most)
    began, struck, resent, wrong = time.monotonic(), 0, 0, dict[str, object]()
    while struck < kills and not wrong:
        resent += len(known.waiting)
        struck += strike(path, known, chance, most)
        wrong = look(path, known)
    while known.waiting and not wrong:
        strike(path, known, chance, most)
        wrong = look(path, known)
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "row": "kill",
        "seed": seed,
        "kills": struck,
        "acknowledged": len(known.acked),
        "sent_again": resent,
        "wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
        "sqlite": sqlite3.sqlite_version,
        "revision": revision(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--acks", type=int, default=100, help="at most so many acknowledgements before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-record", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trimtab-kill-") as folder:
        row = run(Path(folder), given.kills, given.acks, given.seed)
    print(json.dumps(row))
    if not given.no_record:
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    return 1 if row["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
