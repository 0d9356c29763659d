"""The rounds of an online stage: which prompts, which of their answers, and what these are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trimtab.rewards.checks import repeated_ngrams
from trimtab.seeds import derive
from trimtab.stages._ahead import Ahead
from trimtab.stages._episodes import own_words
from trimtab.stages._online_settings import Keep, Shaping
from trimtab.stages._rollout import Roller, Rollout, Sample
from trimtab.stages._watch import Watch
from trimtab.tensors.masked import correlation
from trimtab.tensors.shaping import eos_shaping, overlong_penalty
from trimtab.train.control import RewardNormaliser
from trimtab.train.loop import batch_at, epoch_order
from trimtab.train.run import Means, Run

NGRAM = 4


class Rounds:
    """Samples ``batch`` prompts a step, and shapes their scores. Nothing is remembered but the scale of the scores."""

    def __init__(
        self, run: Run, roller: Roller, *, num_prompts: int, batch: int, keep: Keep, shaping: Shaping,
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        self.run, self.roller, self.num_prompts, self.batch, self.watch = run, roller, num_prompts, batch, watch
        self.keep, self.shaping = keep, shaping
        self.ahead: Ahead | None = None  # whoever samples beside the learning
        self.normaliser = RewardNormaliser(kind=shaping.normalise, clip=shaping.clip)

    def state(self) -> dict[str, Any]:
        """The scale of the scores, what the watch has seen, and the rounds that were sampled ahead."""
        watch = {} if self.watch is None else {"watch": self.watch.state()}
        ahead = {} if self.ahead is None else {"ahead": self.ahead.state()}
        return {"normaliser": self.normaliser.state(), **watch, **ahead}

    def load(self, state: Mapping[str, Any]) -> None:
        """Put them back."""
        self.normaliser.load(state["normaliser"])
        if self.watch is not None:
            self.watch.load(state["watch"])
        if self.ahead is not None:
            self.ahead.load(state["ahead"])

    def chosen(self, step: int) -> list[int]:
        """The prompts of a round."""
        return batch_at(step, self.num_prompts, self.batch, self.run.seed)

    def sample(self, step: int, log: Means, *, late: bool = False) -> Sample:
        """The step's answers; ``late``: their scores may be left to the critic's pass."""
        chosen, drawn = self.chosen(step), None
        if self.ahead is not None:
            drawn = self.ahead.take(step)
            log.add({"rollout/staleness": float(step - drawn.version)})
        if self.keep.how != "mixed":
            log.add({"rollout/sampled": self._written(len(chosen))})
            return self.roller.sample(step, chosen, late=late, drawn=drawn)
        first = self.roller.sample(step, chosen, late=False, drawn=drawn)
        assert first.scores is not None
        self._tell(step, first, first.scores, log)  # the choice among prompts would hide how good the answers are
        found = self._mixed(first)
        spare = [i for i in epoch_order(self.num_prompts, derive(self.run.seed, "more", step), 0) if i not in chosen]
        asked = len(chosen)
        for again in range(1, self.keep.rounds):
            more, spare = spare[: self.batch - len(found.prompts)], spare[self.batch - len(found.prompts) :]
            if not more:
                break
            found = found.beside(self._mixed(self.roller.sample(step, more, late=False, again=again)))
            asked += len(more)
        log.add({"rollout/sampled": self._written(asked), "rollout/mixed": len(found.prompts) / asked})
        return found

    def _written(self, prompts: int) -> float:
        """Answers to that many prompts, greedy ones included."""
        return float(prompts * (self.roller.k + self.roller.greedy))

    def _mixed(self, sample: Sample) -> Sample:
        """The prompts whose answers differ in score."""
        assert sample.scores is not None
        return sample.only(sample.differing(sample.scores))

    def shape(self, sample: Sample, scores: Tensor) -> Tensor:
        """What the answers are worth, (B,) -> (B,): scaled by all scores so far, these included; less for a cut end."""
        self.normaliser.update(scores)
        return self.shaped(sample, scores)

    def shaped(self, sample: Sample, scores: Tensor) -> Tensor:
        """The same by the scale as it is."""
        shaping, ended = self.shaping, sample.ended.to(scores.device)
        scores = eos_shaping(self.normaliser.normalise(scores), ended, mode=shaping.eos, penalty=shaping.penalty)
        if shaping.overlong:
            lengths = sample.lengths.to(scores.device)
            scores = scores + overlong_penalty(
                lengths, cap=self.roller.cap, ramp=shaping.overlong, penalty=shaping.penalty
            )
        return scores

    def judged(self, step: int, log: Means, *, beta: float) -> tuple[Sample, Rollout, Tensor] | None:
        """A round with what each answer is worth, (B,): its shaped score less ``beta`` times its KL to the reference.

        ``None``: there is no prompt that answers could be learned from.
        """
        sample = self.sample(step, log)
        if not sample.prompts:
            return None
        assert sample.scores is not None
        rollout = self.roller.read(sample)
        kl = self.log(step, sample, sample.scores, rollout, log)
        return sample, rollout, self.shape(sample, sample.scores) - beta * kl

    def counts(self, sample: Sample) -> Tensor:
        """Which answers teach anything, (B,) bool: all, or those that a cap did not cut."""
        return sample.ended if self.shaping.eos == "leave_out" else torch.ones_like(sample.ended)

    def log(self, step: int, sample: Sample, scores: Tensor, rollout: Rollout, log: Means) -> Tensor:
        """Log what was sampled and read, and have it looked at; return the KL to the reference of what was read, (B',).

        Where prompts were chosen by their answers, what is told of the answers was told before that.
        """
        if self.keep.how != "mixed":
            self._tell(step, sample, scores, log)
        kl = ((rollout.logps - rollout.ref_logps) * rollout.mask).sum(-1)
        log.add({"rollout/kl": kl, "rollout/entropy": rollout.entropy[rollout.mask]})
        if self.watch is not None:
            self.watch.measure(step, kl)
        return kl

    def _tell(self, step: int, sample: Sample, scores: Tensor, log: Means) -> None:
        """Log a round's answers with their scores (B,), and have the gold scorer look at them."""
        lengths = sample.lengths.to(scores.device)
        chat = self.roller.roles.actor.trunk.chat
        repeated = [repeated_ngrams(own_words(answer, chat), NGRAM) for answer in sample.flat]
        log.add(
            {
                "rollout/score": scores,
                "rollout/length": lengths,
                "rollout/ended": sample.ended.float(),
                "rollout/repeated": torch.tensor(repeated),
                "rollout/score_length_correlation": correlation(scores, lengths),
                **{f"rollout/score/{name}": part for name, part in sample.parts.items()},
            }
        )
        if sample.episodes and self.roller.cap > self.roller.sampling.max_tokens:  # of several turns
            log.add({"rollout/turns": torch.tensor([float(len(episode.turns)) for episode in sample.episodes])})
            log.add({"rollout/no_room": torch.tensor([float(episode.no_room) for episode in sample.episodes])})
        if self.watch is not None:
            self.watch.look(step, sample, log)
