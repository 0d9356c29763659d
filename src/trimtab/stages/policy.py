"""Online reinforcement learning from a reward: sample, score, shape, update. PPO and (later) its relatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.errors import ConfigError, did_you_mean
from trimtab.losses.value import clipped_value
from trimtab.model.roles import Layout, Roles, build_roles
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Lora
from trimtab.records.read import read_groups
from trimtab.registry import ADVANTAGES, POLICY_LOSSES
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._methods import METHODS, Method
from trimtab.stages._rollout import Micro, Roller, Rollout, critic_values
from trimtab.tensors.aggregate import Totals, aggregate
from trimtab.tensors.masked import correlation, explained_variance, masked_mean, whiten
from trimtab.tensors.shaping import EosShaping, eos_shaping, token_rewards
from trimtab.train.control import AdaptiveKL, FixedKL, KLControl, RewardNormaliser
from trimtab.train.loop import Pace, Update, batch_at, epoch_order, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Means, Run, invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class KL:
    """KL to the reference, taken from the reward: ``beta`` per nat, adapted towards ``target`` nats if one is given."""

    beta: float = 0.05
    target: float | None = None
    horizon: int = 10000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shaping:
    """What happens to a score before it becomes a reward.

    ``eos``: an answer that the cap cut scores ``-penalty`` (replace) or loses ``penalty`` (subtract). ``normalise``:
    running standardisation. ``clip``: bounds on the result.
    """

    eos: EosShaping = "replace"
    penalty: float = 1.0
    normalise: Literal["none", "std", "mean_std"] = "none"
    clip: float | None = 5.0
    whiten: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """PPO's bounds: on the ratio, on the value's move, and the dual clip for bad answers (off when ``None``)."""

    low: float = 0.2
    high: float = 0.2
    value: float | None = 0.2
    dual: float | None = None


def policy(
    run: Run,
    *,
    reward: ModelRef,
    prompts: DataRef,
    init: ModelRef = BASE,
    method: str = "ppo",
    steps: int = 16,
    batch: int = 8,
    answers: int = 4,
    epochs: int = 1,
    minibatches: int = 1,
    lr: float = 1e-4,
    critic_lr: float = 3e-4,
    critic_warmup: int = 4,
    kl: KL = KL(),
    clip: Clip = Clip(),
    shaping: Shaping = Shaping(),
    gamma: float = 1.0,
    lam: float = 0.95,
    roles: Layout = "shared",
    lora: Lora = Lora(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
    max_length: int = 1024,
    micro_tokens: int = 2048,
) -> Result:
    """Improve a policy against a reward by sampling from it (PPO: Schulman et al., 2017; Ziegler et al., 2019).

    Each step samples ``answers`` to each of ``batch`` prompts, then makes ``epochs`` x ``minibatches`` updates. The
    first ``critic_warmup`` steps train the critic alone. ``roles`` says how many trunks carry the four models.
    """
    if method not in METHODS:
        raise ConfigError(f"stages.{run.name}.method: no method {method!r}{did_you_mean(method, METHODS)}")
    if not sampling.temperature > 0:
        raise ConfigError(
            f"stages.{run.name}.sampling.temperature: a policy learns from what it samples, so it must be above 0, "
            f"not {sampling.temperature}"
        )
    row = METHODS[method]
    layout = build_roles(
        init, reward, layout=roles, critic=row.critic, lora=lora, seed=derive(run.seed, "lora"), dtype=run.dtype
    )
    actor = layout.actor
    trunk = actor.trunk
    scorer = RewardModel.open(reward, trunk=layout.reward_trunk, dtype=run.dtype)
    groups, tokens = encode(
        [group.with_answers(()) for group in read_groups(prompts.source).groups],
        trunk.chat, max_length=max_length - sampling.max_tokens, run=run, what="prompts",
    )  # fmt: skip
    roller = Roller(
        layout, TorchSampler(trunk, actor.adapter, stop=trunk.chat.stop), scorer, groups, tokens, k=answers,
        sampling=sampling, minibatches=minibatches, micro_tokens=micro_tokens, seed=run.seed,
    )  # fmt: skip
    task = _Task(
        run, layout, roller, row, num_prompts=len(tokens), batch=batch, epochs=epochs, kl=kl, clip=clip,
        shaping=shaping, gamma=gamma, lam=lam, critic_warmup=critic_warmup if row.critic else 0,
    )  # fmt: skip
    optimiser_groups = [ParameterGroup(name="actor", parameters=actor.parameters(), lr=lr)]
    if layout.critic is not None:
        optimiser_groups.append(ParameterGroup(name="critic", parameters=layout.critic.parameters(), lr=critic_lr))
    pace = Pace(steps=steps + task.critic_warmup)
    shown = ("rollout/score", "rollout/kl", "rollout/ended")
    fit(run, task, Optimiser(optimiser_groups), pace, show=shown)
    assert actor.adapter is not None
    trunk.save_adapter(actor.adapter, run.folder)
    trunks = {id(t) for t in (*layout.trunks(), scorer.trunk)}
    return Result(base=init.base, metrics={"data/prompts": len(tokens), "memory/trunks": len(trunks)})


@dataclass(slots=True)
class _Work:
    """A micro-batch of one update."""

    micro: Micro
    totals: Totals
    first: bool


class _Task:
    """Rollouts and the updates they give."""

    def __init__(
        self, run: Run, roles: Roles, roller: Roller, method: Method, *, num_prompts: int, batch: int, epochs: int,
        kl: KL, clip: Clip, shaping: Shaping, gamma: float, lam: float, critic_warmup: int,
    ) -> None:  # fmt: skip
        self.run, self.roles, self.roller, self.method = run, roles, roller, method
        self.num_prompts, self.batch, self.epochs = num_prompts, batch, epochs
        self.clip, self.shaping, self.gamma, self.lam = clip, shaping, gamma, lam
        self.critic_warmup = critic_warmup
        self.kl: KLControl = (
            FixedKL(kl.beta) if kl.target is None else AdaptiveKL(kl.beta, target=kl.target, horizon=kl.horizon)
        )
        self.normaliser = RewardNormaliser(kind=shaping.normalise, clip=shaping.clip)
        self.advantage = ADVANTAGES[method.advantage].function
        self.loss = POLICY_LOSSES[method.loss].function

    def state(self) -> dict[str, Any]:
        """The controller's and the normaliser's numbers."""
        return {"kl": self.kl.state(), "normaliser": self.normaliser.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.kl.load(state["kl"])
        self.normaliser.load(state["normaliser"])

    def updates(self, step: int, log: Means) -> Iterator[Update[_Work]]:
        """One round: roll out, shape, then epochs x minibatches."""
        chosen = batch_at(step, self.num_prompts, self.batch, self.run.seed)
        rollout = self.roller.roll(step, chosen)
        advantages, targets = self._shape(rollout, log)
        if step == 0:
            self._check_start(rollout)
        groups = ("critic",) if step < self.critic_warmup else None
        for epoch in range(self.epochs):
            order = epoch_order(len(rollout.minibatches), derive(self.run.seed, "minibatches", step), epoch)
            for place, index in enumerate(order):
                micros = rollout.minibatches[index]
                rows = slice(micros[0].rows.start, micros[-1].rows.stop)
                totals = Totals(tokens=float(rollout.mask[rows].sum()), sequences=float(rows.stop - rows.start))
                first = epoch == 0 and place == 0
                yield Update(
                    micros=[_Work(micro, totals, first) for micro in micros],
                    accumulate=lambda work: self._accumulate(work, rollout, advantages, targets, groups),
                    groups=groups,
                )

    def _shape(self, rollout: Rollout, log: Means) -> tuple[Tensor, Tensor]:
        """Scores -> rewards per token -> advantages and value targets (B, T); logs the rollout."""
        mask = rollout.mask
        self.normaliser.update(rollout.scores)
        scores = self.normaliser.normalise(rollout.scores)
        scores = eos_shaping(scores, rollout.ended, mode=self.shaping.eos, penalty=self.shaping.penalty)
        rewards = token_rewards(scores, rollout.logps, rollout.ref_logps, mask, beta=self.kl.beta)  # (B, T)
        if self.shaping.whiten:
            rewards = whiten(rewards, mask, shift_mean=False)
        assert rollout.values is not None
        advantages, targets = self.advantage(rewards, rollout.values, mask, gamma=self.gamma, lam=self.lam)
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
                "value/explained_variance": explained_variance(rollout.values, targets, mask),
                "value/mean": rollout.values[mask],
                "train/beta": self.kl.beta,
                **({"rollout/logp_gap": gap, "rollout/logp_gap_max": gap.max()} if self._whole() else {}),
            }
        )
        self.kl.update(float(kl.mean()), len(kl))
        return whiten(advantages, mask), targets

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

    def _accumulate(
        self, work: _Work, rollout: Rollout, advantages: Tensor, targets: Tensor, groups: tuple[str, ...] | None
    ) -> dict[str, Tensor | float]:
        """Actor, then critic: each its own forward and backward, since they are different adapters."""
        metrics: dict[str, Tensor | float] = {}
        rows, mask = work.micro.rows, rollout.mask[work.micro.rows]
        if groups is None or "actor" in groups:
            actor = self.roles.actor
            with actor.trunk.using(actor.adapter):
                flat, _ = actor.trunk.logps(work.micro.batch, temperature=self.roller.sampling.temperature)
                logps = work.micro.table(flat, rollout.width)
                terms = self.loss(
                    logps, rollout.logps[rows], advantages[rows],
                    clip_low=self.clip.low, clip_high=self.clip.high, dual_clip=self.clip.dual,
                )  # fmt: skip
                aggregate(terms.loss, mask, self.method.aggregation, work.totals).sum().backward()
            if work.first:
                off = float((terms.ratio - 1)[mask].abs().max())
                invariant(  # to the bit on a CPU; a GPU's kernels may sum in another order each time
                    off <= (0.0 if logps.is_cpu else 1e-2),
                    f"the first update's ratio is off by {off:.3g}: old log-probabilities are not the actor's",
                )
            metrics |= {
                "policy/loss": terms.loss.detach()[mask],
                "policy/ratio": terms.ratio[mask],
                "policy/clip_fraction": terms.clipped[mask],
                "policy/approx_kl": 0.5 * (logps.detach() - rollout.logps[rows])[mask] ** 2,
            }
        if self.roles.critic is not None:
            assert rollout.values is not None
            values = work.micro.table(critic_values(self.roles.critic, work.micro.batch), rollout.width)
            losses = clipped_value(values, rollout.values[rows], targets[rows], clip=self.clip.value)
            aggregate(losses, mask, "token-mean", work.totals).sum().backward()
            moved = (values.detach() - rollout.values[rows]).abs()[mask]
            clipped = moved > self.clip.value if self.clip.value is not None else torch.zeros_like(moved)
            metrics |= {"value/loss": losses.detach()[mask], "value/clip_fraction": clipped.float()}
        return metrics
