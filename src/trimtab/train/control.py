"""Numbers that a run adjusts as it goes: the KL coefficient and the scale of the rewards.

Plain Python floats, so a state is JSON and comes back bit for bit. Each class has ``state()`` and ``load(state)``; what
the recipe fixes (targets, kinds) is not state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from torch import Tensor

from trimtab.errors import ConfigError, DataError, InvariantError, RewardError, did_you_mean

MAX_ERROR = 0.2
RewardNorm = Literal["none", "std", "mean_std"]
REWARD_NORMS: tuple[RewardNorm, ...] = get_args(RewardNorm)


class KLControl(Protocol):
    """Decides the weight ``beta`` of the KL penalty."""

    beta: float

    def update(self, kl: float, episodes: int) -> None:
        """Take in the KL of one rollout: the mean over answers of the *sum* over tokens, and how many answers."""

    def state(self) -> dict[str, float]:
        """Return what changes during a run."""

    def load(self, state: Mapping[str, float]) -> None:
        """Take a state back."""


@dataclass(slots=True)
class FixedKL:
    """A constant ``beta``."""

    beta: float

    def __post_init__(self) -> None:
        """Refuse a negative beta."""
        _not_negative(self.beta)

    def update(self, kl: float, episodes: int) -> None:
        """Change nothing."""

    def state(self) -> dict[str, float]:
        """Return ``beta``."""
        return {"beta": self.beta}

    def load(self, state: Mapping[str, float]) -> None:
        """Take ``beta`` back."""
        (self.beta,) = _read(state, "beta")


@dataclass(slots=True)
class AdaptiveKL:
    """A proportional controller that steers the KL towards a target.

        e = clip(kl / target - 1, -0.2, 0.2);    beta <- beta (1 + e episodes / horizon)

    ``kl`` is the mean over answers of the sum over tokens, in nats; ``episodes`` counts answers, not batches.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2; target 6 and horizon 10000 in their code.
    """

    beta: float
    target: float
    horizon: float

    def __post_init__(self) -> None:
        """Refuse numbers that cannot steer."""
        _not_negative(self.beta)
        if not (self.target > 0 and self.horizon > 0):
            raise ConfigError(f"KL target and horizon must be above 0, not {self.target} and {self.horizon}")

    def update(self, kl: float, episodes: int) -> None:
        """Move ``beta`` after a rollout of ``episodes`` answers.

        Raises ``InvariantError`` when ``kl`` is not finite, ``ConfigError`` when one update could make beta negative.
        """
        if not math.isfinite(kl):
            raise InvariantError(f"the KL to the reference is {kl}: some log-probability is not finite")
        if MAX_ERROR * episodes >= self.horizon:
            raise ConfigError(
                f"KL horizon {self.horizon:g} is too short for {episodes} answers per update: "
                f"beta could fall to zero at once; it must be above {MAX_ERROR * episodes:g}"
            )
        error = min(max(kl / self.target - 1, -MAX_ERROR), MAX_ERROR)
        self.beta *= 1 + error * episodes / self.horizon

    def state(self) -> dict[str, float]:
        """Return ``beta``."""
        return {"beta": self.beta}

    def load(self, state: Mapping[str, float]) -> None:
        """Take ``beta`` back."""
        (self.beta,) = _read(state, "beta")


@dataclass(slots=True)
class RunningMoments:
    """Mean and biased variance of all numbers seen so far.

        Welford:  d = x - mean;  mean += d / n;  m2 += d (x - mean);    variance = m2 / n

    Nothing seen: mean 0, variance 0. Equal numbers give a variance of exactly 0.

    Source: Welford 1962; merging: Chan, Golub and LeVeque 1979.
    """

    count: float = 0.0
    mean: float = 0.0
    m2: float = 0.0

    @property
    def variance(self) -> float:
        """The biased variance."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """The square root of the biased variance."""
        return math.sqrt(self.variance)

    def update(self, values: Iterable[float]) -> None:
        """Take in more numbers."""
        for value in values:
            self.count += 1
            delta = value - self.mean
            self.mean += delta / self.count
            self.m2 += delta * (value - self.mean)

    def merge(self, other: RunningMoments) -> None:
        """Take in all that another has seen (another rank's, say)."""
        count = self.count + other.count
        if not count:
            return
        delta = other.mean - self.mean
        self.mean += delta * (other.count / count)
        self.m2 += other.m2 + delta * delta * (self.count * other.count / count)
        self.count = count

    def state(self) -> dict[str, float]:
        """Return the three numbers."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load(self, state: Mapping[str, float]) -> None:
        """Take the three numbers back."""
        self.count, self.mean, self.m2 = _read(state, "count", "mean", "m2")


@dataclass(slots=True)
class RewardNormaliser:
    """Bring scores to a common scale with the statistics of all scores seen so far, then clip.

        none      score
        std       score / std                keeps the sign and the zero
        mean_std  (score - mean) / std

    and, with ``clip``, to [-clip, clip]. As long as all scores seen are equal, nothing is divided (std counts as 1).
    ``update`` comes before ``normalise``, so that a batch is part of its own statistics.

    Source: PPO-max, Zheng et al. 2023 (arXiv:2307.04964), "score reparameterization".
    """

    kind: RewardNorm = "none"
    clip: float | None = None
    moments: RunningMoments = field(default_factory=RunningMoments)

    def __post_init__(self) -> None:
        """Refuse an unknown kind and an empty range."""
        if self.kind not in REWARD_NORMS:
            raise ConfigError(f"no reward normalisation {self.kind!r}{did_you_mean(str(self.kind), REWARD_NORMS)}")
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"the reward clip must be above 0, not {self.clip}")

    def update(self, scores: Tensor) -> None:
        """Take in a batch of scores, (B,). Raises ``RewardError`` when one is not finite, and takes in none."""
        values: list[float] = scores.detach().tolist()
        for index, value in enumerate(values):
            if not math.isfinite(value):
                raise RewardError(f"the score of answer {index} of the batch is {value}")
        self.moments.update(values)

    def normalise(self, scores: Tensor) -> Tensor:
        """Scale a batch of scores, (B,) -> (B,), and change no statistics."""
        std = self.moments.std or 1.0
        if self.kind == "mean_std":
            scores = (scores - self.moments.mean) / std
        elif self.kind == "std":
            scores = scores / std
        return scores if self.clip is None else scores.clamp(-self.clip, self.clip)

    def state(self) -> dict[str, float]:
        """Return the statistics."""
        return self.moments.state()

    def load(self, state: Mapping[str, float]) -> None:
        """Take the statistics back."""
        self.moments.load(state)


def _not_negative(beta: float) -> None:
    if not beta >= 0:
        raise ConfigError(f"beta weighs a penalty, so it cannot be {beta}")


def _read(state: Mapping[str, float], *names: str) -> tuple[float, ...]:
    """Return the named numbers, or say that the state is another's."""
    if set(state) != set(names):
        raise DataError(f"saved state has {', '.join(sorted(state)) or 'nothing'}; wanted: {', '.join(names)}")
    return tuple(float(state[name]) for name in names)
