"""The task of an online method: rollouts, and the updates they give.

Shapes: B answers of the step, T the longest of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from trimtab.losses.value import clipped_value
from trimtab.model.roles import Roles
from trimtab.registry import ADVANTAGES, POLICY_LOSSES
from trimtab.seeds import derive
from trimtab.stages._methods import Method
from trimtab.stages._rollout import Micro, Roller, Rollout, critic_values
from trimtab.stages._texts import Texts, Work
from trimtab.tensors.aggregate import Totals, aggregate
from trimtab.tensors.kl import kl_estimate
from trimtab.tensors.masked import correlation, explained_variance, masked_mean, whiten
from trimtab.tensors.shaping import EosShaping, eos_shaping, leave_one_out, reward_to_go, token_rewards
from trimtab.train.control import AdaptiveKL, FixedKL, KLControl, RewardNormaliser
from trimtab.train.least_squares import LeastSquares
from trimtab.train.loop import Update, batch_at, epoch_order
from trimtab.train.run import Means, Run, invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class KL:
    """KL to the reference: ``beta`` per nat, adapted towards ``target`` nats an answer if one is given.

    In the reward or in the loss, as the method has it; the same ``beta`` is not the same strength in both places.
    """

    beta: float = 0.05
    target: float | None = None
    horizon: int = 10000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What happens to a score before it becomes a reward.

    ``normalise``: running standardisation. ``clip``: bounds on its result. ``eos``: after that, an answer that the cap
    cut scores ``-penalty`` (replace) or loses ``penalty`` (subtract).
    """

    eos: EosShaping = "replace"
    penalty: Annotated[float, Field(ge=0)] = 1.0
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


@dataclass(slots=True, kw_only=True)
class _Signal:
    """What a rollout teaches: advantages and value targets, with what the losses compare to."""

    rollout: Rollout
    advantages: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    returns: Tensor  # (B, T) Monte Carlo, of the shaped rewards
    kl: float  # to the reference, mean over answers of the sum over tokens
    weights: Tensor  # (B, T) pi_trainer / pi_sampler, capped; 1 where nothing is to be corrected


class Online:
    """Rollouts and the updates they give: the ``fit`` loop's task."""

    def __init__(
        self, run: Run, roles: Roles, roller: Roller, method: Method, *, num_prompts: int, batch: int, epochs: int,
        kl: KL, clip: Clip, shaping: Shaping, critic: Critic, gamma: float, lam: float,
        ptx: Texts | None = None,
    ) -> None:  # fmt: skip
        self.run, self.roles, self.roller, self.method = run, roles, roller, method
        self.num_prompts, self.batch, self.epochs = num_prompts, batch, epochs
        self.clip, self.shaping, self.gamma, self.lam = clip, shaping, gamma, lam
        self.warmup = critic.warmup if method.critic else 0
        self.kl: KLControl = (
            FixedKL(kl.beta) if kl.target is None else AdaptiveKL(kl.beta, target=kl.target, horizon=kl.horizon)
        )
        self.normaliser = RewardNormaliser(kind=shaping.normalise, clip=shaping.clip)
        self.advantage = ADVANTAGES[method.advantage]
        self.loss = POLICY_LOSSES[method.loss].function
        self.ridge: LeastSquares | None = None
        if roles.critic is not None and critic.fit == "ridge":
            self.ridge = LeastSquares(roles.critic.trunk.hidden_size + 1, decay=critic.decay, light=1)
        self.ptx = ptx

    def state(self) -> dict[str, Any]:
        """The controller's and the normaliser's numbers, and the ridge critic's sums."""
        ridge = {} if self.ridge is None else self.ridge.state()
        return {"kl": self.kl.state(), "normaliser": self.normaliser.state(), "ridge": ridge}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.kl.load(state["kl"])
        self.normaliser.load(state["normaliser"])
        if self.ridge is not None:
            self.ridge.load(state["ridge"])

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """One round: roll out, shape, then epochs x minibatches."""
        chosen = batch_at(step, self.num_prompts, self.batch, self.run.seed)
        rollout = self.roller.roll(step, chosen)
        signal = self._shape(rollout, log)
        if step == 0:
            self._check_start(rollout)
        learners = {"actor": step >= self.warmup, "critic": self.roles.critic is not None and self.ridge is None}
        groups = tuple(name for name, learns in learners.items() if learns)
        for epoch in range(self.epochs if groups else 0):
            order = epoch_order(len(rollout.minibatches), derive(self.run.seed, "minibatches", step), epoch)
            for place, index in enumerate(order):
                number = (step * self.epochs + epoch) * len(order) + place
                yield self._update(signal, rollout.minibatches[index], groups, number, first=epoch == 0 == place)
        if step >= self.warmup:  # before, the policy could not move
            self.kl.update(signal.kl, len(rollout.scores))

    def _update(
        self, signal: _Signal, micros: Sequence[Micro], groups: tuple[str, ...], number: int, *, first: bool
    ) -> Update[Work]:
        """One change of the weights: actor and critic over a minibatch, and the pretraining mix."""
        rows = slice(micros[0].rows.start, micros[-1].rows.stop)
        totals = Totals(tokens=float(signal.rollout.mask[rows].sum()), sequences=float(rows.stop - rows.start))
        work: list[Work] = []
        for micro in micros:
            if "actor" in groups:
                work.append(partial(self._actor, signal, micro, totals, first))
            if "critic" in groups:
                work.append(partial(self._critic, signal, micro, totals))
        if self.ptx is not None and "actor" in groups:
            work += self.ptx.work(number)  # PPO-ptx
        return Update(micros=work, accumulate=lambda call: call(), groups=groups)

    def _shape(self, rollout: Rollout, log: Means) -> _Signal:
        """Scores -> rewards per token -> advantages and value targets; logs the rollout."""
        mask = rollout.mask
        self.normaliser.update(rollout.scores)
        scores = self.normaliser.normalise(rollout.scores)
        scores = eos_shaping(scores, rollout.ended, mode=self.shaping.eos, penalty=self.shaping.penalty)
        beta = self.kl.beta if self.method.kl_loss is None else 0.0
        rewards = token_rewards(scores, rollout.logps, rollout.ref_logps, mask, beta=beta)  # (B, T)
        if self.shaping.whiten:
            rewards = whiten(rewards, mask, shift_mean=False)
        returns = reward_to_go(rewards, mask, gamma=self.gamma)
        values = rollout.values if self.ridge is None else self._ridge_values(self.ridge, rollout, rewards, returns)
        found = self._advantages(rewards, values, rollout)
        advantages, targets = found if isinstance(found, tuple) else (found, returns)
        weights = torch.ones_like(rollout.logps)
        if self.clip.importance is not None and self._whole():
            weights = (rollout.logps - rollout.sampled_logps).clamp(-20, 20).exp().clamp_max(self.clip.importance)
        kl = ((rollout.logps - rollout.ref_logps) * mask).sum(-1)  # (B,)
        gap = (rollout.logps - rollout.sampled_logps)[mask].abs()
        log.add(
            {
                "rollout/score": rollout.scores,
                "rollout/reward": rewards.sum(-1),
                "rollout/kl": kl,
                "rollout/entropy": rollout.entropy[mask],
                "rollout/length": rollout.lengths,
                "rollout/ended": rollout.ended.float(),
                "rollout/score_length_correlation": correlation(rollout.scores, rollout.lengths),
                "train/beta": self.kl.beta,
            }
        )
        if self._whole():
            log.add(
                {"rollout/logp_gap": gap, "rollout/logp_gap_max": gap.max(), "rollout/importance_weight": weights[mask]}
            )
        if values is not None:
            log.add(
                {
                    "value/explained_variance": explained_variance(values, returns, mask),
                    "value/residual_variance": (returns - values)[mask].var(correction=0),
                    "value/return_variance": returns[mask].var(correction=0),
                    "value/mean": values[mask],
                    "value/return": returns[mask],
                }
            )
        if self.method.whiten:
            advantages = whiten(advantages, mask)
        return _Signal(
            rollout=rollout, advantages=advantages, targets=targets, returns=returns, kl=float(kl.mean()),
            weights=weights,
        )  # fmt: skip

    def _ridge_values(self, ridge: LeastSquares, rollout: Rollout, rewards: Tensor, returns: Tensor) -> Tensor:
        """V before each token (B, T) by the solution from earlier rounds; then the round is learned from.

        It reads the hidden states and how the prompt's other answers fared, which does not depend on this one.
        """
        assert rollout.features is not None
        others = leave_one_out(rewards.sum(-1), rollout.group)[:, None].expand_as(rewards)[rollout.mask]  # (N,)
        features = torch.cat([rollout.features.double(), others[:, None].double()], dim=1)  # (N, H + 1)
        weight, bias = ridge.solution
        flat = features @ weight.to(features.device) + bias.to(features.device)
        ridge.add(features, returns[rollout.mask])
        return torch.zeros_like(rewards).masked_scatter(rollout.mask, flat.to(rewards.dtype))

    def _advantages(self, rewards: Tensor, values: Tensor | None, rollout: Rollout) -> Tensor | tuple[Tensor, Tensor]:
        """Call the estimator with what it names: a column of the rollout, or one of the stage's settings."""
        given = {"rewards": rewards, "values": values, "mask": rollout.mask, "group": rollout.group}
        settings = {"gamma": self.gamma, "lam": self.lam}
        names = inspect.signature(self.advantage.function).parameters
        found: Tensor | tuple[Tensor, Tensor] = self.advantage.function(
            *(given[name] for name in names if name not in self.advantage.options),
            **{name: settings[name] for name in self.advantage.options if name in settings},
        )
        return found

    def _whole(self) -> bool:
        """Sampler and trainer speak of the same distribution: nothing was cut from it."""
        sampling = self.roller.sampling
        return sampling.top_p >= 1.0 and sampling.top_k == 0 and sampling.temperature > 0

    def _check_start(self, rollout: Rollout) -> None:
        """Before the first update the actor is the reference, and the sampler is the trainer."""
        kl = float((rollout.logps - rollout.ref_logps).abs().max())
        exact = self.roles.actor.trunk is self.roles.reference.trunk and rollout.logps.is_cpu
        invariant(
            kl <= (0.0 if exact else 1e-3), f"step 0: actor and reference differ by {kl:.3g} nats; they must be equal"
        )
        if self._whole():
            gap = float(masked_mean((rollout.logps - rollout.sampled_logps).abs(), rollout.mask))
            half = self.roles.actor.trunk.dtype in (torch.bfloat16, torch.float16)
            invariant(
                gap < (0.2 if half else 0.01),
                f"step 0: sampler and trainer differ by {gap:.3g} nats a token: they run different models",
            )

    def _actor(self, signal: _Signal, micro: Micro, totals: Totals, first: bool) -> dict[str, Tensor | float]:
        """The policy's forward and backward."""
        actor, rollout, rows = self.roles.actor, signal.rollout, micro.rows
        mask = rollout.mask[rows]
        with actor.trunk.using(actor.adapter):
            flat, _ = actor.trunk.logps(micro.batch, temperature=self.roller.sampling.temperature)
            logps = micro.table(flat, rollout.width)
            terms = self.loss(
                logps, rollout.logps[rows], signal.advantages[rows],
                clip_low=self.clip.low, clip_high=self.clip.high, dual_clip=self.clip.dual,
            )  # fmt: skip
            losses = terms.loss * signal.weights[rows]
            if self.method.kl_loss is not None:
                losses = losses + self.kl.beta * kl_estimate(logps, rollout.ref_logps[rows], self.method.kl_loss)
            aggregate(losses, mask, self.method.aggregation, totals).sum().backward()
        if first:
            off = float((terms.ratio - 1)[mask].abs().max())
            invariant(  # to the bit on a CPU; a GPU's kernels may sum in another order each time
                off <= (0.0 if logps.is_cpu else 1e-2),
                f"the first update's ratio is off by {off:.3g}: old log-probabilities are not the actor's",
            )
        return {
            "policy/loss": losses.detach()[mask],
            "policy/ratio": terms.ratio[mask],
            "policy/clip_fraction": terms.clipped[mask],
            "policy/approx_kl": 0.5 * (logps.detach() - rollout.logps[rows])[mask] ** 2,
        }

    def _critic(self, signal: _Signal, micro: Micro, totals: Totals) -> dict[str, Tensor | float]:
        """The critic's forward and backward."""
        rollout, rows = signal.rollout, micro.rows
        assert self.roles.critic is not None
        assert rollout.values is not None
        mask, old = rollout.mask[rows], rollout.values[rows]
        values = micro.table(critic_values(self.roles.critic, micro.batch), rollout.width)
        losses = clipped_value(values, old, signal.targets[rows], clip=self.clip.value)
        aggregate(losses, mask, "token-mean", totals).sum().backward()
        moved = (values.detach() - old).abs()[mask]
        clipped = moved > self.clip.value if self.clip.value is not None else torch.zeros_like(moved)
        return {"value/loss": losses.detach()[mask], "value/clip_fraction": clipped.float()}
