"""A reward of several attributes that a gate mixes by the prompt (ArmoRM)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.config import DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_judged, with_labels, with_pairs
from trimtab.errors import ConfigError, did_you_mean
from trimtab.records.types import Group
from trimtab.rewards.gated import LENGTH, Attributes, Gate, GatedCard, GatedReward, debias_matrix, read_hidden
from trimtab.rewards.reward_model import RewardModel
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._gated_fit import GateTask, Judged, Ridge, fit_attribute, judged_pairs, penalty_of, spearman
from trimtab.stages._reward_labels import LabelScale
from trimtab.stages._reward_report import compare_verdicts, report_pairs
from trimtab.tensors.tree import TokenGroup, pack, split_by_tokens
from trimtab.train.loop import Pace, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run, invariant

AtLeastOne = Annotated[int, Field(ge=1)]
VERBOSITY = "verbosity"


def gated_reward(
    run: Run,
    *,
    init: ModelRef,
    data: DataRef,
    preferences: DataRef,
    heldout: DataRef | None = None,
    attributes: tuple[str, ...] = (),
    verbosity: str | None = None,
    threshold: float = 0.03,
    hidden: AtLeastOne = 64,
    layers: Annotated[int, Field(ge=0)] = 1,
    temperature: Annotated[float, Field(gt=0)] = 10.0,
    steps: AtLeastOne = 200,
    batch: AtLeastOne = 64,
    lr: float = 1e-2,
    bad: Bad = "skip",
    max_length: int = 1024,
    micro_tokens: int = 4096,
) -> Result:
    """Mix attributes by a gate over the prompt (ArmoRM: Wang et al., 2024, arXiv:2406.12845), in two fits.

    First, on the frozen body of the reward model ``init``, one ridge regression for each of ``attributes`` (none named:
    all that ``data`` have), labels scaled to [0, 1]. Each loses the smallest multiple of ``verbosity`` that leaves a
    rank correlation of at most ``threshold`` with it: an attribute of that name, or ``length`` in tokens (not named:
    the attribute "verbosity" where there is one, else length). Then a gate, ``layers`` of ``hidden`` units under a
    softmax of ``temperature``, learns from ``preferences`` how much each attribute counts for a prompt: ``steps`` of
    ``batch`` prompts. What it learns on is what is used afterwards. Scores have mean 0 and deviation 1 on these
    answers. Accuracy on ``heldout`` stands beside the plain mean of the attributes.
    """
    body = RewardModel.open(init, dtype=run.dtype)
    reader = _Reader(run, body, bad, max_length, micro_tokens)
    labelled = reader.labelled(data, attributes)
    judged = reader.judged(preferences, "preferences")
    tests = None if heldout is None else reader.judged(heldout, "heldout")
    found, card = _fit_attributes(run, labelled, judged, verbosity, threshold)
    gate = _make_gate(judged.prompt, len(card.attributes), hidden, layers, temperature, derive(run.seed, "gate"))
    task = GateTask(
        gate,
        Judged(
            attributes=found(judged.last, judged.lengths), prompts=judged.prompt, pairs=judged_pairs(judged.groups)
        ),
        batch=batch, seed=run.seed,
    )  # fmt: skip
    task.check_start()
    optimiser = Optimiser([ParameterGroup(name="gate", parameters=list(gate.parameters()), lr=lr)])
    fit(run, task, optimiser, Pace(steps=steps), show=("train/loss", "train/accuracy"))
    card = replace(card, hidden=hidden, layers=layers, temperature=temperature)
    raw = _raw(found, gate, judged)
    mean, std = float(raw.mean()), float(raw.std(correction=0))
    invariant(std > 0 and math.isfinite(std), "the gated reward gives every answer the same score")
    card = replace(card, mean=mean, std=std)
    device = body.trunk.device
    model = GatedReward(body.trunk, body.adapter, found.to(device), gate.to(device), card)
    model.save(run.folder)
    found, gate = found.cpu(), gate.cpu()
    with torch.no_grad():
        shares = gate(judged.prompt).mean(0)
    metrics = {
        "data/labels": float(labelled.known),
        "data/pairs": float(sum(map(len, task.judged.pairs))),
        "score/mean_before": mean,
        "score/std_before": std,
        **{f"gate/{name}": float(share) for name, share in zip(card.attributes, shares, strict=True)},
        **{f"penalty/{name}": value for name, value in zip(card.attributes, card.penalties, strict=True)},
        **{f"explained/{name}": ridge.explained for name, ridge in zip(card.attributes, labelled.fits, strict=True)},
        **({} if tests is None else _measure(found, gate, card, tests)),
    }
    for path in run.folder.glob("features-*.safetensors"):
        path.unlink()
    return Result(base=init.base, metrics={name: value for name, value in metrics.items() if math.isfinite(value)})


@dataclass(slots=True, kw_only=True)
class _Answers:
    """Groups with what the frozen body says of them: last (A, H), lengths (A,), prompt (G, H), owner (A,)."""

    groups: list[Group]
    tokens: list[TokenGroup]
    last: Tensor
    prompt: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of every answer."""
        return torch.tensor([float(len(answer)) for item in self.tokens for answer in item.answers])

    @property
    def owner(self) -> Tensor:
        """Each answer's place among the prompts."""
        return torch.arange(len(self.groups)).repeat_interleave(torch.tensor([len(g.answers) for g in self.groups]))


@dataclass(slots=True, kw_only=True)
class _Labelled:
    """Answers with labels (A, K), ``nan`` where there is none, and what is fitted to them."""

    names: tuple[str, ...]
    labels: Tensor
    answers: _Answers
    fits: list[Ridge]

    @property
    def known(self) -> int:
        """Labels that are there."""
        return int((~self.labels.isnan()).sum())


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads data, and every answer once with the frozen body."""

    run: Run
    body: RewardModel
    bad: Bad
    max_length: int
    micro_tokens: int

    def labelled(self, data: DataRef, attributes: Sequence[str]) -> _Labelled:
        """Answers with Score verdicts."""
        what = "label" + (f" of {', '.join(attributes)}" if attributes else "")
        found = read_judged(data.source, with_labels(attributes), run=self.run, bad=self.bad, what=what)
        answers = self._read(found.groups, "labels")
        try:
            scale = LabelScale.fit(answers.groups, attributes, per_rater=False, standardised=False)
        except ConfigError as error:
            raise ConfigError(f"stages.{self.run.name}.{error}") from None
        for sentence in scale.describe(answers.groups):
            self.run.note(sentence)
        empty = [math.nan] * len(scale.attributes)
        tables = [(scale.table(group), len(group.answers)) for group in answers.groups]
        rows = [table.get(i, empty) for table, count in tables for i in range(count)]
        return _Labelled(
            names=scale.attributes, labels=torch.tensor(rows, dtype=torch.float64), answers=answers, fits=[]
        )

    def judged(self, data: DataRef, name: str) -> _Answers:
        """Answers with strict preferences."""
        found = read_judged(data.source, with_pairs, run=self.run, bad=self.bad)
        return self._read(found.groups, name)

    def _read(self, judged: Sequence[Group], name: str) -> _Answers:
        trunk = self.body.trunk
        groups, tokens = encode(
            judged, trunk.chat, max_length=self.max_length, run=self.run, what="judged prompts", bad=self.bad
        )
        path = self.run.folder / f"features-{name}.safetensors"
        if not path.is_file():
            part = path.with_suffix(".partial")
            save_file(self._features(tokens), part)
            part.replace(path)  # whoever is killed and goes on reads the same numbers
        known = load_file(path)
        return _Answers(groups=groups, tokens=tokens, last=known["last"], prompt=known["prompt"])

    @torch.no_grad()
    def _features(self, tokens: Sequence[TokenGroup]) -> dict[str, Tensor]:
        trunk = self.body.trunk
        last: list[Tensor] = []
        prompt: list[Tensor] = []
        with trunk.using(self.body.adapter):
            for cut in split_by_tokens(tokens, self.micro_tokens):
                mine, theirs = read_hidden(trunk, pack([tokens[i] for i in cut]).to(trunk.device))
                last.append(mine.float().cpu())
                prompt.append(theirs.float().cpu())
        return {"last": torch.cat(last), "prompt": torch.cat(prompt)}


def _fit_attributes(
    run: Run, labelled: _Labelled, judged: _Answers, verbosity: str | None, threshold: float
) -> tuple[Attributes, GatedCard]:
    """Stage 1: a ridge regression an attribute, then T from the answers that the gate will learn on."""
    names, labels, answers = labelled.names, labelled.labels, labelled.answers
    known = ~labels.isnan()
    low = torch.tensor([float(labels[known[:, k], k].min()) for k in range(len(names))], dtype=torch.float64)
    high = torch.tensor([float(labels[known[:, k], k].max()) for k in range(len(names))], dtype=torch.float64)
    unit = (labels - low) / (high - low)
    for k in range(len(names)):
        own = known[:, k]
        labelled.fits.append(fit_attribute(answers.last[own], unit[own, k], answers.owner[own], seed=run.seed))
    weight = torch.stack([ridge.weight for ridge in labelled.fits])  # (K, H)
    verbose = _verbosity(run, verbosity, names)
    place = names.index(verbose) if verbose in names else None
    longest = max(1.0, float(judged.lengths.max()))
    plain = judged.last.double() @ weight.T  # (A, K)
    measure = judged.lengths.double() / longest if place is None else plain[:, place]
    penalties = [
        1.0 if k == place else penalty_of(plain[:, k], measure, threshold=threshold) for k in range(len(names))
    ]
    matrix = debias_matrix(penalties, place)
    after = torch.cat([plain, measure[:, None]], 1) @ matrix if place is None else plain @ matrix
    for k, name in enumerate(names):
        left = spearman(after[:, k].numpy(), measure.numpy())
        if left > threshold:
            run.note(f"attribute {name!r} still goes with {verbose} (rank correlation {left:.2f}) at a penalty of 1")
    card = GatedCard(
        attributes=names, verbosity=verbose, penalties=tuple(penalties), label_low=tuple(low.tolist()),
        label_high=tuple(high.tolist()), ridges=tuple(ridge.ridge for ridge in labelled.fits), longest=longest,
        hidden=1, layers=0, temperature=1.0,
    )  # fmt: skip
    return Attributes(weight, matrix, longest=longest), card


def _verbosity(run: Run, said: str | None, names: Sequence[str]) -> str:
    """The attribute that is taken off the others, or ``length``."""
    if said is None:
        return VERBOSITY if VERBOSITY in names else LENGTH
    if said not in (*names, LENGTH):
        meant = did_you_mean(said, [*names, LENGTH])
        raise ConfigError(f"stages.{run.name}.verbosity: no attribute {said!r}{meant}")
    return said


def _make_gate(prompts: Tensor, count: int, hidden: int, layers: int, temperature: float, seed: int) -> Gate:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gate = Gate(prompts.shape[1], count, hidden=hidden, layers=layers, temperature=temperature)
    spread = prompts.std(0, correction=0)
    gate.center.copy_(prompts.mean(0))
    gate.spread.copy_(torch.where(spread > 0, spread, 1.0))
    return gate


@torch.no_grad()
def _raw(found: Attributes, gate: Gate, answers: _Answers) -> Tensor:
    """Gated sums (A,) before they are standardised, by the same object that will score."""
    return gate.mix(found(answers.last, answers.lengths), gate(answers.prompt)[answers.owner])


@torch.no_grad()
def _measure(found: Attributes, gate: Gate, card: GatedCard, tests: _Answers) -> dict[str, float]:
    """Accuracy on held-out pairs, beside the plain mean of the attributes with and without verbosity."""
    sizes = [len(group.answers) for group in tests.groups]

    def report(scores: Tensor, std: float | None) -> dict[str, float]:
        rows = [part.tolist() for part in scores.split(sizes)]
        return report_pairs(compare_verdicts(tests.groups, tests.tokens, rows), std=std)

    gated = report((_raw(found, gate, tests) - card.mean) / card.std, card.std)
    plain = found.plain(tests.last, tests.lengths)[:, : len(card.attributes)]
    return {
        **gated,
        "heldout/ungated": report(found(tests.last, tests.lengths).mean(1), None)["heldout/accuracy"],
        "heldout/ungated_undebiased": report(plain.mean(1), None)["heldout/accuracy"],
    }
