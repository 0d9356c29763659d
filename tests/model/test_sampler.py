"""The sampler against the trainer, against plain greedy decoding, and against the distribution it reports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pydantic
import pytest
import torch
from scipy.stats import chi2

from trimtab.errors import ModelError
from trimtab.model.sampler import Sampled, Sampling, TorchSampler, choose
from trimtab.model.trunk import Lora, Trunk
from trimtab.tensors.tree import TokenGroup, pack

EOS = 257
PROMPTS = ((256, 5, 6, 7), (256, 40), (256, *range(60, 97)), (256, 200, 201), (256, 9, 9, 9, 9, 9, 9))
LOGITS = torch.tensor([2.0, -1.0, 0.5, 1.0, -torch.inf, 0.0])


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on so small a model wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trunk(tiny_cache: Path) -> Trunk:
    """The tiny model, with an adapter that changes its answers."""
    trunk = Trunk.load("tiny", dtype="float32")
    trunk.add_adapter("noisy", Lora(rank=4, alpha=8), seed=1)
    generator = torch.Generator().manual_seed(0)
    for parameter in trunk.adapter_parameters("noisy"):
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return trunk


def sampler(
    trunk: Trunk, adapter: str | None = "noisy", *, stop: Sequence[int] = (EOS,), slots: int = 32
) -> TorchSampler:
    return TorchSampler(trunk, adapter, stop=frozenset(stop), slots=slots)


def trainer_logps(
    trunk: Trunk, adapter: str | None, prompt: Sequence[int], a: Sampled, temperature: float
) -> list[float]:
    batch = pack([TokenGroup(prompt=tuple(prompt), answers=(a.tokens,))])
    with torch.no_grad(), trunk.using(adapter):
        return trunk.logps(batch, temperature=temperature)[0].tolist()


# --- against the models -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", [None, "noisy"])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_the_trainers(trunk: Trunk, adapter: str | None, temperature: float) -> None:
    sampling = Sampling(max_tokens=40, temperature=temperature)  # past a bucket of the cache
    sampled = sampler(trunk, adapter, slots=3).sample(PROMPTS, k=2, sampling=sampling, seed=3)
    for prompt, own in zip(PROMPTS, sampled, strict=True):
        for answer in own:
            expected = trainer_logps(trunk, adapter, prompt, answer, temperature)
            assert answer.logps == pytest.approx(expected, abs=1e-4)


def test_the_adapter_is_merged_for_sampling_and_the_base_comes_back_to_the_same_bits(trunk: Trunk) -> None:
    before = {name: tensor.clone() for name, tensor in trunk.base.state_dict().items()}
    sampling = Sampling(max_tokens=12)
    with_adapter = sampler(trunk, "noisy").sample(PROMPTS, k=1, sampling=sampling, seed=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk.base.state_dict().items())
    assert with_adapter != sampler(trunk, None).sample(PROMPTS, k=1, sampling=sampling, seed=0)


@pytest.mark.parametrize("adapter", [None, "noisy"])
def test_greedy_is_the_chain_of_argmaxes_of_the_plain_model(trunk: Trunk, adapter: str | None) -> None:
    cap = 12
    sampled = sampler(trunk, adapter, slots=2).sample(
        PROMPTS, k=1, sampling=Sampling(max_tokens=cap, temperature=0), seed=0
    )
    for prompt, (answer,) in zip(PROMPTS, sampled, strict=True):
        tokens, logps = list(prompt), []
        with torch.no_grad(), trunk.using(adapter):
            while len(logps) < cap and (not logps or tokens[-1] != EOS):
                batch = pack([TokenGroup(prompt=tuple(tokens), answers=())])
                scores = trunk.head.logits(trunk.hidden(batch)[-1]).log_softmax(-1)
                tokens.append(int(scores.argmax()))
                logps.append(float(scores.max()))
        assert list(answer.tokens) == tokens[len(prompt) :]
        assert answer.logps == pytest.approx(logps, abs=1e-4)


# --- slots ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_answers_whatever_the_slots(trunk: Trunk) -> None:
    # Many tokens end an answer here, so rows end at different times and slots are used again.
    def answers(slots: int, seed: int) -> list[list[tuple[tuple[int, ...], str]]]:
        made = sampler(trunk, stop=range(0, 259, 9), slots=slots).sample(
            PROMPTS, k=3, sampling=Sampling(max_tokens=20), seed=seed
        )
        return [[(a.tokens, a.finish) for a in own] for own in made]

    one = answers(1, 5)
    assert one == answers(3, 5) == answers(32, 5)
    assert one != answers(1, 6)
    assert len({len(tokens) for own in one for tokens, _ in own}) > 3
    assert len({own[0][0] for own in one} | {own[1][0] for own in one}) > len(PROMPTS)


def test_an_answer_does_not_depend_on_how_many_are_asked_for(trunk: Trunk) -> None:
    few = sampler(trunk).sample(PROMPTS, k=1, sampling=Sampling(max_tokens=8), seed=2)
    many = sampler(trunk).sample(PROMPTS, k=3, sampling=Sampling(max_tokens=8), seed=2)
    assert [own[0].tokens for own in few] == [own[0].tokens for own in many]


@pytest.mark.parametrize(("slots", "prefills"), [(32, 1), (4, 5)])
def test_all_answers_to_a_prompt_share_one_prefill(trunk: Trunk, slots: int, prefills: int) -> None:
    calls: list[tuple[int, ...]] = []
    trunk.decoder.register_forward_hook(
        lambda module, args, kwargs, out: calls.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sampler(trunk, stop=(), slots=slots).sample(PROMPTS, k=4, sampling=Sampling(max_tokens=3), seed=0)
    prefilled = [width for rows, width in calls if rows == 1 and width > 1]
    assert len(prefilled) == prefills
    assert sum(prefilled) == sum(map(len, PROMPTS))  # each prompt once, for its four answers
    decoded = [shape for shape in calls if shape[1] == 1]
    assert len(decoded) == 2 * (1 if slots == 32 else len(PROMPTS))  # the first token comes out of the prefill


def test_answers_that_end_at_their_first_token(trunk: Trunk) -> None:
    heard: list[int] = []
    sampled = sampler(trunk, stop=range(259), slots=2).sample(
        PROMPTS, k=3, sampling=Sampling(max_tokens=50), seed=0, progress=heard.append
    )
    assert all((len(a.tokens), len(a.logps), a.finish) == (1, 1, "stop") for own in sampled for a in own)
    assert heard == list(range(1, 16))


def test_finish_reasons(trunk: Trunk) -> None:
    stop = set(range(0, 259, 5))
    sampled = sampler(trunk, stop=tuple(stop)).sample(PROMPTS, k=6, sampling=Sampling(max_tokens=6), seed=1)
    answers = [a for own in sampled for a in own]
    for a in answers:
        assert len(a.tokens) == len(a.logps)
        assert not stop & set(a.tokens[:-1])
        if a.finish == "stop":
            assert a.tokens[-1] in stop
        else:
            assert a.tokens[-1] not in stop
            assert len(a.tokens) == 6
    assert {a.finish for a in answers} == {"stop", "length"}
    # one that ends with the cap's very last token has ended by itself
    exact = next(a for a in answers if a.finish == "stop" and len(a.tokens) > 1)
    (index,) = [(i, j) for i, own in enumerate(sampled) for j, a in enumerate(own) if a is exact]
    again = sampler(trunk, stop=tuple(stop)).sample(
        PROMPTS, k=6, sampling=Sampling(max_tokens=len(exact.tokens)), seed=1
    )[index[0]][index[1]]
    assert (again.tokens, again.finish) == (exact.tokens, "stop")


def test_progress_counts_each_finished_answer_once(trunk: Trunk) -> None:
    heard: list[int] = []
    sampler(trunk, slots=2, stop=range(0, 259, 7)).sample(
        PROMPTS, k=2, sampling=Sampling(max_tokens=9), seed=0, progress=heard.append
    )
    assert heard == list(range(1, 11))


def test_nothing_asked_for(trunk: Trunk) -> None:
    assert sampler(trunk).sample([], k=2, sampling=Sampling(), seed=0) == []
    assert sampler(trunk).sample(PROMPTS[:2], k=0, sampling=Sampling(), seed=0) == [[], []]
    with pytest.raises(ModelError, match="empty prompt"):
        sampler(trunk).sample([()], k=1, sampling=Sampling(), seed=0)


# --- the distribution -------------------------------------------------------------------------------------------------


def allowed(sampling: Sampling) -> dict[int, float]:
    """The distribution that is meant, by enumeration: token -> probability."""
    weights = [math.exp(x / sampling.temperature) for x in LOGITS.tolist()]
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if mass >= sampling.top_p * total:
            break
        kept.append(i)
        mass += weights[i]
    return {i: weights[i] / mass for i in kept if weights[i]}


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.5),
    Sampling(temperature=2.0),
    Sampling(top_k=1),
    Sampling(top_k=3),
    Sampling(top_k=50),
    Sampling(top_p=0.05),
    Sampling(top_p=0.75),
    Sampling(top_p=0.95),
    Sampling(top_k=3, top_p=0.8, temperature=1.3),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_choose_draws_from_the_distribution_it_reports(sampling: Sampling) -> None:
    n = 20_000
    uniform = torch.rand(n, generator=torch.Generator().manual_seed(11))
    tokens, logps = choose(LOGITS.expand(n, -1), uniform, sampling)
    expected = allowed(sampling)
    counts = Counter(tokens.tolist())
    assert set(counts) <= set(expected)
    for token, logp in zip(tokens.tolist()[:200], logps.tolist()[:200], strict=True):
        assert logp == pytest.approx(math.log(expected[token]), abs=1e-5)
    if len(expected) > 1:
        statistic = sum((counts[t] - n * p) ** 2 / (n * p) for t, p in expected.items())
        assert chi2.sf(statistic, len(expected) - 1) > 1e-3


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_ends_of_the_unit_interval_never_pick_an_impossible_token(sampling: Sampling) -> None:
    ends = torch.tensor([0.0, 1e-45, math.nextafter(1.0, 0.0), 1.0])  # the third is 1 in float32
    tokens, logps = choose(LOGITS.expand(4, -1), ends, sampling)
    assert set(tokens.tolist()) <= set(allowed(sampling))
    assert bool(logps.isfinite().all())


def test_impossible_tokens_on_both_sides() -> None:
    logits = torch.tensor([-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf])
    tokens, logps = choose(logits.expand(3, -1), torch.tensor([0.0, 0.5, 1.0]), Sampling())
    assert tokens.tolist() == [1, 3, 3]
    assert logps.tolist() == pytest.approx([math.log(0.5)] * 3)


def test_top_p_on_a_flat_distribution_wider_than_the_head_that_is_sorted_first() -> None:
    n = 3000
    tokens, logps = choose(torch.zeros(1, n).expand(64, -1), torch.linspace(0, 1, 64), Sampling(top_p=0.5))
    assert len(set(tokens.tolist())) > 60
    assert logps.tolist() == pytest.approx([-math.log(n / 2)] * 64, abs=2e-3)


def test_greedy_reports_the_log_probability_at_temperature_one() -> None:
    tokens, logps = choose(LOGITS[None], torch.tensor([0.99]), Sampling(temperature=0, top_k=2))
    assert tokens.tolist() == [0]
    assert logps.tolist() == pytest.approx([math.log(allowed(Sampling())[0])])


@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}])
def test_settings_that_mean_nothing_are_refused_where_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError):
        pydantic.TypeAdapter(Sampling).validate_python(wrong)
