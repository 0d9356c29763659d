"""One honest line about an experiment: who is better, how sure, and what would make it void."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from trimtab.stats.experiments import GuardrailReading, SampleRatio
from trimtab.stats.length_control import LengthControlled
from trimtab.stats.sequential import PRIOR, AlwaysValid, always_valid, log_e_value

Decision = Literal["new", "old", "undecided", "withheld"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was decided and why; ``line`` says it in one sentence. ``more`` verdicts are needed at the present rate."""

    decision: Decision
    reading: AlwaysValid
    n: int
    more: float
    line: str


def decided_needed(rate: float, *, alpha: float = 0.05, prior: float = PRIOR) -> float:
    """Return how many decided verdicts make E reach 1/alpha when a share ``rate`` of them are wins; inf at 1/2."""
    if abs(rate - 0.5) < 1e-6:
        return inf
    n, reach = 1.0, log(1 / alpha)
    while float(log_e_value(rate * n, (1 - rate) * n, prior=prior)) < reach:
        n *= 2
        if n > 1e13:
            return inf
    lo, hi = n / 2, n
    while hi - lo > 0.5:
        middle = (lo + hi) / 2
        below = float(log_e_value(rate * middle, (1 - rate) * middle, prior=prior)) < reach
        lo, hi = (middle, hi) if below else (lo, middle)
    return float(np.ceil(hi))


def paired_verdict(
    won: ArrayLike,
    *,
    new: str = "new",
    old: str = "old",
    alpha: float = 0.05,
    prior: float = PRIOR,
    controlled: LengthControlled | None = None,
    guardrails: Sequence[GuardrailReading] = (),
    ratio: SampleRatio | None = None,
    per_day: float | None = None,
    cap: int | None = None,
) -> Verdict:
    """Return the verdict on paired comparisons: outcomes in [0, 1] seen from the new arm, one a prompt.

    The decision is that of the always-valid test on decided prompts. It is withheld on a sample-ratio alarm, and a
    breached guardrail keeps the new arm from winning. ``per_day`` verdicts turn what is missing into days; at ``cap``
    verdicts an open question is closed as "no decision".
    """
    reading = always_valid(won, alpha=alpha, prior=prior)
    decided, n = reading.wins + reading.losses, reading.wins + reading.losses + reading.ties
    breached = [r.guardrail.name for r in guardrails if r.breached]
    rate = reading.wins / decided if decided else 0.5
    needed = decided_needed(rate, alpha=alpha, prior=prior)
    more = max(0.0, needed - decided) * (n / decided if decided else 1.0)
    significant = reading.e_value >= 1 / alpha
    if ratio is not None and ratio.alarm:
        decision: Decision = "withheld"
        head = f"verdict withheld: users did not fall into the arms as planned (p = {ratio.p_value:.1g})"
    elif significant:
        decision = "old" if rate < 0.5 or breached else "new"
        head = f"{new if rate > 0.5 else old} better"
        if rate > 0.5 and breached:
            head += f", but {old} stays"
    else:
        decision = "undecided"
        head = "no decision" if cap is not None and n >= cap else "no decision yet"
    parts = [
        f"{head}: {new} wins {100 * rate:.1f} % [{100 * reading.lo:.1f}, {100 * reading.hi:.1f}] anytime-valid",
        f"n={n:,}" + (f" ({reading.ties:,} ties left out)" if reading.ties else ""),
    ]
    if controlled is not None:
        parts.append(f"length-controlled {100 * controlled.controlled:.1f} %")
    if guardrails:
        open_ = sum(not r.safe and not r.breached for r in guardrails)
        state = f"breached: {', '.join(breached)}" if breached else "ok" if not open_ else f"{open_} not known yet"
        parts.append(f"guardrails {state}")
    if decision == "undecided" and not head.endswith("no decision") and per_day:
        parts.append("no end in sight" if more == inf else f"~{max(1, round(more / per_day)):,} days to decide")
    return Verdict(decision=decision, reading=reading, n=n, more=0.0 if significant else more, line=", ".join(parts))
