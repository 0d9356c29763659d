"""A judge for evaluation only: a Bradley-Terry model, linear in features of a frozen sentence encoder. No torch here.

N pairs, D the encoder's width, K = 2 D + 4 features of one (prompt x, answer y); v(.) is a sentence vector:

    v(first sentence of y)                 (D)   answer first, tone
    v(the other sentences of y)            (D)   tone, filler, hedging; the first again when there is only one
    3 min(v(x) . v(y), low)                      on the topic at all
    3 max(v(x) . v(y), high)                     says little but the question
    3 repetition(y)                              goes round in circles
    3 log(number of words)                       at training only

    s(x, y) = w . f(x, y)          P(y beats z) = sigmoid(s(x, y) - s(x, z))
    minimise  - sum_n log sigmoid(w . (f_better - f_worse)) + ridge |w|² / 2

``low`` and ``high`` are the 10 % quantile and the median of the training answers' cosines. The three makes the ridge a
ninth on the four plain features, which are few. Length must not help: its column takes up in training what length alone
explains and is left out of s. Scores compare answers to one prompt; across prompts they mean nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from trimtab.errors import DataError
from trimtab.records.types import Group, pairs
from trimtab.rewards.checks import sentences, words
from trimtab.rewards.encoder import Encode
from trimtab.seeds import derive
from trimtab.stats.winrate import outcome, win_rate

Floats = NDArray[np.float64]

RIDGES = (0.03, 0.1, 0.2, 0.4, 1.0, 3.0)
NUM_FOLDS = 8
PLAIN = 3.0
NUM_PLAIN = 4
LOOK_BACK = 20
LONG_WORD = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A share of right verdicts over ``n`` pairs, with a 95 % interval over prompts (``stats.winrate.win_rate``)."""

    mean: float
    lo: float
    hi: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeCard:
    """How far a judge can be trusted: its accuracy on pairs that others decided, beside two rules that read nothing.

    ``longer_wins`` and ``finished_wins`` are the accuracies of "more words wins" and "the answer that no cap cut off
    wins" (ties count one half). ``limits`` says in words what the judge cannot see.
    """

    accuracy: float
    lo: float
    hi: float
    n: int
    longer_wins: float
    finished_wins: float
    by_flaw: dict[str, Share]
    limits: str


class Comparison(NamedTuple):
    """One strict preference as text."""

    prompt: str
    better: str
    worse: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderJudge:
    """A fitted judge. ``log_losses`` are the cross-validated ones, by ridge, in nats a pair (a coin: 0.693)."""

    encode: Encode = field(repr=False)
    weights: Floats = field(repr=False)  # (K,)
    knots: tuple[float, float]
    ridge: float
    log_losses: Mapping[float, float]
    num_pairs: int
    num_words: tuple[int, int]

    @classmethod
    def fit(cls, groups: Sequence[Group], encode: Encode, *, seed: int) -> EncoderJudge:
        """Fit on the strict preferences in the groups (ties are left out), with the ridge that cross-validates best.

        Eight folds, drawn with ``seed``, split by prompt; the ridge with the smallest log-loss on left-out pairs,
        scored as in use (without length), is refitted on all.

        Errors: DataError when there is no strict preference, when a group has no prompt, and for fewer than eight
        different prompts.
        """
        found = [comparison for group in groups for comparison in comparisons(group)]
        if not found:
            raise DataError("the judge needs pairs to learn from, and none of its groups holds a strict preference")
        prompts = [c.prompt for c in found]
        fold = folds_by_prompt(prompts, num_folds=NUM_FOLDS, seed=seed)
        better, worse = (_parts(encode, prompts, [c[side] for c in found]) for side in (1, 2))
        low, high = (float(q) for q in np.quantile([better.cosine, worse.cosine], [0.1, 0.5]))
        difference = _features(better, (low, high)) - _features(worse, (low, high))  # (N, K)
        losses = _cross_validate(difference, fold)
        # Among equals the stronger ridge, which promises less.
        ridge = min(RIDGES, key=lambda ridge: (losses[ridge], -ridge))
        lengths = [len(c[side].split()) for c in found for side in (1, 2)]
        return cls(
            encode=encode,
            weights=fit_bradley_terry(difference, ridge=ridge),
            knots=(low, high),
            ridge=ridge,
            log_losses=losses,
            num_pairs=len(found),
            num_words=(min(lengths), max(lengths)),
        )

    def score(self, prompts: Sequence[str], answers: Sequence[str]) -> Floats:
        """Return s(x, y), (N,): how much the judge likes each answer to its prompt; only differences mean something.

        A cut-off answer is judged on its text as it stands. An answer without words scores the least any answer could.
        Errors: DataError when the two lists differ in length.
        """
        if len(prompts) != len(answers):
            raise DataError(f"each answer needs its prompt: {len(prompts)} prompts, {len(answers)} answers")
        if not answers:
            return np.zeros(0)
        used = self.weights[:-1]  # without the length
        scores: Floats = _features(_parts(self.encode, prompts, answers), self.knots)[:, :-1] @ used
        scores[[not words(answer) for answer in answers]] = self._least()
        return scores

    def accuracy(self, groups: Sequence[Group]) -> JudgeCard:
        """Measure the judge on groups that it was not fitted on.

        Equal scores count one half; tied verdicts are left out. A pair's flaw is ``group.meta["flaw"]``, or "all".
        Errors: DataError when no group holds a strict preference.
        """
        found = [(group, pair) for group in groups for pair in pairs(group)]
        if not found:
            raise DataError("the judge cannot be measured: none of the groups holds a strict preference")
        told = [(group.answers[pair.better], group.answers[pair.worse]) for group, pair in found]
        prompts = [prompt_text(group) for group, _ in found]
        better, worse = (self.score(prompts, [sides[i].text for sides in told]) for i in (0, 1))
        right = [outcome(b, w) for b, w in zip(better.tolist(), worse.tolist(), strict=True)]
        by_flaw: dict[str, list[tuple[float, str]]] = {}
        for (group, _), hit, prompt in zip(found, right, prompts, strict=True):
            by_flaw.setdefault(str(group.meta.get("flaw", "all")), []).append((hit, prompt))
        shares = {flaw: _share(*zip(*hits, strict=True)) for flaw, hits in sorted(by_flaw.items())}
        whole = _share(right, prompts)
        return JudgeCard(
            accuracy=whole.mean,
            lo=whole.lo,
            hi=whole.hi,
            n=whole.n,
            longer_wins=_share([outcome(len(b.text.split()), len(w.text.split())) for b, w in told], prompts).mean,
            finished_wins=_share([outcome(b.finish != "length", w.finish != "length") for b, w in told], prompts).mean,
            by_flaw=shares,
            limits=self._limits(shares),
        )

    def _least(self) -> float:
        """A bound below every score: sentence vectors have length one, cosines lie in [-1, 1], repetition in [0, 1]."""
        first, rest = np.split(self.weights[:-NUM_PLAIN], 2)
        plain = self.weights[-NUM_PLAIN:-1]
        return -float(np.linalg.norm(first) + np.linalg.norm(rest) + PLAIN * np.abs(plain).sum())

    def _limits(self, shares: Mapping[str, Share]) -> str:
        low, high = self.num_words
        text = (
            f"A linear judge on a frozen sentence encoder, fitted on {self.num_pairs} pairs with answers of {low} to "
            f"{high} words. It sees topic, tone, order and repetition; it cannot check facts. Length has no weight of "
            "its own."
        )
        unsure = [flaw for flaw, share in shares.items() if share.lo <= 0.5]
        return f"{text} Not shown to beat a coin on: {', '.join(unsure)}." if unsure else text


def comparisons(group: Group) -> list[Comparison]:
    """Return the group's strict preferences as text."""
    return [
        Comparison(prompt_text(group), group.answers[pair.better].text, group.answers[pair.worse].text)
        for pair in pairs(group)
    ]


def prompt_text(group: Group) -> str:
    """Return what was asked: the last user message. Errors: DataError when there is none."""
    asked = [message.content for message in group.prompt if message.role == "user"]
    if not asked:
        raise DataError(f"group {group.id!r}: the judge needs a user's message as prompt, and there is none")
    return asked[-1]


def folds_by_prompt(prompts: Sequence[str], *, num_folds: int, seed: int) -> NDArray[np.int64]:
    """Return a fold for each row, (N,), equal prompts in one fold: prompts are shuffled and dealt out in turn.

    Prompts that differ only in case, spaces or punctuation are equal. Errors: DataError for fewer prompts than folds.
    """
    keys = [" ".join(words(prompt)) or prompt for prompt in prompts]
    distinct = sorted(set(keys))
    if len(distinct) < num_folds:
        raise DataError(
            f"the judge needs pairs on at least {num_folds} different prompts, and there are {len(distinct)}"
        )
    order = np.random.default_rng(derive(seed, "judge", "folds")).permutation(len(distinct))
    fold = {distinct[prompt]: turn % num_folds for turn, prompt in enumerate(order.tolist())}
    return np.array([fold[key] for key in keys])


def fit_bradley_terry(difference: Floats, *, ridge: float) -> Floats:
    """Return w, (K,), that minimises - sum_n log sigmoid(w . d_n) + ridge |w|² / 2, by L-BFGS; d is (N, K)."""

    def objective(weights: Floats) -> tuple[float, Floats]:
        margin = difference @ weights  # (N,)
        loss = -float(log_expit(margin).sum()) + ridge * float(weights @ weights) / 2
        return loss, ridge * weights - difference.T @ expit(-margin)

    start = np.zeros(difference.shape[1])
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-10})
    weights: Floats = found.x
    return weights


def repetition(text: str) -> float:
    """Return the share of words of four letters or more that stood among the 20 words before; 0 without such words.

    Looking back a fixed way keeps a long text from scoring higher than a short one.
    """
    found = words(text)
    long = [i for i, word in enumerate(found) if len(word) >= LONG_WORD]
    return sum(found[i] in found[max(0, i - LOOK_BACK) : i] for i in long) / len(long) if long else 0.0


class _Parts(NamedTuple):
    """What the features are made of, one row an answer."""

    cosine: Floats  # (N,)
    first: Floats  # (N, D)
    rest: Floats  # (N, D)
    repetition: Floats  # (N,)
    log_words: Floats  # (N,)


def _parts(encode: Encode, prompts: Sequence[str], answers: Sequence[str]) -> _Parts:
    split = [sentences(answer) for answer in answers]
    texts = [*prompts, *answers, *(s[0] for s in split), *(" ".join(s[1:] or s) for s in split)]
    prompt, whole, first, rest = encode(texts).reshape(4, len(answers), -1)  # (N, D) each
    return _Parts(
        cosine=(prompt * whole).sum(1),
        first=first,
        rest=rest,
        repetition=np.array([repetition(answer) for answer in answers]),
        log_words=np.log([max(1, len(answer.split())) for answer in answers]),
    )


def _features(parts: _Parts, knots: tuple[float, float]) -> Floats:
    """Return f, (N, K), the length last."""
    low, high = knots
    plain = (np.minimum(parts.cosine, low), np.maximum(parts.cosine, high), parts.repetition, parts.log_words)
    return np.hstack([parts.first, parts.rest, PLAIN * np.stack(plain, axis=1)])


def _cross_validate(difference: Floats, fold: NDArray[np.int64]) -> dict[float, float]:
    """Return the mean log-loss on left-out pairs by ridge, scored without the length."""
    losses = dict.fromkeys(RIDGES, 0.0)
    for k in range(NUM_FOLDS):
        out = fold == k
        for ridge in RIDGES:
            weights = fit_bradley_terry(difference[~out], ridge=ridge)
            losses[ridge] -= float(log_expit(difference[out, :-1] @ weights[:-1]).sum()) / len(fold)
    return losses


def _share(hits: Sequence[float], prompts: Sequence[str]) -> Share:
    """The share of right verdicts; a prompt's verdicts are averaged first, and the interval is over prompts."""
    rate = win_rate(hits, prompts=prompts)
    return Share(mean=rate.mean, lo=rate.lo, hi=rate.hi, n=len(hits))
