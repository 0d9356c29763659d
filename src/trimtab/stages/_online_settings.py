"""The options of an online stage that belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from trimtab.tensors.shaping import EosShaping


@dataclass(frozen=True, slots=True, kw_only=True)
class KL:
    """KL to the reference: ``beta`` per nat, adapted towards ``target`` nats an answer if one is given.

    In the reward or in the loss, as the method has it; the same ``beta`` is not the same strength in both places.
    ``credit``: ReMax's release holds a token only to its own penalty (token), not to all that is still to come (rest).
    """

    beta: float = 0.05
    target: float | None = None
    horizon: int = 10000
    credit: Literal["rest", "token"] = "rest"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What happens to a score before it becomes a reward.

    ``normalise``: running standardisation. ``clip``: bounds on its result. ``eos``: after that, an answer that the cap
    cut scores ``-penalty`` (replace), loses ``penalty`` (subtract), or teaches nothing (leave_out). ``overlong``: over
    that many tokens before the cap an answer loses more and more, up to ``penalty`` (DAPO, eq. 13).
    """

    eos: EosShaping = "replace"
    penalty: Annotated[float, Field(ge=0)] = 1.0
    overlong: Annotated[int, Field(ge=0)] = 0
    normalise: Literal["none", "std", "mean_std"] = "none"
    clip: float | None = 5.0
    whiten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """PPO's bounds: on the ratio, on the value's move, and the dual clip for bad answers (off when ``None``).

    ``importance`` caps the weight pi_trainer / pi_sampler of a token, which makes good what the sampler's kernels or
    its precision did otherwise (truncated importance sampling); ``None``: no weight.
    """

    low: float = 0.2
    high: float = 0.2
    value: float | None = 0.2
    dual: float | None = None
    importance: float | None = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Critic:
    """How the critic learns, and from where it starts.

    ``gradient`` trains an adapter of its own and a head by descent on the (clipped) squared error. ``ridge`` reads the
    frozen ``start`` adapter's hidden states and the mean return of the prompt's other answers, and solves for their
    weights in closed form after every step, older steps fading by ``decay`` (it needs two steps before it says more
    than the mean). ``start``: the adapter is the policy's or the reward model's at first; a head starts at zero. The
    first ``warmup`` steps teach the critic alone.
    """

    fit: Literal["gradient", "ridge"] = "gradient"
    start: Literal["policy", "reward"] = "policy"
    warmup: Annotated[int, Field(ge=0)] = 4
    lr: float = 3e-4
    decay: Annotated[float, Field(gt=0, le=1)] = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """Which answers are learned from.

    ``how``: all; mixed, those to prompts whose answers differ in score, others being sampled instead in at most
    ``rounds`` rounds (DAPO's dynamic sampling); best, the best to each prompt; top, the best ``share`` of the step;
    above, those with a score above ``threshold``.
    """

    how: Literal["all", "mixed", "best", "top", "above"] = "all"
    share: Annotated[float, Field(gt=0, le=1)] = 0.2
    threshold: float = 0.5
    rounds: Annotated[int, Field(ge=1)] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """How answers are held against each other by a preference loss.

    ``pairs``: the best and the worst to each prompt (extremes), or any two that differ (all). ``reference``: the model
    that training started from (initial), or the one that wrote the answers (previous). ``options`` are the loss's own.
    """

    pairs: Literal["extremes", "all"] = "extremes"
    reference: Literal["initial", "previous"] = "initial"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """When a run stops before its end, so that the reward is not gamed.

    ``patience``: with a gold scorer, after that many rounds without a better gold score (the mean over ``window``
    rounds); the weights of the best round are kept; 0: never. ``kl``: beyond that many nats an answer (none: never).
    """

    patience: Annotated[int, Field(ge=0)] = 4
    window: Annotated[int, Field(ge=1)] = 3
    kl: float | None = None
