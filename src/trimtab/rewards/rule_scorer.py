"""Several rules as one scorer: their weighted sum, and each one's numbers for the log. No torch at run time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

from pydantic import Field

from trimtab.config import check_options, check_settings
from trimtab.errors import ConfigError, RewardError
from trimtab.records.types import Answer, Group
from trimtab.registry import RULES, Entry, Named

if TYPE_CHECKING:
    from torch import Tensor

    from trimtab.model.trunk import Trunk
    from trimtab.tensors.tree import TreeBatch

TRUTHS = ("truth", "final")


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What stands beside a rule's own options: which rule it is (by default the key's), and what it counts."""

    rule: str = ""
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0


Rules = Annotated[Mapping[str, Mapping[str, Any] | None] | None, Named(RULES, "rule", each=True, beside=Use)]
"""The type of a stage's option that names rules: ``{number: {weight: 1.0}}``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """One rule of a scorer, with its options as they were checked."""

    entry: Entry
    weight: float
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class RuleScorer:
    """The weighted sum of rules, ``sum over rules of weight x rule(answer)``; it has the shape of a ``Scorer``.

    A rule gets the columns that it asks for: ``text`` and ``ended`` of the answer, ``prompt`` and ``meta`` of the
    Group, and ``truth``, which is ``meta["truth"]`` or what a question's row had as ``final``: text, a number, or a
    list of these. Of several truths the one that gives the answer most counts.
    """

    rules: Mapping[str, Weighted]

    @classmethod
    def of(cls, rules: Mapping[str, Mapping[str, Any] | None], where: str) -> RuleScorer:
        """Build a scorer from a recipe's ``{name: {weight, options}}``; ``rule`` says which one under another name.

            {"number": {"weight": 1.0}, "no_list": {"rule": "regex", "pattern": "^-", "should": "not_match"}}

        Errors: ``ConfigError``, after ``where``, for a rule or an option that does not exist (with what was probably
        meant), a value that does not fit, and for no rule at all.
        """
        if not rules:
            raise ConfigError(f"{where}: no rule is named")
        return cls({name: _weighted(name, settings, f"{where}.{name}") for name, settings in rules.items()})

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every rule, by its name here."""
        return {name: rule.weight for name, rule in self.rules.items()}

    @property
    def trunks(self) -> tuple[Trunk, ...]:
        """No models: rules read text."""
        return ()

    def reads(self, trunk: Trunk) -> bool:
        """No: rules are handed text, never tokens."""
        return False

    def score_batch(self, batch: TreeBatch) -> Tensor:
        """Refuse: a batch is tokens, and rules read text. It is never asked for, since nothing is read."""
        raise NotImplementedError("rules read text and not tokens; hand the Groups to 'score'")

    def score(self, groups: Sequence[Group]) -> list[list[float]]:
        """The weighted sum for every answer of every Group; see ``parts`` for what goes wrong."""
        return self.weigh(self.parts(groups))

    def weigh(self, parts: Mapping[str, list[list[float]]]) -> list[list[float]]:
        """The weighted sum of what ``parts`` gave."""
        by_group = zip(*(parts[name] for name in self.rules), strict=True)
        weights = self.weights.values()
        return [
            [sum(w * score for w, score in zip(weights, scores, strict=True)) for scores in zip(*own, strict=True)]
            for own in by_group
        ]

    def parts(self, groups: Sequence[Group]) -> dict[str, list[list[float]]]:
        """Every rule's own numbers, before the weights: by rule, Group and answer.

        Errors: ``RewardError`` that names the rule, the Group and the answer where a truth is missing or cannot be
        used, a rule raises, or what it returns is not a finite number. ``ConfigError`` for options that contradict
        each other, and for a package that is not installed.
        """
        return {
            name: [[_scored(name, rule, group, answer) for answer in group.answers] for group in groups]
            for name, rule in self.rules.items()
        }


def _weighted(name: str, settings: Mapping[str, Any] | None, where: str) -> Weighted:
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"{where}={settings!r}: a rule has options: {{weight: 1.0}}, for instance")
    own = {key: value for key, value in (settings or {}).items() if key in Use.__slots__}
    use = Use(**check_options(Use, own, where))
    rule = use.rule or name
    try:
        entry = RULES[rule]
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    options = {key: value for key, value in (settings or {}).items() if key not in own}
    return Weighted(entry=entry, weight=use.weight, options=check_settings(entry, options, where))


def _scored(name: str, rule: Weighted, group: Group, answer: Answer) -> float:
    given = {"text": answer.text, "prompt": group.prompt, "meta": group.meta, "ended": answer.finish != "length"}
    columns = {column: given[column] for column in rule.entry.columns if column in given}

    def failed(reason: str) -> str:
        return f"rule {name!r}, group {group.id!r}: {reason}; the answer: {answer.text!r:.200}"

    truths = _truths(group, name) if "truth" in rule.entry.columns else [None]
    scores: list[float] = []
    for truth in truths:
        asked = columns if truth is None else {**columns, "truth": truth}
        try:
            score = rule.entry.function(**asked, **rule.options)
        except ConfigError:
            raise
        except Exception as error:  # whatever it is, it must not become a reward
            said = str(error) if isinstance(error, RewardError) else f"{type(error).__name__}: {error}"
            raise RewardError(failed(said)) from error
        if not isinstance(score, (int, float)) or not math.isfinite(score):
            raise RewardError(failed(f"it gave {score!r}, which is not a finite number"))
        scores.append(float(score))
    return max(scores)


def _truths(group: Group, name: str) -> list[str]:
    """Return the right answers to a Group as text."""

    def refuse(reason: str) -> NoReturn:
        raise RewardError(f"rule {name!r}, group {group.id!r}: {reason}")

    key = next((key for key in TRUTHS if key in group.meta), None)
    if key is None:
        refuse("it needs the right answer in meta['truth'], and there is none")
    said = group.meta[key]
    found: list[str] = []
    for truth in said if isinstance(said, list | tuple) else [said]:
        if isinstance(truth, bool) or not isinstance(truth, (str, int, float)):
            refuse(f"meta[{key!r}] must be text, a number or a list of these, not {truth!r}")
        found.append(truth if isinstance(truth, str) else repr(truth))
    return found or refuse(f"meta[{key!r}] is an empty list")
