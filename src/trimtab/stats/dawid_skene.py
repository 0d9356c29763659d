"""What is true, and how each rater errs, from labels alone: Dawid and Skene's model, fitted by EM.

    P(labels of i) = sum_j p_j prod_k prod_l pi_kjl^(n_ikl)

I items, K raters, J classes. p_j is how common class j is, pi_kjl how often rater k says l when the truth is j, n_ikl
how often k said l of i (repeats allowed).

Source: Dawid and Skene 1979 (Appl. Stat. 28, 20), eq. 2.3 to 2.7 and 3.1.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from trimtab.errors import DataError
from trimtab.stats.battles import Floats

TINY = 1e-300


@dataclass(frozen=True, slots=True, kw_only=True)
class DawidSkene:
    """``posterior`` (I, J), ``priors`` (J,), ``confusion`` (K, J, J): truth along the rows, what was said across.

    ``counts`` (K,) is how many labels each rater gave. ``log_likelihood`` is of the labels, without the smoothing.
    """

    items: tuple[Hashable, ...]
    raters: tuple[Hashable, ...]
    classes: tuple[Hashable, ...]
    posterior: Floats
    priors: Floats
    confusion: Floats
    counts: Floats
    log_likelihood: float
    iterations: int
    converged: bool

    @property
    def labels(self) -> tuple[Hashable, ...]:
        """The likeliest class of each item."""
        return tuple(self.classes[j] for j in np.argmax(self.posterior, axis=1))

    @property
    def accuracy(self) -> Floats:
        """How often each rater is right, (K,): sum_j p_j pi_kjj."""
        found: Floats = np.einsum("kjj,j->k", self.confusion, self.priors)
        return found


def dawid_skene(
    items: Sequence[Hashable],
    raters: Sequence[Hashable],
    labels: Sequence[Hashable],
    *,
    classes: Sequence[Hashable],
    gold: Mapping[Hashable, Hashable] | None = None,
    smoothing: float = 1.0,
    iterations: int = 2000,
    tolerance: float = 1e-8,
) -> DawidSkene:
    """Return the EM estimate from one row a label, starting from each item's shares of labels.

    ``smoothing`` is the weight, in labels for each truth, of a belief drawn from all raters together (their pooled
    confusion, add-one): a rater with few labels is thought to be an ordinary one. 0 is the paper's estimate. ``gold``
    items have their posterior held at the known class. Stops when no posterior moves by more than ``tolerance``.

    Edge cases: with smoothing 0 a class that nobody ever says gets probability 0. Errors: `DataError` for lists that
    differ in length, no labels, a label or a gold answer that is no class.
    """
    if not len(items) == len(raters) == len(labels) or not len(items):
        raise DataError(f"{len(items)} items, {len(raters)} raters, {len(labels)} labels: one of each a row is needed")
    if smoothing < 0:
        raise DataError("smoothing cannot be negative")
    known = {one: j for j, one in enumerate(classes)}
    for label in (*labels, *(gold or {}).values()):
        if label not in known:
            raise DataError(f"label {label!r} is not one of the classes {', '.join(map(str, classes))}")
    item_at = {item: i for i, item in enumerate(dict.fromkeys(items))}
    rater_at = {rater: k for k, rater in enumerate(dict.fromkeys(raters))}
    n = np.zeros((len(item_at), len(rater_at), len(known)))
    np.add.at(n, ([item_at[i] for i in items], [rater_at[k] for k in raters], [known[l] for l in labels]), 1.0)  # noqa: E741
    clamp = {item_at[item]: known[answer] for item, answer in (gold or {}).items() if item in item_at}
    posterior = _clamped(n.sum(axis=1) / n.sum(axis=(1, 2))[:, None], clamp)
    done, step = False, 0
    while not done and step < iterations:
        priors, confusion = _maximise(n, posterior, smoothing)
        new, value = _expect(n, priors, confusion, clamp)
        done = float(np.abs(new - posterior).max()) < tolerance
        posterior, step = new, step + 1
    priors, confusion = _maximise(n, posterior, smoothing)
    posterior, value = _expect(n, priors, confusion, clamp)
    return DawidSkene(
        items=tuple(item_at),
        raters=tuple(rater_at),
        classes=tuple(classes),
        posterior=posterior,
        priors=priors,
        confusion=confusion,
        counts=n.sum(axis=(0, 2)),
        log_likelihood=value,
        iterations=step,
        converged=done,
    )


def _maximise(n: Floats, posterior: Floats, smoothing: float) -> tuple[Floats, Floats]:
    """Eq. 2.3 and 2.4: priors (J,) and confusions (K, J, J); a rater who never met a class says anything of it."""
    said = np.tensordot(posterior, n, axes=(0, 0)).transpose(1, 0, 2)  # (K, J, L)
    classes = posterior.shape[1]
    if smoothing:
        pooled = said.sum(axis=0) + 1.0 / classes
        said = said + smoothing * pooled / pooled.sum(axis=1, keepdims=True)
    total = said.sum(axis=2, keepdims=True)
    confusion = np.divide(said, total, out=np.full_like(said, 1.0 / classes), where=total > 0)
    return posterior.mean(axis=0), confusion


def _expect(n: Floats, priors: Floats, confusion: Floats, clamp: Mapping[int, int]) -> tuple[Floats, float]:
    """Eq. 2.5 and 2.7: posteriors (I, J) and the log-likelihood; what is held counts with its known class."""
    log_confusion = np.log(np.maximum(confusion, TINY))  # 0 times minus infinity would be no number
    joint = np.tensordot(n, log_confusion, axes=((1, 2), (0, 2))) + np.log(np.maximum(priors, TINY))  # (I, J)
    for i, j in clamp.items():
        joint[i, np.arange(joint.shape[1]) != j] = -np.inf
    value = logsumexp(joint, axis=1)
    return _clamped(np.exp(joint - value[:, None]), clamp), float(value.sum())


def _clamped(posterior: Floats, clamp: Mapping[int, int]) -> Floats:
    """Hold what is known."""
    for i, j in clamp.items():
        posterior[i] = 0.0
        posterior[i, j] = 1.0
    return posterior
