"""A language model behind an OpenAI-compatible endpoint as a judge, and how far it can be trusted."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from trimtab.artifacts import write_json
from trimtab.config import DataRef
from trimtab.data.judged import Bad, read_demonstrations, read_judged, with_pairs
from trimtab.errors import ConfigError
from trimtab.records.types import spread
from trimtab.rewards._ai_judge_card import GUIDE, JudgeCard, try_out
from trimtab.rewards._ai_judge_http import check_url, secret
from trimtab.rewards._ai_judge_words import text_of
from trimtab.rewards.ai_judge import AGAINST, CARD, NO_TRUNK, AIJudge, prompt_digest
from trimtab.stages import Result
from trimtab.stages._judge_report import measure
from trimtab.train.run import Run

AtLeastOne = Annotated[int, Field(ge=1)]


def judge(
    run: Run,
    *,
    url: str,
    model: str,
    guide: str = GUIDE,
    reason: bool = False,
    tokens: AtLeastOne = 1024,
    key: str | None = None,
    rivals: AtLeastOne = 4,
    against: DataRef | None = None,
    heldout: DataRef | None = None,
    limit: AtLeastOne = 200,
    parallel: AtLeastOne = 8,
    timeout: Annotated[float, Field(gt=0)] = 60.0,
    bad: Bad = "skip",
) -> Result:
    """Have a language model say which of two answers is better, in both orders, to be named wherever a reward is.

    ``url`` and ``model`` are those of any OpenAI-compatible endpoint; ``key`` names the environment variable that holds
    its key. ``guide`` says what to judge by. ``reason``: the judge explains itself first, in at most ``tokens`` tokens.
    An answer's score is how often it beats the others to its prompt, of which it meets ``rivals``; or, with
    ``against``, how likely it beats the answer to the same prompt there. One call is made at the start, so that a wrong
    address is found at once. ``heldout``: how often the judge agrees with people, on ``limit`` prompts at even
    distances, and how far place, length and tricks move it. ``parallel`` calls run at once, each for at most
    ``timeout`` seconds. ``bad``: rows that cannot be used are left out and named, or the run stops.
    """
    _check_idle(run, locals())
    try:
        address = check_url(url)
    except ConfigError as error:
        raise ConfigError(f"stages.{run.name}.url: {error}") from None
    try:
        secret(key)
    except ConfigError as error:
        raise ConfigError(f"stages.{run.name}.key: {error}") from None
    beside = None if against is None else _against(run, against, bad)
    tests = None if heldout is None else read_judged(heldout.source, with_pairs, run=run, bad=bad).groups
    card = try_out(
        JudgeCard(
            url=address, model=model, guide=guide, reason=reason, tokens=tokens, rivals=rivals,
            against=beside is not None, key=key, parallel=parallel, timeout=timeout, seed=run.seed,
        )
    )  # fmt: skip
    if "logprobs" in card.refused:
        run.note("the endpoint tells no probabilities: of two orders that do not agree, the answers are a tie")
    metrics = {"judge/soft": float("logprobs" not in card.refused)}
    if tests is not None:
        metrics |= measure(run, AIJudge(card), spread(tests, limit))
    if beside is not None:
        metrics["data/against"] = float(len(beside))
        write_json(run.folder / AGAINST, beside)
    write_json(run.folder / CARD, dataclasses.asdict(card))
    return Result(base=f"{NO_TRUNK}{model}", metrics=metrics)


def _check_idle(run: Run, given: Mapping[str, Any]) -> None:
    """Refuse a setting that would change nothing: whoever wrote it meant something."""
    idle = {
        "tokens": (not given["reason"], "the judge replies with one letter (reason: false)"),
        "rivals": (given["against"] is not None, "answers are compared with those of 'against'"),
        "limit": (given["heldout"] is None, "there is no 'heldout'"),
    }
    defaults = {name: p.default for name, p in inspect.signature(judge).parameters.items()}
    for option, (unused, reason) in idle.items():
        if unused and given[option] != defaults[option]:
            raise ConfigError(f"stages.{run.name}.{option} would change nothing: {reason}")


def _against(run: Run, data: DataRef, bad: Bad) -> dict[str, str]:
    """What answers are compared with, by the digest of the prompt: the best answer there, of several the first."""
    found: dict[str, str] = {}
    for group in read_demonstrations(data.source, run=run, what="answers to compare with", bad=bad):
        found.setdefault(prompt_digest(group.prompt), text_of(group.answers[0]))
    return found
