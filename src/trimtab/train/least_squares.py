"""Ridge regression over a stream of batches, with the ridge chosen by what it would have predicted.

Letters: N rows of a batch, H features, C candidate ridges.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, float("inf"))
"""Candidates, in units of the features' mean variance; infinity predicts the mean whatever the features say."""


class LeastSquares:
    """y = w . x + b, refitted after every batch; older batches fade by ``decay``.

        minimise  sum_i decay^age_i (w . x_i + b - y_i)^2 / n + ridge m |w|²,    m the features' mean variance

    Every batch is first predicted with each candidate's weights and only then taken in; the ridge in use is the one
    whose predictions have had the least (fading) squared error. So a fit that only knows its own data by heart loses to
    the plain mean, and features that say nothing do no harm. Kept as sums in float64: H² numbers, whatever was seen.

    Sources: fading memory: recursive least squares; choosing by prediction of what comes next: Dawid 1984, "Statistical
    theory: the prequential approach".
    """

    def __init__(self, features: int, *, decay: float) -> None:
        self.decay = decay
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
        with_y = self.sum_xy / self.count - mean_x * mean_y  # (H,)
        values, vectors = torch.linalg.eigh(covariance)
        along = vectors.T @ with_y
        scale = values.clamp_min(0).mean()
        for c, ridge in enumerate(RIDGES):
            strength = values.clamp_min(0) + ridge * scale
            share = torch.where(strength > 0, along / strength, torch.zeros_like(along))
            self.weights[c] = vectors @ share
            self.biases[c] = mean_y - self.weights[c] @ mean_x

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors."""
        names = ("count", "sum_x", "sum_y", "sum_xx", "sum_xy", "weights", "biases", "errors")
        return {name: getattr(self, name).clone() for name in names}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Put a state back."""
        for name, tensor in state.items():
            setattr(self, name, tensor.clone())
