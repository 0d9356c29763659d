"""Learning by advantage: rollouts, and the updates they give. PPO and its relatives.

Shapes: B answers of the step that are learned from, T the longest of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trimtab.losses.policy._terms import PolicyTerms
from trimtab.losses.value import clipped_value
from trimtab.model.roles import Roles
from trimtab.registry import ADVANTAGES, POLICY_LOSSES, Entry
from trimtab.seeds import derive
from trimtab.stages._episodes import credit_turns
from trimtab.stages._methods import Method
from trimtab.stages._online_settings import KL, Clip, Critic
from trimtab.stages._rollout import Micro, Minibatch, Rollout, Sample, critic_values
from trimtab.stages._rounds import Rounds
from trimtab.stages._texts import Texts, Work
from trimtab.tensors.aggregate import Totals, aggregate
from trimtab.tensors.kl import kl_estimate
from trimtab.tensors.masked import explained_variance, masked_mean, whiten
from trimtab.tensors.shaping import leave_one_out, reward_to_go, token_rewards, truncated_weights
from trimtab.train.control import AdaptiveKL, FixedKL, KLControl
from trimtab.train.least_squares import LeastSquares
from trimtab.train.loop import Update, epoch_order
from trimtab.train.run import Means, Run, invariant


@dataclass(slots=True, kw_only=True)
class _Signal:
    """What a rollout teaches: advantages and value targets, with what the losses compare to."""

    sample: Sample
    rollout: Rollout
    mask: Tensor  # (B, T) the tokens that are learned from
    advantages: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    returns: Tensor  # (B, T) Monte Carlo, of the shaped rewards
    kl: float  # to the reference, mean over answers of the sum over tokens
    weights: Tensor  # (B, T) pi_trainer / pi_sampler, capped; 1 where nothing is to be corrected


class Online:
    """Rollouts and the updates they give: the ``fit`` loop's task."""

    def __init__(
        self, run: Run, roles: Roles, rounds: Rounds, method: Method, *, epochs: int, kl: KL, clip: Clip,
        critic: Critic, gamma: float, lam: float, ptx: Texts | None = None,
    ) -> None:  # fmt: skip
        self.run, self.roles, self.rounds, self.method = run, roles, rounds, method
        self.roller = rounds.roller
        self.epochs, self.clip, self.credit, self.gamma, self.lam = epochs, clip, kl.credit, gamma, lam
        self.warmup = critic.warmup if method.critic else 0
        self.kl: KLControl = (
            FixedKL(kl.beta) if kl.target is None else AdaptiveKL(kl.beta, target=kl.target, horizon=kl.horizon)
        )
        self.advantage, self.loss = ADVANTAGES[method.advantage], POLICY_LOSSES[method.loss]
        self.ridge: LeastSquares | None = None
        if roles.critic is not None and critic.fit == "ridge":
            self.ridge = LeastSquares(roles.critic.trunk.hidden_size + 1, decay=critic.decay, light=1)
        self.ptx = ptx

    def state(self) -> dict[str, Any]:
        """The controller's and the normaliser's numbers, and the ridge critic's sums."""
        ridge = {} if self.ridge is None else self.ridge.state()
        return {"kl": self.kl.state(), "ridge": ridge, **self.rounds.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.kl.load(state["kl"])
        self.rounds.load(state)
        if self.ridge is not None:
            self.ridge.load(state["ridge"])

    def updates(self, step: int, log: Means) -> Iterator[Update[Work]]:
        """One round: roll out, shape, then epochs x minibatches."""
        sample = self.rounds.sample(step, log, late=not self._may_skip())
        if not sample.prompts:  # no prompt whose answers differ
            return
        scores = None if sample.scores is None else self.rounds.shape(sample, sample.scores)
        keep = None if scores is None else self._teaching(sample, scores, log)
        rollout = self.roller.read(sample, keep)
        if scores is None:
            scores = self.rounds.shape(sample, rollout.scores)
        if not len(rollout.rows):
            self.rounds.log(step, sample, rollout.scores if sample.scores is None else sample.scores, rollout, log)
            return
        signal = self._shape(step, sample, rollout, scores, log)
        if step == 0:
            self._check_start(rollout)
        learners = {"actor": step >= self.warmup, "critic": self.roles.critic is not None and self.ridge is None}
        groups = tuple(name for name, learns in learners.items() if learns)
        for epoch in range(self.epochs if groups else 0):
            order = epoch_order(len(rollout.minibatches), derive(self.run.seed, "minibatches", step), epoch)
            for place, index in enumerate(order):
                number = (step * self.epochs + epoch) * self.roller.minibatches + place
                minibatch = rollout.minibatches[index]
                if minibatch.micros:
                    yield self._update(signal, minibatch, groups, number, first=epoch == 0 == place)
        if step >= self.warmup:  # before, the policy could not move
            self.kl.update(signal.kl, len(rollout.rows))

    def _may_skip(self) -> bool:
        """Answers that are all worth the same teach nothing: nothing but their scores decides, and nobody asks."""
        watch = self.rounds.watch
        if watch is not None and watch.guard.kl is not None:  # that is a mean over all answers
            return False
        return self.method.relative and not self.method.whiten and isinstance(self.kl, FixedKL) and self.kl.beta == 0

    def _teaching(self, sample: Sample, scores: Tensor, log: Means) -> Collection[int] | None:
        """The prompts that teach something; the others need not be read, but count in the means (``None``: all do)."""
        if not self._may_skip():
            return None
        teaching = sample.differing(scores)
        log.add({"rollout/skipped": 1 - len(teaching) / len(sample.prompts)})
        return set(teaching)

    def _update(
        self, signal: _Signal, minibatch: Minibatch, groups: tuple[str, ...], number: int, *, first: bool
    ) -> Update[Work]:
        """One change of the weights: actor and critic over a minibatch, and the pretraining mix."""
        sample, rows = signal.sample, minibatch.answers
        counted = self.rounds.counts(sample)[rows]
        totals = Totals(
            tokens=float(sample.lengths[rows][counted].sum()),
            sequences=float(counted.sum()),
            length=float(self.roller.cap),
        )
        work: list[Work] = []
        for micro in minibatch.micros:
            if "actor" in groups:
                work.append(partial(self._actor, signal, micro, totals, first))
            if "critic" in groups:
                work.append(partial(self._critic, signal, micro, totals))
        if self.ptx is not None and "actor" in groups:
            work += self.ptx.work(number)  # PPO-ptx
        return Update(micros=work, accumulate=lambda call: call(), groups=groups)

    def _shape(self, step: int, sample: Sample, rollout: Rollout, scores: Tensor, log: Means) -> _Signal:
        """Scores -> rewards per token -> advantages and value targets; logs the rollout."""
        whole = rollout.scores if sample.scores is None else sample.scores
        kl = self.rounds.log(step, sample, whole, rollout, log)
        mask, own = rollout.mask, scores[rollout.rows]
        beta = self.kl.beta if self.method.kl_loss is None else 0.0
        rewards = token_rewards(own, rollout.logps, rollout.ref_logps, mask, beta=beta)  # (B, T)
        if sample.episodes and not (self.method.relative or self.method.greedy):  # these read sums alone
            flat = [sample.flat[i] for i in rollout.rows.tolist()]
            rewards = credit_turns(rewards, flat, own == whole[rollout.rows])
        if self.rounds.shaping.whiten:
            rewards = whiten(rewards, mask, shift_mean=False)
        returns = reward_to_go(rewards, mask, gamma=self.gamma)
        values = rollout.values if self.ridge is None else self._ridge_values(self.ridge, rollout, rewards, returns)
        found = self._advantages(rewards, values, own, sample, rollout)
        advantages, targets = found if isinstance(found, tuple) else (found, returns)
        weights = torch.ones_like(rollout.logps)
        if self.clip.importance is not None and self._whole():
            weights = truncated_weights(rollout.logps, rollout.sampled_logps, cap=self.clip.importance)
        log.add({"rollout/reward": rewards.sum(-1), "train/beta": self.kl.beta})
        if self._whole():
            gap = (rollout.logps - rollout.sampled_logps)[mask].abs()
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
        counted = self.rounds.counts(sample).to(mask.device)[rollout.rows]
        return _Signal(
            sample=sample, rollout=rollout, mask=mask & counted[:, None], advantages=advantages, targets=targets,
            returns=returns, kl=float(kl.mean()), weights=weights,
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

    def _advantages(
        self, rewards: Tensor, values: Tensor | None, scores: Tensor, sample: Sample, rollout: Rollout
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Call the estimator with what it names: a column of the rollout, or one of the stage's settings."""
        columns = {
            "rewards": rewards, "values": values, "mask": rollout.mask, "group": rollout.group, "scores": scores,
            "baseline": self._greedy(sample, rollout),
        }  # fmt: skip
        settings = {"gamma": self.gamma, "lam": self.lam, "kl_credit": self.credit, **self.method.fixed}
        found: Tensor | tuple[Tensor, Tensor] = _call(self.advantage, columns, settings)
        return found

    def _greedy(self, sample: Sample, rollout: Rollout) -> Tensor | None:
        """What the greedy answer to each answer's prompt is worth, by the same scale, (B,)."""
        if sample.greedy is None:
            return None
        assert sample.greedy.scores is not None
        return self.rounds.shaped(sample.greedy, sample.greedy.scores)[rollout.group]

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
        mask = signal.mask[rows]
        with actor.trunk.using(actor.adapter):
            flat, _ = actor.trunk.logps(micro.batch, temperature=self.roller.sampling.temperature)
            logps = micro.table(flat, rollout.width)
            columns = {
                "logps": logps, "old_logps": rollout.logps[rows], "advantages": signal.advantages[rows], "mask": mask
            }  # fmt: skip
            settings = {"clip_low": self.clip.low, "clip_high": self.clip.high, "dual_clip": self.clip.dual}
            terms: PolicyTerms = _call(self.loss, columns, settings)
            losses = terms.loss * signal.weights[rows]
            if self.method.kl_loss is not None:
                losses = losses + self.kl.beta * kl_estimate(logps, rollout.ref_logps[rows], self.method.kl_loss)
            aggregate(losses, mask, self.method.aggregation, totals).sum().backward()
        if first:
            off = float((terms.ratio - 1)[mask].abs().amax()) if mask.any() else 0.0
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
        mask, old = signal.mask[rows], rollout.values[rows]
        values = micro.table(critic_values(self.roles.critic, micro.batch), rollout.width)
        losses = clipped_value(values, old, signal.targets[rows], clip=self.clip.value)
        aggregate(losses, mask, "token-mean", totals).sum().backward()
        moved = (values.detach() - old).abs()[mask]
        clipped = moved > self.clip.value if self.clip.value is not None else torch.zeros_like(moved)
        return {"value/loss": losses.detach()[mask], "value/clip_fraction": clipped.float()}


def _call(entry: Entry, columns: Mapping[str, Any], settings: Mapping[str, Any]) -> Any:
    """Call a method's file with what it names: columns by place, and those of the settings that it has options for."""
    names = inspect.signature(entry.function).parameters
    return entry.function(
        *(columns[name] for name in names if name not in entry.options),
        **{name: settings[name] for name in entry.options if name in settings},
    )
