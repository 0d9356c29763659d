"""Rollouts: sample answers, score them, and lay out everything a policy update reads.

Shapes: B answers of the whole step, T the longest of them, G its prompts. Micro-batches are cut once and used for every
pass (old log-probabilities, reference, values, score, training), so the first update's ratio is 1 to the last bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from trimtab.errors import RewardError
from trimtab.model.roles import Role, Roles
from trimtab.model.sampler import Sampled, Sampler, Sampling
from trimtab.records.types import Group
from trimtab.rewards.reward_model import RewardModel
from trimtab.rewards.rule_scorer import RuleScorer
from trimtab.rewards.scorer import Scorer
from trimtab.seeds import derive
from trimtab.stages._episodes import Episode, Episodes, as_answer, as_item, own_tokens
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


@dataclass(frozen=True, slots=True)
class Minibatch:
    """What one update learns from, and the places in the sample of all its answers, also of those passed over."""

    micros: tuple[Micro, ...]
    answers: slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """Answers as the sampler gave them, and the number of rounds that its weights had learned from."""

    answers: list[list[Sampled]]  # G x k
    greedy: list[list[Sampled]] | None = None  # G x 1
    version: int = 0


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The answers of a step, and what they are worth. Prompts are numbered as they stand here."""

    prompts: tuple[int, ...]  # G, places in the data
    answers: tuple[tuple[Sampled, ...], ...]  # G x k
    items: tuple[TokenGroup, ...]  # G
    scores: Tensor | None = None  # (B,); none: they are read in the critic's pass
    parts: Mapping[str, Tensor] = field(default_factory=dict)  # (B,) by rule
    greedy: Sample | None = None  # one greedy answer to each prompt

    @cached_property
    def flat(self) -> list[Sampled]:
        """The answers one after the other, B."""
        return [answer for own in self.answers for answer in own]

    @property
    def ended(self) -> Tensor:
        """Which answers were ended by the policy, (B,) bool."""
        return torch.tensor([answer.finish == "stop" for answer in self.flat])

    @property
    def lengths(self) -> Tensor:
        """Tokens of the policy's own, (B,)."""
        return torch.tensor([float(sum(own_tokens(answer))) for answer in self.flat])

    @property
    def episodes(self) -> list[Episode]:
        """The answers that are conversations, which all are or none."""
        return [answer for answer in self.flat if isinstance(answer, Episode)]

    @property
    def group(self) -> Tensor:
        """Which prompt an answer belongs to, (B,)."""
        return torch.tensor([g for g, own in enumerate(self.answers) for _ in own])

    def differing(self, scores: Tensor) -> list[int]:
        """The prompts whose answers do not all have the same score, (B,)."""
        table = scores.view(len(self.prompts), -1)  # (G, k)
        found: list[int] = (table.amax(1) > table.amin(1)).nonzero()[:, 0].tolist()
        return found

    def only(self, keep: Sequence[int]) -> Sample:
        """These prompts alone, in this order."""
        rows = torch.cat([(self.group == g).nonzero()[:, 0] for g in keep]) if keep else torch.zeros(0).long()
        return Sample(
            prompts=tuple(self.prompts[g] for g in keep),
            answers=tuple(self.answers[g] for g in keep),
            items=tuple(self.items[g] for g in keep),
            scores=None if self.scores is None else self.scores[rows],
            parts={name: part[rows] for name, part in self.parts.items()},
            greedy=None if self.greedy is None else self.greedy.only(keep),
        )

    def beside(self, other: Sample) -> Sample:
        """This one's prompts, then the other's."""
        assert self.scores is not None
        assert other.scores is not None
        return Sample(
            prompts=self.prompts + other.prompts,
            answers=self.answers + other.answers,
            items=self.items + other.items,
            scores=torch.cat([self.scores, other.scores]),
            parts={name: torch.cat([part, other.parts[name]]) for name, part in self.parts.items()},
            greedy=None if self.greedy is None or other.greedy is None else self.greedy.beside(other.greedy),
        )  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """Everything that the models say of a sample, as constants; B and T are those of the answers learned from."""

    minibatches: tuple[Minibatch, ...]
    mask: Tensor  # (B, T) bool
    logps: Tensor  # (B, T) actor, by the trainer
    ref_logps: Tensor  # (B, T)
    sampled_logps: Tensor  # (B, T) by the sampler, of the distribution it drew from
    entropy: Tensor  # (B, T)
    values: Tensor | None  # (B, T)
    features: Tensor | None  # (N, H) the critic's hidden states before each answer token, in the order of the mask
    rows: Tensor  # (B,) places in the sample
    group: Tensor  # (B,) which prompt of the sample
    scores: Tensor  # (B,)

    @property
    def width(self) -> int:
        """T."""
        return int(self.mask.shape[1])


class Roller:
    """Makes rollouts: the prompts, the sampler, the models that read the answers.

    The score of an answer is ``weight`` times the reward model's, plus what the rules give; with ``episodes``, in which
    answers are conversations, plus what the environment paid.
    """

    def __init__(
        self, roles: Roles, sampler: Sampler, reward: Scorer | None, groups: Sequence[Group],
        tokens: Sequence[TokenGroup], *, k: int, sampling: Sampling, minibatches: int, micro_tokens: int, seed: int,
        rules: RuleScorer | None = None, weight: float = 1.0, greedy: bool = False, episodes: Episodes | None = None,
    ) -> None:  # fmt: skip
        self.roles, self.sampler, self.reward, self.rules, self.weight = roles, sampler, reward, rules, weight
        self.groups, self.tokens, self.episodes = groups, tokens, episodes
        self.k, self.sampling, self.minibatches, self.greedy = k, sampling, minibatches, greedy
        self.micro_tokens, self.seed = micro_tokens, seed
        self._shared = self._on_the_critic()

    @property
    def cap(self) -> int:
        """The most tokens of its own that an answer can have."""
        return self.sampling.max_tokens * (1 if self.episodes is None else self.episodes.max_turns)

    def draw(self, sampler: Sampler, step: int, chosen: Sequence[int], *, again: int = 0) -> Drawn:
        """Have ``k`` answers written to each chosen prompt, and the greedy one where the method wants it.

        ``again`` tells further samples of one step apart.
        """
        seed = derive(self.seed, "rollout", step) if not again else derive(self.seed, "rollout", step, again)
        answers = self._written(sampler, chosen, self.k, self.sampling, seed)
        greedy = None
        if self.greedy:
            greedy = self._written(sampler, chosen, 1, replace(self.sampling, temperature=0.0), seed)
        return Drawn(answers=answers, greedy=greedy, version=step)

    def _written(
        self, sampler: Sampler, chosen: Sequence[int], k: int, sampling: Sampling, seed: int
    ) -> list[list[Sampled]]:
        prompts = [self.tokens[i].prompt for i in chosen]
        if self.episodes is None:
            return sampler.sample(prompts, k=k, sampling=sampling, seed=seed)
        groups = [self.groups[i] for i in chosen]
        return self.episodes.play(sampler, groups, prompts, k=k, sampling=sampling, seed=seed)

    @torch.no_grad()
    def sample(
        self, step: int, chosen: Sequence[int], *, late: bool = True, again: int = 0, drawn: Drawn | None = None
    ) -> Sample:
        """Sample ``k`` answers for each chosen prompt, unless they were ``drawn`` before, and score them.

        ``late``: leave the scores to ``read`` where the critic's pass gives them for nothing.
        """
        if drawn is None:
            drawn = self.draw(self.sampler, step, chosen, again=again)
        release_memory()  # the sampler's merged weights and cache, before the largest batches of the step
        found = self._as_sample(chosen, drawn.answers)
        if self._shared is None or self.rules is not None or self.episodes is not None or not late:
            found = self._scored(found)
        if drawn.greedy is None:
            return found
        return replace(found, greedy=self._scored(self._as_sample(chosen, drawn.greedy)))

    @torch.no_grad()
    def read(self, sample: Sample, keep: Collection[int] | None = None) -> Rollout:
        """Pass the answers through every model; ``keep`` names the prompts that are learned from (all)."""
        minibatches = self._cut(sample, keep)
        micros = [micro for minibatch in minibatches for micro in minibatch.micros]
        kept = [g for g in range(len(sample.prompts)) if keep is None or g in keep]
        rows = (torch.isin(sample.group, torch.tensor(kept, dtype=torch.long))).nonzero()[:, 0]
        flat = [sample.flat[i] for i in rows.tolist()]
        width = max((len(a.tokens) for a in flat), default=0)
        temperature = self.sampling.temperature
        critic, actor, reference = self.roles.critic, self.roles.actor, self.roles.reference
        logps, entropy, ref_logps, values, features, scores = [], [], [], [], [], []
        for micro in micros:
            with actor.trunk.using(actor.adapter):
                lp, h = actor.trunk.logps(micro.batch, temperature=temperature)
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
                if self._shared is not None and sample.scores is None:
                    scores.append(self.weight * self._shared.head(hidden[micro.batch.last]))
        device = actor.trunk.device
        mask = torch.zeros(len(flat), width, dtype=torch.bool)
        sampled = torch.zeros(len(flat), width)
        for i, answer in enumerate(flat):
            mask[i, : len(answer.tokens)] = torch.tensor(own_tokens(answer))
            sampled[i, : len(answer.tokens)] = torch.tensor(answer.logps)
        if sample.scores is None:
            found = self._checked(sample, torch.cat(scores))
        else:
            found = sample.scores[rows.to(sample.scores.device)]
        empty = torch.zeros(0, 0, device=device)
        return Rollout(
            minibatches=minibatches,
            mask=mask.to(device),
            logps=torch.cat(logps) if logps else empty,
            ref_logps=torch.cat(ref_logps) if logps else empty,
            sampled_logps=sampled.to(device),
            entropy=torch.cat(entropy) if logps else empty,
            values=torch.cat(values) if values else None,
            features=torch.cat(features) if features else None,
            rows=rows.to(device),
            group=sample.group[rows].to(device),
            scores=found,
        )

    def _on_the_critic(self) -> RewardModel | None:
        """The reward model, when its scores can be read from the hidden states that the critic reads."""
        critic, reward = self.roles.critic, self.reward
        if critic is None or not isinstance(reward, RewardModel) or not reward.reads(self.roles.actor.trunk):
            return None
        return reward if reward.is_on(critic.trunk, critic.adapter) else None

    def _as_sample(self, chosen: Sequence[int], answers: Sequence[Sequence[Sampled]]) -> Sample:
        items = (as_item(self.tokens[i].prompt, own) for i, own in zip(chosen, answers, strict=True))
        return Sample(prompts=tuple(chosen), answers=tuple(map(tuple, answers)), items=tuple(items))

    def _cut(self, sample: Sample, keep: Collection[int] | None = None) -> tuple[Minibatch, ...]:
        """Minibatches of whole Groups, each cut into micro-batches; those that are not kept only count."""
        share = -(-len(sample.items) // self.minibatches)
        out: list[Minibatch] = []
        row = first = 0
        for begin in range(0, len(sample.items), share):
            part = sample.items[begin : begin + share]
            kept = [item for g, item in enumerate(part, begin) if keep is None or g in keep]
            micros: list[Micro] = []
            for cut in split_by_tokens(kept, self.micro_tokens):
                batch = pack([kept[i] for i in cut]).to(self.roles.actor.trunk.device)
                micros.append(Micro(batch, slice(row, row + batch.num_answers)))
                row += batch.num_answers
            last = first + sum(len(item.answers) for item in part)
            out.append(Minibatch(tuple(micros), slice(first, last)))
            first = last
        return tuple(out)

    def as_groups(self, sample: Sample) -> list[Group]:
        """The sampled answers as records."""
        chat = self.roles.actor.trunk.chat
        return [
            self.groups[i].with_answers(tuple(as_answer(answer, chat) for answer in own))
            for i, own in zip(sample.prompts, sample.answers, strict=True)
        ]

    @torch.no_grad()
    def score_by(self, scorer: Scorer, sample: Sample) -> Tensor:
        """A scorer's numbers (B,): of the very tokens that were sampled, or where it has another tokenizer, of text."""
        if scorer.reads(self.roles.actor.trunk):
            micros = [micro for minibatch in self._cut(sample) for micro in minibatch.micros]
            return self._checked(sample, torch.cat([scorer.score_batch(micro.batch) for micro in micros]))
        rows = scorer.score(self.as_groups(sample))
        found = torch.tensor([score for row in rows for score in row], device=self.roles.actor.trunk.device)
        return self._checked(sample, found)

    def _scored(self, sample: Sample) -> Sample:
        """The same with the score of every answer (B,), and what each rule (or the environment) gave it."""
        device = self.roles.actor.trunk.device
        total = torch.zeros(len(sample.flat), device=device)
        if self.reward is not None:
            total = self.score_by(self.reward, sample) * self.weight
        parts: dict[str, Tensor] = {}
        if sample.episodes:
            paid = torch.tensor([episode.reward for episode in sample.episodes], device=device)
            total = total + paid
            if self.reward is not None or self.rules is not None:
                parts["environment"] = paid
        if self.rules is not None:
            for name, rows in self.rules.parts(self.as_groups(sample)).items():
                parts[name] = torch.tensor([score for row in rows for score in row], device=device)
                total = total + self.rules.weights[name] * parts[name]
        return replace(sample, scores=total, parts=parts)

    def _checked(self, sample: Sample, scores: Tensor) -> Tensor:
        bad = (~scores.isfinite()).nonzero()
        if len(bad):
            groups = self.as_groups(sample)
            group = groups[int(sample.group[int(bad[0])])]
            answer = [a for g in groups for a in g.answers][int(bad[0])]
            raise RewardError(
                f"the reward of an answer to {group.id!r} is not a finite number; the answer: {answer.text!r}"
            )
        return scores


def critic_values(critic: Role, batch: TreeBatch) -> Tensor:
    """V before each target token, (N,): read at the token that predicts it."""
    assert critic.head is not None
    with critic.trunk.using(critic.adapter):
        values: Tensor = critic.head(critic.trunk.hidden(batch)[batch.predictor])
    return values
