"""Ratings from pairwise comparisons: Bradley-Terry, with ties after Davidson or Rao and Kupper.

With margin d = theta_a - theta_b + beta'x of a battle (x: covariates such as the difference in length):

    half_win      P(a) = sigmoid(d); a tie counts as half a win and half a loss
    davidson      P(a) : P(tie) : P(b) = exp(d/2) : nu : exp(-d/2)
    rao_kupper    P(a) = sigmoid(d - log eta),  P(b) = sigmoid(-d - log eta),  P(tie) = the rest,  eta >= 1

All three log-likelihoods are concave in (theta, beta, log nu or log eta), so Newton's method finds the one maximum.

Sources: Bradley and Terry 1952 (Biometrika 39, 324); Ford 1957 (Am. Math. Monthly 64, 28) for when it exists; Davidson
1970 (JASA 65, 317); Rao and Kupper 1967 (JASA 62, 194); covariates as in the Arena's style control.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import exp, inf, log, nan
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, log_expit

from trimtab.errors import DataError
from trimtab.stats.battles import Battles, Floats, Indices, aggregate, components, take

TieModel = Literal["half_win", "davidson", "rao_kupper"]

RIDGE = 1e-6
"""Precision that only fixes numbers, not ratings: it moves a rating by less than a hundredth of a display point."""

SCALE = 400 / log(10)
"""Display points per nat: 400 points are odds of ten to one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratings:
    """Fitted ratings of M models: ``theta`` (M,) in nats, mean zero over the ranked, NaN for who cannot be ranked.

    ``components`` are the strongly connected groups, the largest first. ``tie`` is nu, eta, or NaN for half wins;
    ``coefficients`` (C,) belong to the covariates. ``prior_sd`` is the standard deviation of the Gaussian prior on
    theta, or None when there is none to speak of; with a prior everybody is ranked, and the prior must be shown.
    """

    names: tuple[str, ...]
    theta: Floats
    ties: TieModel
    tie: float
    coefficients: Floats
    log_likelihood: float
    components: tuple[tuple[str, ...], ...]
    prior_sd: float | None
    covariate_ridge: float

    @property
    def ranked(self) -> NDArray[np.bool_]:
        """Which models have a rating, (M,)."""
        return ~np.isnan(self.theta)

    @property
    def unrankable(self) -> tuple[str, ...]:
        """Names of the models that the comparisons cannot rank."""
        return tuple(name for name, ok in zip(self.names, self.ranked, strict=True) if not ok)

    @property
    def display(self) -> Floats:
        """Ratings as people read them, (M,): 1000 + 400/ln(10) theta."""
        return 1000 + SCALE * self.theta

    @property
    def ridge(self) -> float:
        """Precision of the prior on theta."""
        return RIDGE if self.prior_sd is None else 1 / self.prior_sd**2


def fit(
    rows: Battles, *, ties: TieModel = "half_win", prior_sd: float | None = None, covariate_ridge: float = 0.5
) -> Ratings:
    """Return the ratings that maximise sum_i w_i log P(outcome_i) - ridge/2 |theta|² - covariate_ridge/2 |beta|².

    Without ``prior_sd`` only the largest strongly connected group is rated (see `battles.components`); the others are
    NaN and named in `Ratings.unrankable`. With it, theta ~ N(0, prior_sd²) and everybody is rated.

    Edge cases: without ties nu = 0 and eta = 1, plain Bradley-Terry. Nobody comparable: all NaN. Errors: `DataError`
    for soft labels with a tie model, which needs to know which outcomes are ties.
    """
    cells, _ = aggregate(rows)
    groups = components(cells)
    member = np.zeros(rows.models, dtype=bool)
    if prior_sd is not None:
        member[:] = True
    elif groups and groups[0].size > 1:
        member[groups[0]] = True
    used = take(cells, member[cells.first] & member[cells.second] & (cells.weights > 0))
    blank = Ratings(
        names=rows.names,
        theta=np.full(rows.models, nan),
        ties=ties,
        tie=nan,
        coefficients=np.full(rows.covariates.shape[1], nan),
        log_likelihood=nan,
        components=tuple(tuple(rows.names[i] for i in group) for group in groups),
        prior_sd=prior_sd,
        covariate_ridge=covariate_ridge,
    )
    return solve(used, blank, member) if len(used) else blank


def solve(used: Battles, template: Ratings, member: NDArray[np.bool_]) -> Ratings:
    """Fit aggregated rows among the members, with a template's settings: the inner step of `fit` and its bootstrap.

    A template with ratings is where the search starts, which halves the steps; the maximum is the same.
    """
    problem = Problem.of(used, template.ties, int(member.sum()), member)
    m = problem.models
    start = problem.start(used.weights)
    if not np.isnan(template.theta[member]).any():
        start[: start.size - problem.has_tie] = np.concatenate([template.theta[member], template.coefficients])
    beta, value = _newton(problem, used.weights, start, template.ridge, template.covariate_ridge)
    theta = np.full(member.size, nan)
    theta[member] = beta[:m] - beta[:m].mean()
    tie = {"half_win": nan, "davidson": 0.0, "rao_kupper": 1.0}[template.ties]
    return replace(
        template,
        theta=theta,
        tie=exp(beta[-1]) if problem.has_tie else tie,
        coefficients=beta[m : m + used.covariates.shape[1]],
        log_likelihood=value,
    )


def row_terms(
    ties: TieModel, margin: Floats, outcome: Floats, tie: float
) -> tuple[Floats, tuple[Floats, Floats], tuple[Floats, Floats, Floats]]:
    """Return log P (N,), its slopes in (margin, tie), and minus its curvatures (margin², margin x tie, tie²).

    ``tie`` is log nu or log eta; half wins ignore it. With log nu = -inf or log eta = 0 there are no ties.
    """
    zero = np.zeros_like(margin)
    if ties == "half_win" or (tie == -inf if ties == "davidson" else tie == 0.0):
        p = expit(margin)
        return outcome * margin + log_expit(-margin), (outcome - p, zero), (p * (1 - p), zero, zero)
    drawn = (outcome == 0.5).astype(float)
    if ties == "davidson":
        largest = np.maximum(np.abs(margin) / 2, tie)
        odds = np.exp(np.stack([margin / 2, np.full_like(margin, tie), -margin / 2]) - largest)  # (3, N)
        total = odds.sum(axis=0)
        win, even, loss = odds / total
        half = (win - loss) / 2
        value = (outcome - 0.5) * margin + drawn * tie - largest - np.log(total)
        slopes = (outcome - 0.5 - half, drawn - even)
        return value, slopes, ((win + loss) / 4 - half**2, -even * half, even * (1 - even))
    up, down = (outcome >= 0.5).astype(float), (outcome <= 0.5).astype(float)
    u, v = expit(margin - tie), expit(-margin - tie)
    open_ = -np.expm1(-2 * tie)  # 1 - eta^-2
    value = up * log_expit(margin - tie) + down * log_expit(-margin - tie) + drawn * (2 * tie + np.log(open_))
    slopes = (up * (1 - u) - down * (1 - v), -up * (1 - u) - down * (1 - v) + drawn * 2 / open_)
    bend_u, bend_v = up * u * (1 - u), down * v * (1 - v)
    return value, slopes, (bend_u + bend_v, bend_v - bend_u, bend_u + bend_v + drawn * 4 * (1 - open_) / open_**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The rows of a fit among ``models`` members; parameters are (theta, beta, tie when there is one)."""

    ties: TieModel
    models: int
    first: Indices
    second: Indices
    outcome: Floats
    x: Floats
    has_tie: bool

    @staticmethod
    def of(rows: Battles, ties: TieModel, models: int, member: NDArray[np.bool_]) -> Problem:
        """Renumber the members; refuse soft labels where ties are modelled."""
        if ties != "half_win" and not np.isin(rows.outcome, (0.0, 0.5, 1.0)).all():
            raise DataError(f"ties={ties!r} takes outcomes 0, 0.5 and 1; soft labels need 'half_win'")
        place = np.cumsum(member) - 1
        return Problem(
            ties=ties,
            models=models,
            first=place[rows.first],
            second=place[rows.second],
            outcome=rows.outcome,
            x=rows.covariates,
            has_tie=ties != "half_win" and bool(np.any((rows.outcome == 0.5) & (rows.weights > 0))),
        )

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.models + int(self.x.shape[1]) + int(self.has_tie)

    def start(self, weights: Floats) -> Floats:
        """Equal models, and the tie parameter that their share of ties would give, (P,)."""
        beta = np.zeros(self.size)
        if self.has_tie:
            share = min(float(weights @ (self.outcome == 0.5)) / float(weights.sum()), 0.99)
            beta[-1] = log(2 * share / (1 - share)) if self.ties == "davidson" else log((1 + share) / (1 - share))
        return beta

    def margin(self, beta: Floats) -> Floats:
        """Return theta_a - theta_b + beta'x, (N,)."""
        theta, slope = beta[: self.models], beta[self.models : self.models + self.x.shape[1]]
        found: Floats = theta[self.first] - theta[self.second] + self.x @ slope
        return found

    def tie(self, beta: Floats) -> float:
        """Return log nu or log eta; what stands for "no ties" when there are none."""
        return float(beta[-1]) if self.has_tie else -inf if self.ties == "davidson" else 0.0

    def pull(self, slope: Floats, tie_slope: Floats) -> Floats:
        """Sum row slopes to parameters, (P,)."""
        m = self.models
        theta = np.bincount(self.first, slope, m) - np.bincount(self.second, slope, m)
        return np.concatenate([theta, slope @ self.x, [tie_slope.sum()] if self.has_tie else []])

    def information(self, bend: Floats, cross: Floats, tie_bend: Floats) -> Floats:
        """Sum row curvatures to parameters, (P, P)."""
        m, c = self.models, self.x.shape[1]
        found = np.zeros((self.size, self.size))
        between = np.bincount(self.first * m + self.second, bend, m * m).reshape(m, m)
        between = between + between.T
        found[:m, :m] = np.diag(between.sum(axis=1)) - between
        weighted = bend[:, None] * self.x  # (N, C)
        for j in range(c):
            column = np.bincount(self.first, weighted[:, j], m) - np.bincount(self.second, weighted[:, j], m)
            found[:m, m + j] = found[m + j, :m] = column
        found[m : m + c, m : m + c] = self.x.T @ weighted
        if self.has_tie:
            found[-1, :-1] = found[:-1, -1] = self.pull(cross, tie_bend)[:-1]
            found[-1, -1] = tie_bend.sum()
        return found


def _newton(
    problem: Problem, weights: Floats, start: Floats, ridge: float, covariate_ridge: float
) -> tuple[Floats, float]:
    """Maximise by Newton steps, halved while they do not climb; return the parameters and the log-likelihood."""
    m, size = problem.models, problem.size
    penalty = np.concatenate([np.full(m, ridge), np.full(problem.x.shape[1], covariate_ridge), np.full(size, RIDGE)])[
        :size
    ]
    beta = start

    def objective(at: Floats) -> float:
        if problem.ties == "rao_kupper" and problem.has_tie and at[-1] <= 0:
            return -inf
        value, _, _ = row_terms(problem.ties, problem.margin(at), problem.outcome, problem.tie(at))
        return float(weights @ value - 0.5 * penalty @ at**2)

    current = objective(beta)
    for _ in range(100):
        _, slopes, bends = row_terms(problem.ties, problem.margin(beta), problem.outcome, problem.tie(beta))
        gradient = problem.pull(*(weights * slope for slope in slopes)) - penalty * beta
        information = problem.information(*(weights * bend for bend in bends)) + np.diag(penalty)
        information[:m, :m] += 1 / m  # the likelihood does not see the mean of theta; the penalty puts it at zero
        step = np.linalg.solve(information, gradient)
        length, new = 1.0, objective(beta + step)
        if np.abs(step).max() < 1e-6 and new > -inf:  # so near, rounding hides the climb; one full step ends it
            beta, current = beta + step, new
            break
        while new < current and length > 1e-8:
            length /= 2
            new = objective(beta + length * step)
        beta, current = beta + length * step, max(new, current)
    return beta, current + 0.5 * float(penalty @ beta**2)


def log_loss(rows: Battles, ratings: Ratings) -> float:
    """Return the weighted mean of -log P(outcome) under fitted ratings, in nats.

    Battles of the unrankable are left out. Half wins give no probability to a tie, so their number cannot be
    compared with the other two.
    """
    ok = ratings.ranked[rows.first] & ratings.ranked[rows.second] & (rows.weights > 0)
    kept = take(rows, ok)
    if not len(kept):
        return nan
    if ratings.ties != "half_win" and not np.isin(kept.outcome, (0.0, 0.5, 1.0)).all():
        raise DataError(f"ties={ratings.ties!r} takes outcomes 0, 0.5 and 1; soft labels need 'half_win'")
    margin = ratings.theta[kept.first] - ratings.theta[kept.second] + kept.covariates @ ratings.coefficients
    tie = 0.0 if ratings.ties == "half_win" else log(ratings.tie) if ratings.tie > 0 else -inf
    value, _, _ = row_terms(ratings.ties, margin, kept.outcome, tie)
    if ratings.ties != "half_win" and tie == (-inf if ratings.ties == "davidson" else 0.0):
        value = np.where(kept.outcome == 0.5, -inf, value)
    return float(-(kept.weights @ value) / kept.weights.sum())


def choose_ties(rows: Battles, *, folds: int = 5, seed: int = 0) -> dict[TieModel, float]:
    """Return the held-out log-loss of the two tie models, the better one first (`folds` random parts)."""
    part = np.random.default_rng(seed).permutation(len(rows)) % folds
    found: dict[TieModel, float] = {}
    models: tuple[TieModel, ...] = ("davidson", "rao_kupper")
    for ties in models:
        losses = [log_loss(take(rows, part == k), fit(take(rows, part != k), ties=ties)) for k in range(folds)]
        found[ties] = float(np.mean(losses))
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def elo(rows: Battles, *, k: float = 4.0) -> Floats:
    """Return online Elo ratings after the battles in their order, (M,); a ticker, never a decision: order matters.

    R_a += k (y - 1 / (1 + 10^((R_b - R_a) / 400))), from 1000 each. Source: Elo 1978.
    """
    ratings = np.full(rows.models, 1000.0)
    for a, b, y in zip(rows.first.tolist(), rows.second.tolist(), rows.outcome.tolist(), strict=True):
        change = k * (y - 1 / (1 + 10 ** ((ratings[b] - ratings[a]) / 400)))
        ratings[a] += change
        ratings[b] -= change
    return ratings


def win_probability(ratings: Ratings, first: ArrayLike, second: ArrayLike) -> Floats:
    """Return sigmoid(theta_a - theta_b) for indices of models: the chance that a wins, ties left aside."""
    found: Floats = expit(ratings.theta[np.asarray(first)] - ratings.theta[np.asarray(second)])
    return found
