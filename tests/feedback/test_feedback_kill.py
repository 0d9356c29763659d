"""kill -9 ten times while three people judge; ``benchmarks/feedback_kill.py`` does it two hundred times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "feedback_kill.py"


def test_no_acknowledged_verdict_is_lost_and_none_is_there_twice() -> None:
    found = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "10", "--acks", "30", "--no-record"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr == ""
    row = json.loads(found.stdout)
    assert row["wrong"] == {}
    assert found.returncode == 0
    assert row["kills"] == 10
    assert row["acknowledged"] > 20
