from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.errors import InvariantError
from trimtab.train.optim import Optimiser, ParameterGroup, schedule


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give(live: list[nn.Parameter], step: int, scale: float = 1.0) -> None:
    """The gradient of one micro-batch, from (step) alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    for parameter in live:
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = (scale * drawn).to(parameter.dtype)


def test_schedule_numbers() -> None:
    # 100 steps, w = 10: steps 0..9 climb by tenths, 10..99 fall along the cosine; 89 steps lie between 10 and 99.
    assert schedule(0, 100, warmup=0.1) == 0.1
    assert schedule(4, 100, warmup=0.1) == 0.5
    assert schedule(9, 100, warmup=0.1) == 1.0
    assert schedule(10, 100, warmup=0.1) == 1.0
    assert schedule(99, 100, warmup=0.1) == 0.1
    # An odd number of steps has a middle: w = 0, 0..100, the middle is step 50 at (1 + 0.1) / 2.
    assert schedule(50, 101, warmup=0.0) == pytest.approx(0.55, abs=1e-15)
    # A third of the way: cos(pi / 3) = 1/2, so 0.1 + 0.9 * 0.75.
    assert schedule(20, 61, warmup=0.0) == pytest.approx(0.775, abs=1e-15)
    assert schedule(3, 4, warmup=0.0, floor=0.25) == 0.25


def test_schedule_of_very_few_steps() -> None:
    assert schedule(0, 1) == 1.0
    assert [schedule(s, 2) for s in range(2)] == [1.0, 1.0]  # one warm-up step, one step that nothing follows
    assert [schedule(s, 3) for s in range(3)] == [1.0, 1.0, 0.1]


@given(steps=st.integers(1, 400), warmup=st.floats(0.0, 0.5), floor=st.floats(0.01, 1.0))
def test_schedule_never_zero_rises_then_falls(steps: int, warmup: float, floor: float) -> None:
    factors = [schedule(s, steps, warmup=warmup, floor=floor) for s in range(steps)]
    w = math.ceil(warmup * steps)
    assert all(0 < f <= 1 + 1e-12 for f in factors)
    assert all(a < b for a, b in pairwise(factors[:w]))
    assert all(a >= b - 1e-12 for a, b in pairwise(factors[w:]))
    if steps - w >= 2:
        assert factors[-1] == floor


def test_a_step_is_torch_adamw() -> None:
    live, theirs = parameters((3, 4), (5,)), parameters((3, 4), (5,))
    ours = Optimiser([ParameterGroup(name="all", parameters=live, lr=0.01)], weight_decay=0.1, max_grad_norm=1.0)
    adam = torch.optim.AdamW(theirs, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in range(5):
        factor = schedule(step, 5, warmup=0.4)
        give(live, step, scale=3.0)
        give(theirs, step, scale=3.0)
        ours.accumulate()
        norms = ours.step(factor)
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in theirs if p.grad is not None))
        assert norms == {"all": pytest.approx(norm, rel=1e-12)}
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        for group in adam.param_groups:
            group["lr"] = 0.01 * factor
        adam.step()
        for mine, their in zip(live, theirs, strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-14, atol=1e-15)


def test_first_step_by_hand() -> None:
    # Adam's first step has m / sqrt(v) = sign(g): w = 1 - 0.1 * sign; a gradient of 0 stays.
    (w,) = live = [nn.Parameter(torch.ones(3, dtype=torch.float64))]
    optimiser = Optimiser([ParameterGroup(name="w", parameters=live, lr=0.1)], max_grad_norm=1e9)
    w.grad = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64)
    optimiser.accumulate()
    assert w.grad is None
    assert optimiser.step(0.5) == {"w": 5.0}
    torch.testing.assert_close(w.detach(), torch.tensor([0.95, 1.05, 1.0], dtype=torch.float64), rtol=0, atol=1e-9)


def test_micro_batches_add_up() -> None:
    once, twice = parameters((4, 4)), parameters((4, 4))
    a = Optimiser([ParameterGroup(name="w", parameters=once, lr=0.01)])
    b = Optimiser([ParameterGroup(name="w", parameters=twice, lr=0.01)])
    give(once, 0)
    a.accumulate()
    for _ in range(4):
        give(twice, 0, scale=0.25)
        b.accumulate()
    assert a.step(1.0) == b.step(1.0)
    assert torch.equal(once[0], twice[0])


def test_bfloat16_follows_its_master() -> None:
    # 1 + 1e-4 is 1 in bfloat16 (next: 1.0078): a hundred steps of 1e-4 are lost without a master.
    (w,) = live = [nn.Parameter(torch.ones(2, dtype=torch.bfloat16))]
    optimiser = Optimiser([ParameterGroup(name="w", parameters=live, lr=1e-4)])
    for _ in range(100):
        w.grad = torch.tensor([-1.0, 1.0], dtype=torch.bfloat16)
        optimiser.accumulate()
        optimiser.step(1.0)
    (master,) = optimiser.masters["w"]
    assert master.dtype == torch.float32
    torch.testing.assert_close(master, torch.tensor([1.01, 0.99]), rtol=1e-5, atol=0)
    assert torch.equal(w.detach(), master.bfloat16())
    assert w[0] > 1 > w[1]


def test_bfloat16_gradients_are_summed_in_float32() -> None:
    # 256 + 1 is 256 in bfloat16.
    (w,) = live = [nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))]
    optimiser = Optimiser([ParameterGroup(name="w", parameters=live, lr=1e-4)])
    for gradient in (256.0, 1.0, 1.0):
        w.grad = torch.tensor([gradient], dtype=torch.bfloat16)
        optimiser.accumulate()
    assert optimiser.step(1.0) == {"w": 258.0}


def test_groups_are_clipped_apart() -> None:
    (small,), (large,) = parameters((2,)), parameters((2,))
    optimiser = Optimiser(
        [
            ParameterGroup(name="small", parameters=[small], lr=0.1),
            ParameterGroup(name="large", parameters=[large], lr=1),
        ]
    )
    small.grad = torch.tensor([0.3, 0.4], dtype=torch.float64)  # norm 0.5: stays
    large.grad = torch.tensor([30.0, 40.0], dtype=torch.float64)  # norm 50: scaled to 1
    optimiser.accumulate()
    assert optimiser.step(1.0) == {"small": pytest.approx(0.5), "large": pytest.approx(50.0)}
    state = optimiser.state()  # the first moment after one step is (1 - 0.9) g
    torch.testing.assert_close(
        state["small/0/exp_avg"], torch.tensor([0.03, 0.04], dtype=torch.float64), rtol=1e-12, atol=0
    )
    torch.testing.assert_close(
        state["large/0/exp_avg"], torch.tensor([0.06, 0.08], dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_rates_by_hand() -> None:
    # Adam's first step is the rate in every place, whatever the gradient: 0.1 * (1, 16, 1/2), halved by the schedule.
    live = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]
    optimiser = Optimiser([ParameterGroup(name="w", parameters=live, lr=0.1, rates=[1.0, 16.0, 0.5])])
    for parameter, gradient in zip(live, (3.0, 4.0, -12.0), strict=True):
        parameter.grad = torch.tensor([gradient, 0.0], dtype=torch.float64)
    optimiser.accumulate()
    assert optimiser.step(0.5) == {"w": pytest.approx(13.0)}  # one norm over all of them
    moved = [float(parameter.detach()[0]) for parameter in live]
    assert moved == [pytest.approx(x, rel=1e-6) for x in (-0.05, -0.8, 0.025)]
    state = optimiser.state()  # clipped by 13 together: the first moments are 0.1 g / 13
    assert [float(state[f"w/{i}/exp_avg"][0]) for i in range(3)] == [
        pytest.approx(0.1 * g / 13, rel=1e-6) for g in (3.0, 4.0, -12.0)
    ]


def test_a_rate_is_needed_for_every_parameter() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Optimiser([ParameterGroup(name="w", parameters=parameters((2,), (3,)), lr=0.1, rates=[1.0])])


@pytest.mark.parametrize("rates", [None, [1.0] * 3, [1.0, 0.25, 1.0]])
def test_rates_of_one_change_no_bit_and_others_resume(rates: list[float] | None) -> None:
    def fresh(own: list[float] | None) -> Optimiser:
        live = parameters((3, 2), (4,), (5,), dtype=torch.float32)
        return Optimiser([ParameterGroup(name="critic", parameters=live, lr=0.01, rates=own)], weight_decay=0.1)

    plain, whole, first, second = fresh(None), fresh(rates), fresh(rates), fresh(rates)
    train(plain, range(6))
    train(whole, range(6))
    assert same(plain.state(), whole.state()) == (rates is None or set(rates) == {1.0})
    train(first, range(3))
    second.load({name: tensor.clone() for name, tensor in first.state().items()})
    train(second, range(3, 6))
    assert same(second.state(), whole.state())


def two_groups(dtype: torch.dtype = torch.float32) -> Optimiser:
    return Optimiser(
        [
            ParameterGroup(name="actor", parameters=parameters((3, 2), (4,), dtype=dtype), lr=0.01),
            ParameterGroup(name="critic", parameters=parameters((5,), dtype=dtype, seed=1), lr=0.02),
        ]
    )


def live_of(optimiser: Optimiser) -> list[nn.Parameter]:
    return [p for group in optimiser.groups.values() for p in group.parameters]


def train(optimiser: Optimiser, steps: range) -> None:
    for step in steps:
        give(live_of(optimiser), step)
        optimiser.accumulate()
        optimiser.step(schedule(step, 10), ("critic",) if step < 2 else None)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stop", [1, 2, 5])
def test_state_and_load_go_on_to_the_same_bits(dtype: torch.dtype, stop: int) -> None:
    whole = two_groups(dtype)
    train(whole, range(8))
    first = two_groups(dtype)
    train(first, range(stop))
    saved = {name: tensor.clone() for name, tensor in first.state().items()}
    second = two_groups(dtype)
    second.load(saved)
    assert same(second.state(), saved)
    train(second, range(stop, 8))
    assert same(second.state(), whole.state())
    assert all(torch.equal(a, b) for a, b in zip(live_of(second), live_of(whole), strict=True))


def test_load_replaces_what_was_there() -> None:
    untouched = two_groups()
    start = {name: tensor.clone() for name, tensor in untouched.state().items()}
    used = two_groups()
    train(used, range(5))
    used.load(start)
    assert same(used.state(), start)


def test_loaded_state_is_a_copy() -> None:
    first, second = two_groups(), two_groups()
    train(first, range(3))
    second.load(first.state())
    before = {name: tensor.clone() for name, tensor in first.state().items()}
    train(second, range(3, 5))
    assert same(first.state(), before)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float, where: int) -> None:
    optimiser = two_groups()
    train(optimiser, range(4))
    state = {name: tensor.clone() for name, tensor in optimiser.state().items()}
    weights = [p.detach().clone() for p in live_of(optimiser)]
    give(live_of(optimiser), 4)
    gradient = live_of(optimiser)[where].grad
    assert gradient is not None
    gradient.view(-1)[0] = bad
    optimiser.accumulate()
    with pytest.raises(InvariantError, match=("'actor'", "", "'critic'")[where] + " is not finite"):
        optimiser.step(1.0)
    assert same(optimiser.state(), state)
    assert all(torch.equal(a, b) for a, b in zip(live_of(optimiser), weights, strict=True))


def test_groups_not_named_stay_and_keep_no_gradient() -> None:
    optimiser = two_groups()
    actor = [p.detach().clone() for p in optimiser.groups["actor"].parameters]
    give(live_of(optimiser), 0)
    optimiser.accumulate()
    assert optimiser.step(1.0, ("critic",)).keys() == {"critic"}
    assert all(torch.equal(a, b) for a, b in zip(optimiser.groups["actor"].parameters, actor, strict=True))
    # Nothing of the update before reaches the next one: a kill between them would lose it.
    give(live_of(optimiser), 1)
    optimiser.accumulate()
    norms = optimiser.step(1.0)
    generator = torch.Generator().manual_seed(1001)
    drawn = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in live_of(optimiser)]
    assert norms["actor"] == pytest.approx(math.sqrt(sum(float(d.square().sum()) for d in drawn[:2])), rel=1e-6)


def test_no_gradient_no_step() -> None:
    optimiser = two_groups()
    before = optimiser.state()
    assert optimiser.step(1.0) == {}
    assert same(optimiser.state(), before)
