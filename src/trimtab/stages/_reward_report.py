"""How good a reward model is on held-out verdicts: accuracy and where it comes from, calibration, regression.

Everything is a flat number ``heldout/...``. Breakdowns name at most ``MOST`` sources, raters or attributes, those with
the most verdicts.

    accuracy, accuracy_lo, _hi    pairs whose better answer has the higher score, a tie counting one half; over prompts
    longer_wins, finished_wins    the same for two rules that know nothing: the longer, the one that was not cut off
    accuracy/FLAW                 by the flaw that was planted in the worse answer
    by_source/NAME                by where the prompt comes from, in the words of the data
    by_rater/NAME                 by who said it, from 20 verdicts on
    by_length/...                 by how much longer the better answer is
    ece, brier                    is a stated chance of .8 right in 8 of 10 cases?
    mse, mse_of_mean, explained/ATTRIBUTE, pearson/ATTRIBUTE, spearman/ATTRIBUTE     labels

A chance is ``sigmoid(std * (score - other))``, with the deviation that the scores had before they were rescaled to 1:
that is what Bradley-Terry and Plackett-Luce were trained to make true. Models of labels state none for a pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from torch import Tensor

from trimtab.records.types import Group, pairs
from trimtab.rewards.reward_model import Card
from trimtab.stages._reward_labels import LabelScale
from trimtab.stats.winrate import outcome, win_rate
from trimtab.tensors.masked import correlation
from trimtab.tensors.tree import TokenGroup

BINS = 10
MOST = 8
FEW_VERDICTS = 20
ROUNDING = 1e-9
SOURCES = ("source", "dataset", "subset", "bench", "domain", "category", "topic", "type")
"""The fields of ``meta`` that may say where a prompt comes from; the first that is there counts."""

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two answers to one prompt, the one that was said to be better first, and what the model makes of them."""

    prompt: Hashable
    scores: tuple[float, float]
    lengths: tuple[int, int]
    finished: tuple[bool, bool] = (True, True)
    chance: float = 1.0
    rater: str | None = None
    source: str | None = None
    flaw: str | None = None

    @property
    def hit(self) -> float:
        """1 when the better answer has the higher score, 1/2 when the scores are equal."""
        return outcome(*self.scores)


@dataclass(frozen=True, slots=True)
class _Scored:
    """One answer with its score."""

    group: Group
    item: TokenGroup
    index: int
    score: float

    @property
    def length(self) -> int:
        """Tokens."""
        return len(self.item.answers[self.index])

    @property
    def finished(self) -> bool:
        """It was not cut off."""
        return self.group.answers[self.index].finish != "length"


# --- pairs ------------------------------------------------------------------------------------------------------------


def compare_verdicts(
    groups: Sequence[Group], tokens: Sequence[TokenGroup], scores: Sequence[Sequence[float]]
) -> list[Compared]:
    """Every strict preference of some Groups, those of rankings too."""
    found: list[Compared] = []
    for group, item, own in zip(groups, tokens, scores, strict=True):
        answers = [_Scored(group, item, i, score) for i, score in enumerate(own)]
        found += [_compared(answers[p.better], answers[p.worse], p.probability, p.rater) for p in pairs(group)]
    return found


def compare_labels(
    groups: Sequence[Group],
    tokens: Sequence[TokenGroup],
    scores: Sequence[Sequence[float]],
    scale: LabelScale,
    card: Card,
) -> list[Compared]:
    """Every pair of answers to one prompt that their labels put in order, weighted as the score weighs them.

    Only attributes that both answers have count. Answers to one prompt may stand in several Groups; the labels of one
    that stands in several are averaged. Plain text without a prompt is compared with nothing.
    """
    weights = np.array([a.weight / (1.0 if scale.standardised else a.label_std) for a in card.attributes])
    answers: dict[tuple[int, ...], dict[tuple[int, ...], tuple[_Scored, list[list[float]]]]] = {}
    for group, item, own in zip(groups, tokens, scores, strict=True):
        for i, row in scale.table(group).items():
            _, rows = answers.setdefault(item.prompt, {}).setdefault(
                item.answers[i], (_Scored(group, item, i, own[i]), [])
            )
            rows.append(row)
    found: list[Compared] = []
    for prompt, same in answers.items():
        labelled = [(answer, _column_means(np.array(rows))) for answer, rows in same.values()]
        for (one, ones), (other, others) in combinations(labelled, 2) if prompt else ():
            lead = float(np.nansum(weights * (ones - others)))
            if abs(lead) > ROUNDING:
                found.append(_compared(one, other) if lead > 0 else _compared(other, one))
    return found


def _column_means(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means of what is known in each column, (n, K) -> (K,); ``nan`` where nothing is."""
    known = ~np.isnan(rows)
    counts = known.sum(0)
    return np.where(counts > 0, np.where(known, rows, 0.0).sum(0) / np.maximum(counts, 1), np.nan)


def _compared(best: _Scored, worst: _Scored, chance: float | None = None, rater: str | None = None) -> Compared:
    flaw = best.group.meta.get("flaw")
    return Compared(
        prompt=best.item.prompt,
        scores=(best.score, worst.score),
        lengths=(best.length, worst.length),
        finished=(best.finished, worst.finished),
        chance=1.0 if chance is None else chance,
        rater=rater,
        source=_source(best.group),
        flaw=None if flaw is None else str(flaw),
    )


def report_accuracy(found: Sequence[Compared]) -> Metrics:
    """Accuracy beside "the longer wins". Pairs of one prompt are averaged first, so the interval is over prompts.

    A soft label of 1/2 names no better answer, and is left out.
    """
    found = [c for c in found if c.chance != 0.5]
    share = win_rate([c.hit for c in found], prompts=[c.prompt for c in found])
    return {
        "heldout/accuracy": share.mean,
        "heldout/accuracy_lo": share.lo,
        "heldout/accuracy_hi": share.hi,
        "heldout/prompts": float(share.n),
        "heldout/n": float(len(found)),
        "heldout/longer_wins": _mean([outcome(*c.lengths) for c in found]),
    }


def report_pairs(found: Sequence[Compared], *, std: float | None) -> Metrics:
    """Accuracy beside the two rules, its breakdowns, and, given the scores' deviation before rescaling, calibration.

    The breakdowns are means over pairs.
    """
    told = [c for c in found if c.chance != 0.5]
    metrics = {
        **report_accuracy(told),
        "heldout/finished_wins": _mean([outcome(*c.finished) for c in told]),
        **_by("accuracy", told, lambda c: c.flaw, most=None),
        **_by("by_source", told, lambda c: c.source, least=2),
        **_by("by_rater", told, lambda c: c.rater, few=FEW_VERDICTS),
        **_by_length(told),
    }
    if std is not None:
        metrics |= _calibration([std * (c.scores[0] - c.scores[1]) for c in found], [c.chance for c in found])
    return metrics


def _by(
    name: str, found: Sequence[Compared], key: Callable[[Compared], str | None], *, most: int | None = MOST,
    least: int = 1, few: int = 1,
) -> Metrics:  # fmt: skip
    """Accuracy by something, for the ``most`` frequent of its values; nothing when there are fewer than ``least``."""
    kinds: dict[str, list[float]] = {}
    for c in found:
        if (value := key(c)) is not None:
            kinds.setdefault(value, []).append(c.hit)
    enough = {value: hits for value, hits in kinds.items() if len(hits) >= few}
    named = sorted(sorted(enough, key=lambda value: (-len(enough[value]), value))[:most])
    return {f"heldout/{name}/{value}": _mean(enough[value]) for value in named} if len(enough) >= least else {}


def _by_length(found: Sequence[Compared]) -> Metrics:
    """Accuracy where the shorter and where the longer answer is the better one, and by terciles of the difference.

    The difference is tokens of the better answer less those of the worse one; its third ``high`` holds the pairs whose
    better answer is longest beside the worse one. A model that goes by length is right there and wrong in ``low``.
    """
    differences = np.array([c.lengths[0] - c.lengths[1] for c in found])
    low, high = np.quantile(differences, [1 / 3, 2 / 3])
    parts = {
        "shorter_preferred": differences < 0,
        "longer_preferred": differences > 0,
        "tercile_low": differences <= low,
        "tercile_middle": (differences > low) & (differences <= high),
        "tercile_high": differences > high,
    }
    hits = np.array([c.hit for c in found])
    return {f"heldout/by_length/{name}": float(hits[part].mean()) for name, part in parts.items() if part.any()}


def _calibration(leads: ArrayLike, chances: ArrayLike) -> Metrics:
    """ECE and Brier score of ``sigmoid(lead)`` as the chance that the first of two is better; ``chances`` is the truth.

    A pair is counted from the side that the model prefers: stated chance ``max(p, 1 - p)`` against how often that side
    was right. From the side of the better answer the truth would be 1 everywhere.
    """
    x, truth = np.asarray(leads, dtype=float), np.asarray(chances, dtype=float)
    right = np.where(x > 0, truth, np.where(x < 0, 1 - truth, 0.5))
    return {
        "heldout/ece": calibration_error(expit(np.abs(x)), right),
        "heldout/brier": float(np.mean((expit(x) - truth) ** 2)),
    }


def calibration_error(stated: ArrayLike, happened: ArrayLike, *, bins: int = BINS) -> float:
    """Expected calibration error over bins of equal count: sum_b n_b / n |mean stated - mean happened|.

    ``happened`` is 1, 0, or a share. Equal stated chances get the mean of what happened first, so the order of the
    items does not matter. With few items a bin it is too high even for a perfect model.

    Source: Naeini et al. 2015; equal counts: Nixon et al. 2019 (arXiv:1904.01685).
    """
    p, y = np.asarray(stated, dtype=float), np.asarray(happened, dtype=float)
    levels, place, counts = np.unique(p, return_inverse=True, return_counts=True)
    y = (np.bincount(place, weights=y, minlength=len(levels)) / counts)[place]
    order = np.argsort(p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if part.size]
    return float(sum(part.size * abs(p[part].mean() - y[part].mean()) for part in parts) / p.size)


# --- labels -----------------------------------------------------------------------------------------------------------


def report_labels(
    groups: Sequence[Group], tokens: Sequence[TokenGroup], outputs: Sequence[Tensor], scale: LabelScale, card: Card
) -> Metrics:
    """What the attributes' heads say (k, K) against held-out labels, in units of the training labels' deviation.

    ``mse_of_mean`` is that of always saying the training mean; ``explained`` is 1 - mse / mse_of_mean by attribute.
    Chances (``bce``) are compared as chances, and their calibration is told. Of labels that are 1 or 0, as thumbs are,
    ``auc`` is how often a 1 stands above a 0 of any prompt, ``longer_auc`` how often it is the longer one.
    """
    rows = [
        (out[answer], row, len(item.answers[answer]))
        for group, item, out in zip(groups, tokens, outputs, strict=True)
        for answer, row in scale.table(group).items()
    ]
    said = torch.stack([out for out, _, _ in rows]).double().numpy()  # (N, K)
    lengths = np.array([length for _, _, length in rows])
    if not scale.standardised:
        said = expit(said)
    labels = np.array([row for _, row, _ in rows])  # (N, K)
    known = ~np.isnan(labels)
    middle = np.array([0.0 if scale.standardised else a.label_mean for a in card.attributes])
    errors, plain = (said - labels)[known] ** 2, (middle - labels)[known] ** 2
    metrics = {
        "heldout/mse": float(errors.mean()), "heldout/mse_of_mean": float(plain.mean()),
        "heldout/labels": float(known.sum()), "heldout/missing_labels": float((~known).sum()),
    }  # fmt: skip
    most = Counter({k: int(known[:, k].sum()) for k in range(known.shape[1])}).most_common(MOST)
    for k, count in sorted(most):
        if count:
            mine, theirs = said[known[:, k], k], labels[known[:, k], k]
            metrics |= dict(_by_attribute(card.attributes[k].name, mine, theirs, float(middle[k])))
            if not scale.standardised and set(theirs.tolist()) == {0.0, 1.0}:
                above = {"auc": mine, "longer_auc": lengths[known[:, k]]}
                name = card.attributes[k].name
                metrics |= {f"heldout/{what}/{name}": auc(values, theirs == 1) for what, values in above.items()}
    if not scale.standardised:
        metrics |= {
            "heldout/ece": calibration_error(said[known], labels[known]),
            "heldout/brier": metrics["heldout/mse"],
        }
    return metrics


def auc(values: NDArray[Any], yes: NDArray[np.bool_]) -> float:
    """How often a value of a yes is above that of a no, ties half: the area under the ROC curve (Mann and Whitney)."""
    from scipy.stats import rankdata

    count = int(yes.sum())
    above = float(rankdata(values)[yes].sum()) - count * (count + 1) / 2
    return above / (count * (len(yes) - count))


def _by_attribute(
    name: str, said: NDArray[np.float64], labels: NDArray[np.float64], middle: float
) -> Iterator[tuple[str, float]]:
    from scipy.stats import rankdata

    plain = float(((labels - middle) ** 2).mean())
    if plain > 0:
        yield f"heldout/explained/{name}", 1 - float(((said - labels) ** 2).mean()) / plain
    yield f"heldout/pearson/{name}", _correlation(said, labels)
    yield f"heldout/spearman/{name}", _correlation(rankdata(said), rankdata(labels))


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """Pearson's; 0 where a side is constant."""
    return float(correlation(torch.from_numpy(x), torch.from_numpy(y)))


def _source(group: Group) -> str | None:
    meta: Mapping[str, object] = group.meta
    found = next((meta[key] for key in SOURCES if isinstance(meta.get(key), str | int)), None)
    return None if found is None else str(found)[:60]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
