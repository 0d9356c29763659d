"""Ridge regression over a stream of batches, with the ridge chosen by what it would have predicted.

Letters: N rows of a batch, H features, C candidate ridges.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RIDGES = (0.01, 0.1, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, float("inf"))
"""Candidates, for features of unit variance; infinity predicts the mean whatever the features say."""

LIGHT = 1 / 32
"""The share of the ridge that light features bear."""


class LeastSquares:
    """y = w . x + b, refitted after every batch; older batches fade by ``decay``.

        minimise  sum_i decay^age_i (w . z_i + b - y_i)^2 / n + ridge |w|²,    z the features, each to unit variance

    The last ``light`` features bear a 32nd of the ridge. Every batch is first predicted with each candidate's weights
    and only then taken in; the ridge in use is the one whose predictions have had the least (fading) squared error. So
    a fit that only knows its own data by heart loses to the plain mean, and features that say nothing do no harm. Kept
    as sums in float64: H² numbers, whatever was seen.

    Sources: fading memory: recursive least squares; choosing by prediction of what comes next: Dawid 1984, "Statistical
    theory: the prequential approach".
    """

    def __init__(self, features: int, *, decay: float, light: int = 0) -> None:
        self.decay = decay
        self.penalty = torch.ones(features, dtype=torch.float64)
        self.penalty[features - light :] = LIGHT
        self.count = torch.zeros((), dtype=torch.float64)
        self.sum_x = torch.zeros(features, dtype=torch.float64)
        self.sum_y = torch.zeros((), dtype=torch.float64)
        self.sum_xx = torch.zeros(features, features, dtype=torch.float64)
        self.sum_xy = torch.zeros(features, dtype=torch.float64)
        self.weights = torch.zeros(len(RIDGES), features, dtype=torch.float64)  # (C, H)
        self.biases = torch.zeros(len(RIDGES), dtype=torch.float64)  # (C,)
        self.errors = torch.zeros(len(RIDGES), dtype=torch.float64)  # (C,)

    @property
    def best(self) -> int:
        """The candidate in use; before any was tried on new data, the mean."""
        return len(RIDGES) - 1 if not self.errors.any() else int(self.errors.argmin())

    @property
    def ridge(self) -> float:
        """The ridge in use."""
        return RIDGES[self.best]

    @property
    def solution(self) -> tuple[Tensor, Tensor]:
        """``w`` (H,) and ``b`` () of the candidate in use, float64; zeros before the first batch."""
        return self.weights[self.best], self.biases[self.best]

    def add(self, x: Tensor, y: Tensor) -> None:
        """Test every candidate on a batch, take the batch in, and solve anew: (N, H), (N,)."""
        x, y = x.detach().to("cpu", torch.float64), y.detach().to("cpu", torch.float64)
        if self.count > 0:
            errors = (x @ self.weights.T + self.biases - y[:, None]).square().sum(0)  # (C,)
            self.errors = self.decay * self.errors + errors
        self.count = self.decay * self.count + len(x)
        self.sum_x = self.decay * self.sum_x + x.sum(0)
        self.sum_y = self.decay * self.sum_y + y.sum()
        self.sum_xx = self.decay * self.sum_xx + x.T @ x
        self.sum_xy = self.decay * self.sum_xy + x.T @ y
        self._solve()

    def _solve(self) -> None:
        mean_x, mean_y = self.sum_x / self.count, self.sum_y / self.count
        covariance = self.sum_xx / self.count - mean_x.outer(mean_x)  # (H, H)
        variance = covariance.diagonal()
        moves = variance > 1e-12 * (variance + mean_x.square())  # what never changes, but for rounding, says nothing
        scale = torch.where(moves, variance, 1.0).rsqrt() * moves
        correlation = covariance * scale.outer(scale)
        with_y = (self.sum_xy / self.count - mean_x * mean_y) * scale  # (H,)
        idle = 1e-9 + (~moves).double()  # keeps the system solvable where a feature says nothing, or what others say
        for c, ridge in enumerate(RIDGES):
            if ridge == float("inf"):
                share = torch.zeros_like(with_y)
            else:
                share = torch.linalg.solve(correlation + torch.diag(ridge * self.penalty + idle), with_y)
            self.weights[c] = share * scale
            self.biases[c] = mean_y - self.weights[c] @ mean_x

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        names = ("count", "sum_x", "sum_y", "sum_xx", "sum_xy", "weights", "biases", "errors")
        return {name: getattr(self, name).clone() for name in names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state back."""
        for name, tensor in state.items():
            setattr(self, name, tensor.clone())
