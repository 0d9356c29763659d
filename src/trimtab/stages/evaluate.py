"""Compare models on prompts that nothing was trained on: samples, a judge, plain checks, win rates with intervals."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from trimtab.artifacts import write_json
from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.judged import Bad, read_unjudged
from trimtab.errors import ConfigError
from trimtab.model.chat import Chat
from trimtab.model.load import load_tokenizer
from trimtab.model.roles import Role
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.source import resolve
from trimtab.model.trunk import Trunk
from trimtab.records.types import Answer, Group, Message, spread
from trimtab.rewards.checks import CHECKS
from trimtab.rewards.encoder import encoder, remembered
from trimtab.rewards.encoder_judge import EncoderJudge
from trimtab.rewards.rule_scorer import Rules, RuleScorer
from trimtab.rewards.scorer import Scorer, open_scorer
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stats.sequential import always_valid
from trimtab.stats.winrate import WinRate, length_matched, outcomes, win_rate
from trimtab.tensors.tree import TokenGroup
from trimtab.train.reference import answer_logps
from trimtab.train.run import Run

ENCODER = ModelRef("minilm-l6-v2")
MICRO_TOKENS = 4096
Samples = dict[str, list[dict[str, Any]]]


def evaluate(
    run: Run,
    *,
    prompts: DataRef,
    models: tuple[ModelRef, ...] = (BASE,),
    start: ModelRef | None = None,
    judge: DataRef | None = None,
    judge_heldout: DataRef | None = None,
    encoder_model: ModelRef = ENCODER,
    reward: ModelRef | None = None,
    rules: Rules = None,
    limit: int = 100,
    sampling: Sampling = Sampling(temperature=0.7),  # noqa: B008 - frozen
    base_max_tokens: int = 192,
    bad: Bad = "skip",
) -> Result:
    """Answer ``limit`` prompts (at even distances) with every model and compare the answers head to head.

    The judge is never the reward model: it is a small encoder fitted on ``judge`` pairs that nothing else has seen, and
    its own accuracy on ``judge_heldout`` is reported. A bare base gets ``base_max_tokens``, so that it can finish: a
    model that is always cut off loses for that alone. One outcome a prompt; intervals over prompts. ``start`` is a
    model that the KL of the others is measured from, on their own answers. ``rules`` are checked on every answer, as a
    policy is paid by them: each has options and a ``weight``. ``bad``: rows that cannot be read are
    left out and named, or the run stops.
    """
    if len({model.name for model in models}) < len(models):
        raise ConfigError(f"stages.{run.name}.models: a model is named twice")
    rows = read_unjudged(prompts.source, run=run, bad=bad)
    different: dict[tuple[Message, ...], Group] = {}
    for group in rows:
        different.setdefault(group.prompt, group.with_answers(()))
    if len(different) < len(rows):
        run.note(f"{prompts.source}: {len(rows)} rows hold {len(different)} different prompts; each is answered once")
    groups = spread(list(different.values()), limit)
    if start is not None:
        _check_tokens(run, models, start, groups)
    checked_by = RuleScorer.of(rules, f"stages.{run.name}.rules") if rules else None
    referee = None if judge is None else _Judge.fit(run, judge, encoder_model.base, bad)  # a bad one is found early
    answers = _answers(run, models, start, groups, sampling, base_max_tokens)
    report: dict[str, Any] = {
        "models": [model.name for model in models],
        "prompts": [
            {
                "id": group.id,
                "prompt": group.prompt[-1].content,
                "topic": group.meta.get("topic"),
                "answers": {name: rows[i] for name, rows in answers.items()},
            }
            for i, group in enumerate(groups)
        ],
        "lengths": {name: _lengths(rows) for name, rows in answers.items()},
        "ended": {name: _mean([row["finish"] == "stop" for row in rows]) for name, rows in answers.items()},
        "checks": {
            check: {name: _mean([good(row["text"], row["finish"]) for row in rows]) for name, rows in answers.items()}
            for check, good in CHECKS.items()
        },
    }
    metrics: dict[str, float] = {f"ended/{name}": share for name, share in report["ended"].items()}
    if start is not None:
        report["kl"] = {name: sum(row["kl"] for row in rows) / len(rows) for name, rows in answers.items()}
        metrics |= {f"kl/{name}": kl for name, kl in report["kl"].items()}
    if reward is not None:
        by_reward = _scores(open_scorer(reward, dtype=run.dtype), groups, answers)
        report["reward_model"] = {name: sum(own) / len(own) for name, own in by_reward.items()}
        report["by_reward"] = _head_to_head(answers, by_reward)
        report["reward_scores"] = by_reward
        metrics |= {f"reward_model/{name}": mean for name, mean in report["reward_model"].items()}
    if checked_by is not None:
        by_rules = _scores(checked_by, groups, answers)
        report["rules"] = {name: sum(own) / len(own) for name, own in by_rules.items()}
        report["by_rules"] = _head_to_head(answers, by_rules)
        report["rule_scores"] = by_rules
        metrics |= {f"rules/{name}": mean for name, mean in report["rules"].items()}
    if referee is not None:
        report["judge"], scores = referee.read(run, judge_heldout, groups, answers, bad)
        report["head_to_head"] = _head_to_head(answers, scores)
        metrics["judge/accuracy"] = report["judge"]["accuracy"]
        metrics |= {f"win/{row['a']}_over_{row['b']}": row["win_rate"] for row in report["head_to_head"]}
    write_json(run.folder / "evaluation.json", report)
    return Result(metrics=metrics)


def _check_tokens(run: Run, models: Sequence[ModelRef], start: ModelRef, groups: Sequence[Group]) -> None:
    """Refuse a start that cannot read what the models sample: of another vocabulary, or one that writes other prompts.

    Asked of the tokenizers alone, before any weights are loaded; on one base there is nothing to ask.
    """
    others = [model for model in models if model.base != start.base]
    if not others:
        return
    theirs = Chat(load_tokenizer(start.base))
    for model in others:
        mine = Chat(load_tokenizer(model.base))
        same = mine.tokenizer.get_vocab() == theirs.tokenizer.get_vocab()
        if not same or any(mine.prompt(group.prompt) != theirs.prompt(group.prompt) for group in groups):
            raise ConfigError(f"stages.{run.name}.start: it reads text as other tokens than {model.name!r} does")


def _answers(
    run: Run, models: Sequence[ModelRef], start: ModelRef | None, groups: Sequence[Group], sampling: Sampling,
    base_max_tokens: int,
) -> Samples:  # fmt: skip
    """Sample one answer a prompt from every model; what a killed try has finished is read back."""
    trunks: dict[str, Trunk] = {}

    def trunk_of(model: ModelRef) -> Trunk:
        if model.base not in trunks:
            trunks[model.base] = Trunk.load(model.base, dtype=run.dtype)
        return trunks[model.base]

    found: Samples = {}
    run.reporter.begin(run.name, len(models) * len(groups), "answer")
    for place, model in enumerate(models):
        plain = re.sub(r"[^A-Za-z0-9-]", "_", model.name)  # a path or a hub id may stand there
        path = run.folder / f"answers-{place}-{plain}.json"
        if not path.exists():
            own = sampling if model.artifact is not None else replace(sampling, max_tokens=base_max_tokens)
            itself = start is not None and (model.base, model.artifact) == (start.base, start.artifact)
            other = None if start is None or itself else Role(trunk_of(start), trunk_of(start).adopt(start))
            rows = _sample(run, trunk_of(model), model, other, groups, own, place * len(groups))
            write_json(path, [{**row, "kl": 0.0} for row in rows] if itself else rows)
        found[model.name] = json.loads(path.read_text())
        run.reporter.advance((place + 1) * len(groups), {})
    return found


def _sample(
    run: Run, trunk: Trunk, model: ModelRef, start: Role | None, groups: Sequence[Group], sampling: Sampling,
    before: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """One answer a prompt. All models draw from the same random numbers."""
    adapter = trunk.adopt(model)
    sampler = TorchSampler(trunk, adapter, stop=trunk.chat.stop)
    prompts = [trunk.chat.prompt(group.prompt) for group in groups]
    sampled = sampler.sample(
        prompts, k=1, sampling=sampling, seed=derive(run.seed, "evaluate"),
        progress=lambda done: run.reporter.advance(before + done, {}),
    )  # fmt: skip
    rows = [
        {"text": trunk.chat.decode(a.tokens), "tokens": len(a.tokens), "finish": a.finish}
        for own in sampled
        for a in own
    ]
    if start is not None:
        tokens = [
            TokenGroup(prompt=tuple(prompt), answers=tuple(tuple(a.tokens) for a in own))
            for prompt, own in zip(prompts, sampled, strict=True)
        ]
        temperature = sampling.temperature or 1.0
        mine, theirs = (
            answer_logps(role.trunk, role.adapter, tokens, micro_tokens=MICRO_TOKENS, temperature=temperature)
            for role in (Role(trunk, adapter), start)
        )
        for row, a, b in zip(rows, mine, theirs, strict=True):
            row["kl"] = float((a - b)[0])
    return rows


def _lengths(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    tokens = np.array([row["tokens"] for row in rows], dtype=float)
    return {"mean": float(tokens.mean()), "median": float(np.median(tokens)), "p90": float(np.quantile(tokens, 0.9))}


def _mean(values: Sequence[bool]) -> float:
    return sum(map(float, values)) / max(1, len(values))


def _scores(scorer: Scorer, groups: Sequence[Group], answers: Samples) -> dict[str, list[float]]:
    """What a scorer thinks of each model's answers: high here and level at the judge is over-optimisation."""
    judged = [
        group.with_answers(tuple(Answer(text=row["text"], finish=row["finish"]) for row in rows))
        for group, *rows in zip(groups, *answers.values(), strict=True)
    ]
    found = scorer.score(judged)
    return {name: [float(row[place]) for row in found] for place, name in enumerate(answers)}


@dataclass(frozen=True, slots=True)
class _Judge:
    """The fitted judge twice: what encodes answers, and what remembers the encodings of its own pairs."""

    fresh: EncoderJudge
    remembering: EncoderJudge

    @classmethod
    def fit(cls, run: Run, pairs: DataRef, ref: str, bad: Bad) -> _Judge:
        """Fit it on pairs that nothing else has seen."""
        encode = encoder(ref)
        known = remembered(encode, resolve(ref).digest)  # the judge's own pairs are read at every evaluation
        fitted = EncoderJudge.fit(read_unjudged(pairs.source, run=run, bad=bad), known, seed=run.seed)
        return cls(replace(fitted, encode=encode), fitted)

    def read(
        self, run: Run, heldout: DataRef | None, groups: Sequence[Group], answers: Samples, bad: Bad
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Score every answer, and say how often the judge is right on held-out pairs."""
        texts = [group.prompt[-1].content for group in groups]
        scores = {name: self.fresh.score(texts, [row["text"] for row in rows]) for name, rows in answers.items()}
        said: dict[str, Any] = {
            "scores": {name: values.tolist() for name, values in scores.items()},
            "accuracy": float("nan"),
        }
        if heldout is not None:
            card = self.remembering.accuracy(read_unjudged(heldout.source, run=run, bad=bad))
            by_flaw = {flaw: asdict(share) for flaw, share in card.by_flaw.items()}
            facts = asdict(card) | {"by_flaw": by_flaw}
            said |= {"accuracy_lo": facts.pop("lo"), "accuracy_hi": facts.pop("hi"), **facts}
        return said, scores


def _head_to_head(answers: Samples, scores: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every later model against every earlier one."""
    rows: list[dict[str, Any]] = []
    for b, a in combinations(answers, 2):
        won = outcomes(scores[a], scores[b])
        valid = always_valid(won)
        tokens = {name: [row["tokens"] for row in answers[name]] for name in (a, b)}
        matched = length_matched(won, tokens[a], tokens[b])
        rate = win_rate(won)
        rows.append(
            {
                "a": a, "b": b, **_interval(rate), "always_valid_lo": valid.lo, "always_valid_hi": valid.hi,
                "length_matched": _interval(matched) if matched is not None else None,
            }
        )  # fmt: skip
    return rows


def _interval(rate: WinRate) -> dict[str, float]:
    return {"n": rate.n, "win_rate": rate.mean, "lo": rate.lo, "hi": rate.hi}
