"""Rollouts: sample answers, score them, and lay out everything a policy update reads.

Shapes: B answers of the whole step, T the longest of them. Micro-batches are cut once and used for every pass (old
log-probabilities, reference, values, score, training), so the first update's ratio is 1 to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trimtab.errors import RewardError
from trimtab.model.roles import Role, Roles
from trimtab.model.sampler import Sampled, Sampler, Sampling
from trimtab.records.types import Answer, Group
from trimtab.rewards.reward_model import RewardModel
from trimtab.rewards.scorer import Scorer
from trimtab.seeds import derive
from trimtab.tensors.tree import TokenGroup, TreeBatch, pack, split_by_tokens
from trimtab.train.run import release_memory


@dataclass(frozen=True, slots=True)
class Micro:
    """A stretch of the rollout that goes through the models at once: its tokens and its rows."""

    batch: TreeBatch
    rows: slice

    def table(self, flat: Tensor, width: int) -> Tensor:
        """Per-target numbers (N,) as rows of the step's width (rows, T)."""
        narrow = self.batch.pad(flat)
        return torch.nn.functional.pad(narrow, (0, width - narrow.shape[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Everything about one step's answers, as constants."""

    minibatches: tuple[tuple[Micro, ...], ...]
    mask: Tensor  # (B, T) bool
    logps: Tensor  # (B, T) actor, by the trainer
    ref_logps: Tensor  # (B, T)
    sampled_logps: Tensor  # (B, T) by the sampler, of the distribution it drew from
    entropy: Tensor  # (B, T)
    values: Tensor | None  # (B, T)
    features: Tensor | None  # (N, H) the critic's hidden states before each answer token, in the order of the mask
    group: Tensor  # (B,) which prompt of the step
    scores: Tensor  # (B,)
    ended: Tensor  # (B,) bool
    lengths: Tensor  # (B,) tokens

    @property
    def width(self) -> int:
        """T."""
        return int(self.mask.shape[1])


class Roller:
    """Makes rollouts: the prompts, the sampler, the models that read the answers."""

    def __init__(
        self, roles: Roles, sampler: Sampler, reward: Scorer, groups: Sequence[Group],
        tokens: Sequence[TokenGroup], *, k: int, sampling: Sampling, minibatches: int, micro_tokens: int, seed: int,
    ) -> None:  # fmt: skip
        self.roles, self.sampler, self.reward = roles, sampler, reward
        self.groups, self.tokens = groups, tokens
        self.k, self.sampling, self.minibatches = k, sampling, minibatches
        self.micro_tokens, self.seed = micro_tokens, seed
        # One tokenizer: the scorer reads the very tokens that were sampled. Another: it reads their text.
        self._same_tokens = reward.reads(roles.actor.trunk)

    @torch.no_grad()
    def roll(self, step: int, chosen: Sequence[int], progress: Callable[[int], None] | None = None) -> Rollout:
        """Sample ``k`` answers for each chosen prompt and pass them through every model."""
        prompts = [self.tokens[i].prompt for i in chosen]
        seed = derive(self.seed, "rollout", step)
        answers = self.sampler.sample(prompts, k=self.k, sampling=self.sampling, seed=seed, progress=progress)
        items = [
            TokenGroup(prompt=prompt, answers=tuple(a.tokens for a in own))
            for prompt, own in zip(prompts, answers, strict=True)
        ]
        release_memory()  # the sampler's merged weights and cache, before the largest batches of the step
        minibatches = self._cut(items)
        micros = [micro for minibatch in minibatches for micro in minibatch]
        flat = [a for own in answers for a in own]
        width = max(len(a.tokens) for a in flat)
        actor, temperature = self.roles.actor, self.sampling.temperature

        critic = self.roles.critic
        shared = self._on_the_critic()
        logps, entropy, ref_logps, values, features, scores = [], [], [], [], [], []
        for micro in micros:
            with actor.trunk.using(actor.adapter):
                lp, h = actor.trunk.logps(micro.batch, temperature=temperature)
            reference = self.roles.reference
            with reference.trunk.using(reference.adapter):
                ref, _ = reference.trunk.logps(micro.batch, temperature=temperature)
            logps.append(micro.table(lp, width))
            entropy.append(micro.table(h, width))
            ref_logps.append(micro.table(ref, width))
            if critic is not None:
                with critic.trunk.using(critic.adapter):
                    hidden = critic.trunk.hidden(micro.batch)
                features.append(hidden[micro.batch.predictor])
                if critic.head is not None:
                    values.append(micro.table(critic.head(features[-1]), width))
                if shared is not None:
                    scores.append(shared.head(hidden[micro.batch.last]))
            if self._same_tokens and shared is None:
                scores.append(self.reward.score_batch(micro.batch))
        if not self._same_tokens:
            scores.append(self._score_text(chosen, answers))
        found = torch.cat(scores)
        self._check(found, chosen, answers)
        mask = torch.zeros(len(flat), width, dtype=torch.bool)
        sampled = torch.zeros(len(flat), width)
        for i, answer in enumerate(flat):
            mask[i, : len(answer.tokens)] = True
            sampled[i, : len(answer.tokens)] = torch.tensor(answer.logps)
        return Rollout(
            minibatches=minibatches,
            mask=mask.to(found.device),
            logps=torch.cat(logps),
            ref_logps=torch.cat(ref_logps),
            sampled_logps=sampled.to(found.device),
            entropy=torch.cat(entropy),
            values=torch.cat(values) if values else None,
            features=torch.cat(features) if features else None,
            group=torch.arange(len(items), device=found.device).repeat_interleave(self.k),
            scores=found,
            ended=torch.tensor([a.finish == "stop" for a in flat], device=found.device),
            lengths=torch.tensor([float(len(a.tokens)) for a in flat], device=found.device),
        )

    def _on_the_critic(self) -> RewardModel | None:
        """The reward model, when its scores can be read from the hidden states that the critic reads."""
        critic, reward = self.roles.critic, self.reward
        if critic is None or not isinstance(reward, RewardModel) or not self._same_tokens:
            return None
        return reward if reward.is_on(critic.trunk, critic.adapter) else None

    def _cut(self, items: Sequence[TokenGroup]) -> tuple[tuple[Micro, ...], ...]:
        """Minibatches of whole Groups, each cut into micro-batches."""
        share = -(-len(items) // self.minibatches)
        out: list[tuple[Micro, ...]] = []
        row = 0
        for begin in range(0, len(items), share):
            part = items[begin : begin + share]
            micros: list[Micro] = []
            for cut in split_by_tokens(part, self.micro_tokens):
                batch = pack([part[i] for i in cut]).to(self.roles.actor.trunk.device)
                micros.append(Micro(batch, slice(row, row + batch.num_answers)))
                row += batch.num_answers
            out.append(tuple(micros))
        return tuple(out)

    def as_groups(self, chosen: Sequence[int], answers: Sequence[Sequence[Sampled]]) -> list[Group]:
        """The sampled answers as records."""
        chat = self.roles.actor.trunk.chat
        return [
            self.groups[i].with_answers(
                tuple(Answer(text=chat.decode(a.tokens), finish=a.finish, logprob=sum(a.logps)) for a in own)
            )
            for i, own in zip(chosen, answers, strict=True)
        ]

    def _score_text(self, chosen: Sequence[int], answers: Sequence[Sequence[Sampled]]) -> Tensor:
        rows = self.reward.score(self.as_groups(chosen, answers))
        return torch.tensor([score for row in rows for score in row], device=self.roles.actor.trunk.device)

    def _check(self, scores: Tensor, chosen: Sequence[int], answers: Sequence[Sequence[Sampled]]) -> None:
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            group = self.as_groups(chosen, answers)[int(bad[0]) // self.k]
            answer = group.answers[int(bad[0]) % self.k]
            raise RewardError(
                f"the reward of an answer to {group.id!r} is not a finite number; the answer: {answer.text!r}"
            )


def critic_values(critic: Role, batch: TreeBatch) -> Tensor:
    """V before each target token, (N,): read at the token that predicts it."""
    assert critic.head is not None
    with critic.trunk.using(critic.adapter):
        values: Tensor = critic.head(critic.trunk.hidden(batch)[batch.predictor])
    return values
