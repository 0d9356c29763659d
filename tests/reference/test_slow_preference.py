"""Preference losses against Python loops with ``math``, from single tokens up, on random ragged data.

Written from the papers' formulas: nothing of the package is used on the slow side. Gradients are central differences.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trimtab.losses.preference.cdpo import cdpo
from trimtab.losses.preference.dpop import dpop
from trimtab.losses.preference.rrhf import rrhf
from trimtab.losses.preference.tdpo1 import tdpo1
from trimtab.losses.preference.tdpo2 import tdpo2
from trimtab.tensors.masked import masked_sum

VOCABULARY = 5
Distribution = list[float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """One answer: its tokens, and at each place what the policy and the reference give to every token."""

    tokens: list[int]
    policy: list[Distribution]
    reference: list[Distribution]


def distribution(dice: random.Random) -> Distribution:
    weights = [math.exp(dice.gauss(0, 1)) for _ in range(VOCABULARY)]
    return [weight / sum(weights) for weight in weights]


def near(dice: random.Random, old: Distribution) -> Distribution:
    weights = [p * math.exp(dice.gauss(0, 0.2)) for p in old]
    return [weight / sum(weights) for weight in weights]


def answer(dice: random.Random) -> Answer:
    length = dice.randint(1, 7)
    reference = [distribution(dice) for _ in range(length)]
    policy = [near(dice, place) for place in reference]
    return Answer(tokens=[dice.randrange(VOCABULARY) for _ in range(length)], policy=policy, reference=reference)


# The slow side


def log_probability(tokens: list[int], places: list[Distribution]) -> float:
    total = 0.0
    for token, place in zip(tokens, places, strict=True):
        total += math.log(place[token])
    return total


def gain(one: Answer) -> float:
    return log_probability(one.tokens, one.policy) - log_probability(one.tokens, one.reference)


def sequential_kl(one: Answer) -> float:
    total = 0.0
    for policy, reference in zip(one.policy, one.reference, strict=True):
        for p, q in zip(policy, reference, strict=True):
            total += q * math.log(q / p)
    return total


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def slow_cdpo(chosen: Answer, rejected: Answer, beta: float, flips: float) -> float:
    h = beta * (gain(chosen) - gain(rejected))
    return -(1 - flips) * log_sigmoid(h) - flips * log_sigmoid(-h)


def slow_dpop(chosen: Answer, rejected: Answer, beta: float, penalty: float) -> float:
    lost = max(0.0, log_probability(chosen.tokens, chosen.reference) - log_probability(chosen.tokens, chosen.policy))
    return -log_sigmoid(beta * (gain(chosen) - gain(rejected) - penalty * lost))


def slow_tdpo1(chosen: Answer, rejected: Answer, beta: float) -> float:
    u = gain(chosen) - gain(rejected)
    delta = sequential_kl(rejected) - sequential_kl(chosen)
    return -log_sigmoid(beta * u - beta * delta)


def slow_tdpo2(chosen: Answer, rejected: Answer, beta: float, alpha: float) -> float:
    u = gain(chosen) - gain(rejected)
    return -log_sigmoid(beta * u - alpha * beta * (sequential_kl(rejected) - sequential_kl(chosen)))


def slow_rrhf(answers: list[Answer], scores: list[float], weight: float) -> float:
    means = [log_probability(one.tokens, one.policy) / len(one.tokens) for one in answers]
    ranking = 0.0
    for i in range(len(answers)):
        for j in range(len(answers)):
            if scores[i] < scores[j] and means[i] > means[j]:
                ranking += means[i] - means[j]
    best = 0
    for i in range(len(answers)):
        if scores[i] > scores[best]:
            best = i
    return weight * ranking - log_probability(answers[best].tokens, answers[best].policy)


# The fast side: padded columns


def columns(answers: list[Answer]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities under the policy and the reference and the divergence, each (N,), by padding."""
    longest = max(len(one.tokens) for one in answers)
    shape = (len(answers), longest)
    mask = torch.zeros(shape, dtype=torch.bool)
    tokens = torch.zeros(shape, dtype=torch.int64)
    policy, reference = (torch.full((*shape, VOCABULARY), math.nan, dtype=torch.float64) for _ in range(2))
    for row, one in enumerate(answers):
        length = len(one.tokens)
        mask[row, :length] = True
        tokens[row, :length] = torch.tensor(one.tokens)
        policy[row, :length] = torch.tensor(one.policy, dtype=torch.float64).log()
        reference[row, :length] = torch.tensor(one.reference, dtype=torch.float64).log()
    at = tokens.unsqueeze(2)
    logps, ref_logps = (masked_sum(x.gather(2, at).squeeze(2), mask, 1) for x in (policy, reference))
    return logps, ref_logps, masked_sum((reference.exp() * (reference - policy)).sum(2), mask, 1)


PAIRS = 40


@pytest.fixture(scope="module")
def pairs() -> tuple[list[Answer], list[Answer]]:
    dice = random.Random(7)
    return [answer(dice) for _ in range(PAIRS)], [answer(dice) for _ in range(PAIRS)]


@pytest.mark.parametrize(
    ("fast", "slow", "options"),
    [
        (cdpo, slow_cdpo, {"beta": 0.4, "label_smoothing": 0.2}),
        (dpop, slow_dpop, {"beta": 0.3, "penalty": 5.0}),
        (tdpo1, slow_tdpo1, {"beta": 0.7}),
        (tdpo2, slow_tdpo2, {"beta": 0.7, "alpha": 0.3}),
    ],
)
def test_pairs(
    pairs: tuple[list[Answer], list[Answer]],
    fast: Callable[..., Tensor],
    slow: Callable[..., float],
    options: dict[str, float],
) -> None:
    chosen, rejected = pairs
    expected = [slow(*pair, *options.values()) for pair in zip(chosen, rejected, strict=True)]
    (up, ref_up, kl_up), (down, ref_down, kl_down) = columns(chosen), columns(rejected)
    kls = (kl_up, kl_down) if slow in (slow_tdpo1, slow_tdpo2) else ()
    found = fast(up, down, ref_up, ref_down, *kls, **options)
    assert found.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)


def test_both_sides_of_the_penalty_and_of_the_divergences_occur(pairs: tuple[list[Answer], list[Answer]]) -> None:
    """Else the pairs above would not tell DPOP from DPO, or one sign from the other."""
    gains = [gain(one) for one in pairs[0]]
    assert min(gains) < 0 < max(gains)
    apart = [sequential_kl(down) - sequential_kl(up) for up, down in zip(*pairs, strict=True)]
    assert min(apart) < 0 < max(apart)


def differences(loss: Callable[[list[float]], float], at: list[float], step: float = 1e-6) -> list[float]:
    """Return the gradient of a function of several numbers by central differences."""
    found = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i] += step
        down[i] -= step
        found.append((loss(up) - loss(down)) / (2 * step))
    return found


@pytest.mark.parametrize(
    ("fast", "options", "stopped"),
    [
        (cdpo, {"label_smoothing": 0.2}, ()),
        (dpop, {"penalty": 5.0}, ()),
        (tdpo1, {"beta": 0.7}, ()),
        (tdpo2, {"beta": 0.7, "alpha": 0.3}, (4,)),
    ],
)
def test_gradients(
    pairs: tuple[list[Answer], list[Answer]],
    fast: Callable[..., Tensor],
    options: dict[str, float],
    stopped: tuple[int, ...],
) -> None:
    """Of the policy's columns: the two log-probabilities and, for TDPO, the two divergences, less the stopped one."""
    (up, ref_up, kl_up), (down, ref_down, kl_down) = columns(pairs[0][:6]), columns(pairs[1][:6])
    kls = (kl_up, kl_down) if fast in (tdpo1, tdpo2) else ()
    for row in range(6):
        numbers = [x[row].item() for x in (up, down, ref_up, ref_down, *kls)]

        def value(given: list[float]) -> float:
            return fast(*(torch.tensor([x], dtype=torch.float64) for x in given), **options).item()

        given = [torch.tensor([x], dtype=torch.float64, requires_grad=True) for x in numbers]
        fast(*given, **options).sum().backward()
        for i, slope in enumerate(differences(value, numbers)):
            gradient = given[i].grad
            if i in (2, 3) or i in stopped:
                assert gradient is None
            else:
                assert gradient is not None
                assert gradient.item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_lists(seed: int) -> None:
    """Six prompts of one to five answers; scores in quarters, so ties are common."""
    dice = random.Random(seed)
    prompts = [[answer(dice) for _ in range(dice.randint(1, 5))] for _ in range(6)]
    scores = [[dice.randint(0, 4) / 4 for _ in prompt] for prompt in prompts]
    expected = [slow_rrhf(*given, 3.0) for given in zip(prompts, scores, strict=True)]
    shape = (len(prompts), max(map(len, prompts)))
    logps, table = torch.full(shape, -99.0, dtype=torch.float64), torch.full(shape, 9.0, dtype=torch.float64)
    tokens, mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, given) in enumerate(zip(prompts, scores, strict=True)):
        logps[row, : len(prompt)] = columns(prompt)[0]
        tokens[row, : len(prompt)] = torch.tensor([len(one.tokens) for one in prompt])
        table[row, : len(prompt)] = torch.tensor(given, dtype=torch.float64)
        mask[row, : len(prompt)] = True
    assert any(len(set(given)) < len(given) for given in scores)
    assert rrhf(logps, tokens, table, mask, weight=3.0).tolist() == pytest.approx(expected, rel=1e-11, abs=1e-12)
