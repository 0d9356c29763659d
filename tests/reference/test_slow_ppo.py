"""The fast mathematics of PPO against the slow one, on hundreds of random ragged batches, in float64.

Answers have 1 to 12 tokens, lie at random places of a wider table (some with gaps inside), and whatever stands between
them is zero, garbage or ``nan``: nothing of it may be seen.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import pytest
import slow_ppo as slow
import torch
from torch import Tensor

from trimtab.advantages.gae import gae
from trimtab.losses.policy.ppo import ppo
from trimtab.losses.value import clipped_value
from trimtab.tensors.aggregate import AGGREGATIONS, Aggregation, Totals, aggregate
from trimtab.tensors.kl import KL_KINDS, KLKind, kl_estimate
from trimtab.tensors.masked import whiten
from trimtab.tensors.shaping import EOS_SHAPINGS, EosShaping, eos_shaping, token_rewards

T = TypeVar("T")

BATCHES = 300
LONGEST = 12
CLOSE = 1e-12  # relative, and absolute below 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A random batch on the slow side, and where its tokens stand in the fast side's tables."""

    seed: int
    places: list[list[int]]
    width: int
    fill: str
    float_mask: bool
    scores: list[float]
    ended: list[bool]
    old_logps: slow.Batch
    ref_logps: slow.Batch
    old_values: slow.Batch
    logps: slow.Batch
    values: slow.Batch
    beta: float
    whiten_rewards: bool
    gamma: float
    lam: float
    low: float
    high: float
    dual: float | None
    clip_value: float | None

    @property
    def lengths(self) -> list[int]:
        return [len(places) for places in self.places]

    @property
    def mask(self) -> Tensor:
        mask = torch.zeros(len(self.places), self.width, dtype=torch.float64 if self.float_mask else torch.bool)
        for row, places in enumerate(self.places):
            mask[row, places] = 1
        return mask

    def table(self, batch: slow.Batch) -> Tensor:
        """(B, T) float64, with this case's rubbish off the answers."""
        shape = (len(batch), self.width)
        rubbish = 50 * torch.randn(shape, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)
        table = {"zero": rubbish * 0, "garbage": rubbish, "nan": rubbish * math.nan}[self.fill]
        for row, answer in enumerate(batch):
            for place, number in zip(self.places[row], answer, strict=True):
                table[row, place] = number
        return table

    def on(self, table: Tensor) -> Tensor:
        """The numbers on the answers, one after another, (N,)."""
        return torch.cat([table[row, places] for row, places in enumerate(self.places)])

    def same(self, fast: Tensor, expected: slow.Batch, *, zero_off: bool = False) -> None:
        """Assert equality on the answers, and zeros elsewhere where they are promised."""
        close(self.on(fast), torch.tensor(flat(expected), dtype=torch.float64), self.seed)
        if zero_off:
            assert (fast[~self.mask.bool()] == 0).all(), f"batch {self.seed}"


def flat(batch: Iterable[Iterable[T]]) -> list[T]:
    """One answer after another."""
    return list(chain.from_iterable(batch))


def close(fast: Tensor, expected: Tensor, seed: int) -> None:
    torch.testing.assert_close(fast, expected, rtol=CLOSE, atol=CLOSE, msg=lambda said: f"batch {seed}: {said}")


def only_gradient(losses: Tensor, given: list[Tensor]) -> Tensor:
    """The gradient in the first tensor given; the others must have none."""
    first, *others = torch.autograd.grad(losses.sum(), given, allow_unused=True)
    assert first is not None
    assert all(gradient is None for gradient in others)
    return first


def draw_case(seed: int) -> Case:
    dice = random.Random(seed)
    lengths = [dice.choice([1, dice.randint(1, LONGEST)]) for _ in range(dice.randint(1, 6))]
    width = max(lengths) + dice.randint(0, 3)
    gaps = dice.random() < 0.3
    places = [sorted(dice.sample(range(width), n)) if gaps else list(range(n)) for n in lengths]
    scale = dice.choice([0.01, 1.0, 10.0])

    def numbers(size: float, around: slow.Batch | None = None) -> slow.Batch:
        return [
            [(around[i][t] if around else 0.0) + size * dice.gauss(0, 1) for t in range(n)]
            for i, n in enumerate(lengths)
        ]

    old_logps = [[-dice.expovariate(0.7) for _ in range(n)] for n in lengths]
    old_values = numbers(scale)
    flat = dice.random() < 0.1  # every score the same
    return Case(
        seed=seed,
        places=places,
        width=width,
        fill=dice.choice(["zero", "garbage", "nan"]),
        float_mask=dice.random() < 0.5,
        scores=[scale * (1.0 if flat else dice.gauss(0, 1)) for _ in lengths],
        ended=[dice.random() < 0.7 for _ in lengths],
        old_logps=old_logps,
        ref_logps=numbers(dice.choice([0.0, 0.3, 3.0]), old_logps),
        old_values=old_values,
        logps=numbers(dice.choice([0.0, 0.05, 0.5, 15.0]), old_logps),
        values=numbers(0.3 * scale, old_values),
        beta=dice.choice([0.0, 0.05, 1.0]),
        whiten_rewards=dice.random() < 0.5,
        gamma=dice.choice([1.0, 1.0, 0.9]),
        lam=dice.choice([0.0, 0.95, 1.0]),
        low=dice.choice([0.0, 0.1, 0.2]),
        high=dice.choice([0.0, 0.2, 0.28]),
        dual=dice.choice([None, 3.0, 1.5]),
        clip_value=dice.choice([None, 0.2 * scale]),
    )


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return [draw_case(seed) for seed in range(BATCHES)]


def pairs(a: slow.Batch, b: slow.Batch) -> Iterator[Iterator[tuple[float, float]]]:
    """Two batches, token beside token."""
    return (zip(x, y, strict=True) for x, y in zip(a, b, strict=True))


def slow_rewards(case: Case, kind: str, mode: str) -> slow.Batch:
    return [
        slow.token_rewards(
            slow.score_of(case.scores[i], case.ended[i], mode, 1.0),
            case.old_logps[i], case.ref_logps[i], beta=case.beta, kind=kind,
        )
        for i in range(len(case.scores))
    ]  # fmt: skip


def slow_advantages(case: Case, rewards: slow.Batch) -> tuple[slow.Batch, slow.Batch]:
    both = [slow.gae(r, v, gamma=case.gamma, lam=case.lam) for r, v in zip(rewards, case.old_values, strict=True)]
    return [advantages for advantages, _ in both], [targets for _, targets in both]


def slow_ppo(case: Case, advantages: slow.Batch) -> list[list[slow.Term]]:
    return [
        [
            slow.ppo(now, old, advantage, low=case.low, high=case.high, dual=case.dual)
            for (now, old), advantage in zip(tokens, own, strict=True)
        ]
        for tokens, own in zip(pairs(case.logps, case.old_logps), advantages, strict=True)
    ]


def slow_value(case: Case, targets: slow.Batch) -> list[list[slow.Term]]:
    return [
        [slow.value(now, old, target, clip=case.clip_value) for (now, old), target in zip(tokens, own, strict=True)]
        for tokens, own in zip(pairs(case.values, case.old_values), targets, strict=True)
    ]


def fields(terms: list[list[slow.Term]], name: str) -> slow.Batch:
    return [[float(getattr(term, name)) for term in answer] for answer in terms]


# --- the slow side itself ---------------------------------------------------------------------------------------------


def test_the_slow_side_has_the_published_numbers() -> None:
    """Numbers worked by hand."""
    a, b = [slow.Term(1.0, 1.0)] * 2, [slow.Term(1.0, 1.0)] * 7 + [slow.Term(3.0, 1.0)]
    assert [slow.aggregate([a, b], how, 8)[0] for how in AGGREGATIONS] == pytest.approx([1.2, 1.125, 6.0, 0.75])
    p, r = math.log(0.5), math.log(0.4)
    assert [slow.kl(p, r, k).loss for k in ("k1", "k2", "k3")] == pytest.approx([0.2231, 0.0249, 0.0231], abs=5e-5)
    assert [slow.kl(r, p, k).loss for k in ("k1", "k2", "k3")] == pytest.approx([-0.2231, 0.0249, 0.0269], abs=5e-5)
    matrix = [[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]]
    assert slow.whiten(matrix, shift_mean=True)[0][0] == pytest.approx(-1.549, abs=5e-4)
    assert slow.whiten(matrix, shift_mean=False)[0][0] == pytest.approx(0.0508, abs=5e-5)
    advantages, targets = slow.gae([-0.1, -0.1, 0.9], [0.5, 0.4, 0.3], gamma=1.0, lam=0.95)
    assert advantages == pytest.approx([0.1515, 0.37, 0.6])
    assert targets == pytest.approx([0.6515, 0.77, 0.9])
    rows = [(1, 1.5, None, -1.2, 0), (1, 0.5, None, -0.5, -0.5), (-1, 1.5, None, 1.5, 1.5), (-1, 0.5, None, 0.8, 0)]
    for advantage, ratio, dual, loss, slope in [*rows, (-1, 5.0, 3.0, 3.0, 0)]:
        term = slow.ppo(math.log(ratio), 0.0, advantage, low=0.2, high=0.2, dual=dual)
        assert (term.loss, term.slope) == pytest.approx((loss, slope))
    for target, loss, slope in ((2.0, 0.845, 0.0), (0.4, 0.18, 0.6)):
        term = slow.value(1.0, 0.5, target, clip=0.2)
        assert (term.loss, term.slope) == pytest.approx((loss, slope))
    assert slow.token_rewards(2.0, [-1.0, -2.0], [-1.5, -1.0], beta=0.1, kind="k1") == pytest.approx([-0.05, 2.1])
    assert [slow.score_of(0.5, False, mode, 1.0) for mode in EOS_SHAPINGS] == [0.5, -1.0, -0.5, 0.5]


# --- each part alone --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KL_KINDS)
def test_kl(cases: list[Case], kind: KLKind) -> None:
    for case in cases:
        given = [case.table(batch).requires_grad_() for batch in (case.logps, case.ref_logps)]
        fast = kl_estimate(given[0], given[1], kind)
        slopes = only_gradient(fast, given)
        expected = [[slow.kl(now, ref, kind) for now, ref in row] for row in pairs(case.logps, case.ref_logps)]
        case.same(fast.detach(), fields(expected, "loss"))
        case.same(slopes, fields(expected, "slope"))


@pytest.mark.parametrize("mode", EOS_SHAPINGS)
@pytest.mark.parametrize("kind", KL_KINDS)
def test_rewards(cases: list[Case], kind: KLKind, mode: EosShaping) -> None:
    for case in cases:
        scores = torch.tensor(case.scores, dtype=torch.float64)
        scores = eos_shaping(scores, torch.tensor(case.ended), mode=mode, penalty=1.0)
        old, ref = case.table(case.old_logps), case.table(case.ref_logps)
        fast = token_rewards(scores, old, ref, case.mask, beta=case.beta, kl=kind)
        case.same(fast, slow_rewards(case, kind, mode), zero_off=True)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening(cases: list[Case], shift_mean: bool) -> None:
    for case in cases:
        for batch in (case.old_values, [[x + 1e3 for x in answer] for answer in case.old_values]):
            fast = whiten(case.table(batch), case.mask, shift_mean=shift_mean)
            expected = slow.whiten(batch, shift_mean=shift_mean)
            if batch is case.old_values:
                case.same(fast, expected, zero_off=True)
            else:  # the mean's own rounding, 1e-13, is divided by a spread that may be 0.01
                worst = (case.on(fast) - torch.tensor(flat(expected), dtype=torch.float64)).abs().max()
                assert worst < 1e-10, f"batch {case.seed}"


def test_gae(cases: list[Case]) -> None:
    for case in cases:
        rewards = slow_rewards(case, "k1", "replace")
        advantages, targets = slow_advantages(case, rewards)
        fast = gae(case.table(rewards), case.table(case.old_values), case.mask, gamma=case.gamma, lam=case.lam)
        case.same(fast[0], advantages, zero_off=True)
        case.same(fast[1], targets, zero_off=True)


def test_ppo_loss_and_its_slope(cases: list[Case]) -> None:
    for case in cases:
        advantages = [[x if x > -2 else 0.0 for x in answer] for answer in case.old_values]  # some exactly zero
        given = [case.table(batch).requires_grad_() for batch in (case.logps, case.old_logps, advantages)]
        terms = ppo(*given, clip_low=case.low, clip_high=case.high, dual_clip=case.dual)
        slopes = only_gradient(terms.loss, given)
        expected = slow_ppo(case, advantages)
        case.same(terms.loss.detach(), fields(expected, "loss"))
        case.same(terms.clipped, fields(expected, "clipped"))
        case.same(slopes, fields(expected, "slope"))


def test_value_loss_and_its_slope(cases: list[Case]) -> None:
    for case in cases:
        given = [case.table(batch).requires_grad_() for batch in (case.values, case.old_values, case.ref_logps)]
        fast = clipped_value(*given, clip=case.clip_value)
        slopes = only_gradient(fast, given)
        expected = slow_value(case, case.ref_logps)
        case.same(fast.detach(), fields(expected, "loss"))
        case.same(slopes, fields(expected, "slope"))


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_aggregation_and_its_gradient(cases: list[Case], how: Aggregation) -> None:
    for case in cases:
        losses = case.table(case.values).requires_grad_()
        totals = Totals(tokens=sum(case.lengths), sequences=len(case.lengths), length=LONGEST)
        contributions = aggregate(losses, case.mask, how, totals)
        (gradient,) = torch.autograd.grad(contributions.sum(), losses)
        terms = [[slow.Term(x, 1.0) for x in answer] for answer in case.values]
        loss, expected = slow.aggregate(terms, how, LONGEST)
        close(contributions.sum().detach(), torch.tensor(loss, dtype=torch.float64), case.seed)
        case.same(gradient, expected, zero_off=True)  # zero off the answers even where the loss is nan there


# --- the whole chain --------------------------------------------------------------------------------------------------


def fast_chain(
    case: Case, given: dict[str, Tensor], kind: KLKind, mode: EosShaping, how: Aggregation
) -> tuple[Tensor, Tensor]:
    """Scores -> rewards -> advantages -> the two losses, in the order of the policy stage."""
    mask = case.mask
    scores = eos_shaping(given["scores"], torch.tensor(case.ended), mode=mode, penalty=1.0)
    rewards = token_rewards(scores, given["old_logps"], given["ref_logps"], mask, beta=case.beta, kl=kind)
    if case.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False)
    advantages, targets = gae(rewards, given["old_values"], mask, gamma=case.gamma, lam=case.lam)
    advantages = whiten(advantages, mask)
    totals = Totals(tokens=sum(case.lengths), sequences=len(case.lengths), length=LONGEST)
    cut = random.Random(case.seed).randint(0, len(case.lengths))  # two micro-batches, one of them perhaps empty
    policy_loss = value_loss = torch.zeros((), dtype=torch.float64)
    for rows in (slice(0, cut), slice(cut, None)):
        terms = ppo(
            given["logps"][rows], given["old_logps"][rows], advantages[rows],
            clip_low=case.low, clip_high=case.high, dual_clip=case.dual,
        )  # fmt: skip
        errors = clipped_value(given["values"][rows], given["old_values"][rows], targets[rows], clip=case.clip_value)
        policy_loss = policy_loss + aggregate(terms.loss, mask[rows], how, totals).sum()
        value_loss = value_loss + aggregate(errors, mask[rows], how, totals).sum()
    return policy_loss, value_loss


@pytest.mark.parametrize(("kind", "mode"), [("k1", "replace"), ("k2", "subtract"), ("k3", "none")])
def test_the_whole_chain_and_its_gradients(cases: list[Case], kind: KLKind, mode: EosShaping) -> None:
    for case in cases:
        how = AGGREGATIONS[case.seed % len(AGGREGATIONS)]
        names = ("old_logps", "ref_logps", "old_values", "logps", "values")
        given = {name: case.table(getattr(case, name)).requires_grad_() for name in names}
        given["scores"] = torch.tensor(case.scores, dtype=torch.float64, requires_grad=True)
        policy_loss, value_loss = fast_chain(case, given, kind, mode, how)
        (policy_loss + value_loss).backward()

        rewards = slow_rewards(case, kind, mode)
        if case.whiten_rewards:
            rewards = slow.whiten(rewards, shift_mean=False)
        advantages, targets = slow_advantages(case, rewards)
        advantages = slow.whiten(advantages, shift_mean=True)
        loss, gradient = slow.aggregate(slow_ppo(case, advantages), how, LONGEST)
        critic_loss, critic_gradient = slow.aggregate(slow_value(case, targets), how, LONGEST)

        close(policy_loss.detach(), torch.tensor(loss, dtype=torch.float64), case.seed)
        close(value_loss.detach(), torch.tensor(critic_loss, dtype=torch.float64), case.seed)
        clean = case.fill != "nan"  # a nan that is handed in is not looked at, but its own gradient is nobody's promise
        for name, expected in (("logps", gradient), ("values", critic_gradient)):
            found = given[name].grad
            assert found is not None
            case.same(found, expected, zero_off=clean)
        assert all(given[name].grad is None for name in ("old_logps", "ref_logps", "old_values", "scores"))


# --- are the batches what they should be? -----------------------------------------------------------------------------


def test_the_batches_reach_every_branch(cases: list[Case]) -> None:
    seen: Counter[str] = Counter()
    for case in cases:
        seen[case.fill] += 1
        seen["float mask"] += case.float_mask
        seen["length 1"] += 1 in case.lengths
        seen["one token in all"] += case.lengths == [1]
        seen["gap"] += any(places != list(range(len(places))) for places in case.places)
        seen["cut"] += not all(case.ended)
        seen["unmoved"] += case.logps == case.old_logps
        advantages, targets = slow_advantages(case, slow_rewards(case, "k1", "replace"))
        tokens = [pair for row in pairs(case.logps, case.old_logps) for pair in row]
        judged = zip(tokens, flat(slow_ppo(case, advantages)), flat(advantages), strict=True)
        for (now, old), term, advantage in judged:
            ratio = math.exp(now - old)
            sign = "good" if advantage > 0 else "bad"
            seen[f"{sign} {'clipped' if term.clipped else 'free'}"] += 1
            seen[f"{sign} beyond 20"] += abs(now - old) > 20
            seen["dual"] += advantage < 0 and case.dual is not None and case.dual < ratio < 1e6
        for term in flat(slow_value(case, targets)):
            seen["value held" if term.clipped else "value free"] += 1
        if case.clip_value is not None:
            moves = [
                abs(now - old) > case.clip_value for row in pairs(case.values, case.old_values) for now, old in row
            ]
            held = [term.clipped for term in flat(slow_value(case, targets))]
            seen["moved far, yet free"] += sum(far and not is_held for far, is_held in zip(moves, held, strict=True))
    assert len(cases) >= 200
    wanted = {
        "zero", "garbage", "nan", "float mask", "length 1", "one token in all", "gap", "cut", "unmoved",
        "good clipped", "good free", "bad clipped", "bad free", "good beyond 20", "bad beyond 20", "dual",
        "value held", "value free", "moved far, yet free",
    }  # fmt: skip
    assert wanted == set(seen)
    assert min(seen[name] for name in wanted) >= 5, seen
