"""The worker without HTTP: what joins a running batch, in which order, and what is left afterwards."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from trimtab.model.sampler import Row, Sampling, Table, TorchSampler
from trimtab.model.trunk import Trunk
from trimtab.pipeline import find_trained
from trimtab.serving.models import Served, open_models
from trimtab.serving.worker import PREFILL_TOKENS, Ask, BusyError, Job, Piece, StoppedError, Worker

GREEDY = Sampling(max_tokens=40, temperature=0)
HI = (256, *b"Why is it so?", 257)


@pytest.fixture(scope="module")
def models(served_models: dict[str, Path]) -> dict[str, Served]:
    torch.set_num_threads(1)
    return open_models(
        {name: find_trained(str(path)) for name, path in served_models.items()}, window=1500, dtype="float32"
    )


def ask(model: str = "base", prompt: tuple[int, ...] = HI, sampling: Sampling = GREEDY, **more: object) -> Ask:
    return Ask(**{"model": model, "prompt": prompt, "sampling": sampling, "n": 1, "seed": 0, **more})  # type: ignore[arg-type]


def alone(served: Served, asked: Ask) -> list[str]:
    """What the batch sampler makes of the same request."""
    sampler = TorchSampler(served.trunk, None, stop=served.trunk.chat.stop)
    ((*answers,),) = sampler.sample([asked.prompt], k=asked.n, sampling=asked.sampling, seed=asked.seed)
    return [served.trunk.chat.decode(answer.tokens) for answer in answers]


class Heard:
    """The pieces of one request, in the order of all pieces of all requests; ``after`` is called with each."""

    order: ClassVar[deque[Heard]] = deque()

    def __init__(self, after: Callable[[Piece], object] = lambda _: None) -> None:
        self.pieces: list[Piece | None] = []
        self.after = after

    def __call__(self, piece: Piece | None) -> None:
        self.pieces.append(piece)
        Heard.order.append(self)
        if piece is not None:
            self.after(piece)

    def texts(self, n: int = 1) -> list[str]:
        return ["".join(p.text for p in self.pieces if p is not None and p.choice == i) for i in range(n)]

    @property
    def finishes(self) -> list[str | None]:
        return [p.finish for p in self.pieces if p is not None and p.finish]


@pytest.fixture(autouse=True)
def _fresh_order() -> None:
    Heard.order.clear()


def finish(worker: Worker) -> None:
    """Run until nothing is left to do."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    while worker._in_house:
        thread.join(0.01)
        assert thread.is_alive()
    worker.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert not worker._running
    assert not worker._waiting
    assert not any(table.live for table in worker._tables.values())


# --- models -----------------------------------------------------------------------------------------------------------


def test_adapters_share_what_they_do_not_change(models: dict[str, Served]) -> None:
    def storage(name: str) -> set[int]:
        return {p.data_ptr() for p in models[name].trunk.base.parameters()}

    assert not any(own.trunk.adapters for own in models.values())  # merged: plain models
    embeddings = {own.trunk.base.get_input_embeddings().weight.data_ptr() for own in models.values()}
    assert len(embeddings) == 1
    assert storage("base") & storage("red") & storage("blue")
    assert storage("base") - storage("red")
    assert models["red"].trunk.head is models["base"].trunk.head
    assert {own.window for own in models.values()} == {1500}


@pytest.mark.parametrize("name", ["red", "blue"])
def test_what_is_served_is_what_the_artifact_answers(
    models: dict[str, Served], served_models: dict[str, Path], name: str
) -> None:
    trunk, adapter = Trunk.open(find_trained(str(served_models[name])), dtype="float32")
    ((answer,),) = TorchSampler(trunk, adapter, stop=trunk.chat.stop).sample([HI], k=1, sampling=GREEDY, seed=0)
    assert [trunk.chat.decode(answer.tokens)] == alone(models[name], ask(name))
    assert alone(models[name], ask(name)) != alone(models["base"], ask(name))


# --- batching ---------------------------------------------------------------------------------------------------------


def test_requests_that_join_a_running_batch_get_what_they_get_alone(models: dict[str, Served]) -> None:
    worker = Worker(models, slots=4, waiting=9)
    asks = [
        ask("base"),
        ask("red", (256, *b"x" * 90, 257)),
        ask("base", (256, 65, 257), Sampling(max_tokens=90, temperature=1.5), n=3, seed=7),
        ask("blue", sampling=Sampling(max_tokens=25, temperature=0.9, top_p=0.8), seed=-3),
        ask("base", (256, *b"yes" * 20, 257), Sampling(max_tokens=1, top_k=5), seed=2**62),
    ]
    heard = [Heard() for _ in asks]

    def submit(i: int) -> None:
        worker.submit(asks[i], heard[i])

    def join(piece: Piece) -> None:
        if piece.num_tokens >= 5 and not joined:
            joined.append(True)
            for i in range(1, len(asks)):
                submit(i)

    joined: list[bool] = []
    heard[0].after = join
    submit(0)
    finish(worker)
    for asked, own in zip(asks, heard, strict=True):
        assert own.texts(asked.n) == alone(models[asked.model], asked)
        assert len(own.finishes) == asked.n
    first_end = [i for i, own in enumerate(Heard.order) if own is heard[0]][-1]
    assert all(any(own is other for own in list(Heard.order)[:first_end]) for other in heard[1:3])  # beside it


def test_free_slots_go_to_those_who_came_first(models: dict[str, Served]) -> None:
    worker = Worker(models, slots=2, waiting=20)
    short = Sampling(max_tokens=3, temperature=0)
    heard = [Heard() for _ in range(8)]
    worker.submit(ask(sampling=Sampling(max_tokens=400, temperature=0)), long := Heard())
    for i, own in enumerate(heard):
        worker.submit(ask(("base", "red", "blue")[i % 3], sampling=short), own)
    finish(worker)
    ends = list(dict.fromkeys(reversed(Heard.order)))[::-1]
    assert ends == [*heard, long]
    assert all(own.finishes == ["length"] for own in heard)


def test_prompts_that_are_long_together_are_run_in_turns(models: dict[str, Served]) -> None:
    widths: list[int] = []
    hook = models["base"].trunk.decoder.register_forward_hook(
        lambda module, args, kwargs, out: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    worker = Worker(models, slots=4)
    prompts = [(256, *([65 + i] * 899), 257) for i in range(3)]
    heard = [Heard() for _ in prompts]
    for prompt, own in zip(prompts, heard, strict=True):
        worker.submit(ask(prompt=prompt, sampling=Sampling(max_tokens=4, temperature=0)), own)
    finish(worker)
    hook.remove()
    assert [width for width in widths if width > 1] == [2 * 901, 901]
    assert 2 * 901 <= PREFILL_TOKENS < 3 * 901
    assert widths.index(901) > widths.index(1)  # those who were in decoded in between


def test_one_prompt_is_run_once_for_all_its_answers_even_if_they_wait(models: dict[str, Served]) -> None:
    widths: list[int] = []
    hook = models["red"].trunk.decoder.register_forward_hook(
        lambda module, args, kwargs, out: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    worker = Worker(models, slots=2, waiting=3)
    asked = ask("red", n=5, sampling=Sampling(max_tokens=6), seed=1)
    worker.submit(asked, own := Heard())
    finish(worker)
    hook.remove()
    assert [width for width in widths if width > 1] == [len(HI)]
    assert own.texts(5) == alone(models["red"], asked)


def test_nothing_is_kept_when_nothing_is_left(models: dict[str, Served]) -> None:
    worker = Worker(models, slots=2)
    worker.submit(ask("red"), Heard())
    finish(worker)
    assert worker.load == (0, 0)
    table = worker._tables["red"]
    table.keep_live()
    assert table.rows == []
    assert table.cache.keys == {}


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_answer_where_it_stands(models: dict[str, Served]) -> None:
    (whole,) = alone(models["red"], ask("red"))
    at = next(i for i in range(5, len(whole)) if (s := whole[i : i + 3]).isascii() and whole.index(s) == i)
    stop = whole[at : at + 3]
    worker = Worker(models, slots=1)
    worker.submit(ask("red", stops=(stop, "never said")), own := Heard())
    finish(worker)
    assert own.texts() == [whole[:at]]
    assert own.finishes == ["stop"]
    last = own.pieces[-1]
    assert last is not None
    assert at + 3 <= last.num_tokens < 40


def test_cancelled_answers_stop_and_leave_their_slots(models: dict[str, Served]) -> None:
    worker = Worker(models, slots=1, waiting=2)
    jobs: list[Job] = []

    def cancel(piece: Piece) -> None:
        if piece.num_tokens >= 3:
            for job in jobs[:2]:
                job.cancel()

    endless = Sampling(max_tokens=1400, temperature=0)
    heard = [Heard(cancel), Heard(), Heard()]
    for own, sampling in zip(heard, (endless, endless, GREEDY), strict=True):
        jobs.append(worker.submit(ask(sampling=sampling), own))
    finish(worker)
    assert 0 < len(heard[0].pieces) < 50
    assert not heard[0].finishes
    assert not heard[1].pieces
    assert heard[2].finishes == ["length"]


def test_a_full_house_is_refused_with_a_time_to_come_back(models: dict[str, Served]) -> None:
    worker = Worker(models, slots=2, waiting=1)
    worker.submit(ask(n=2), Heard())
    worker.submit(ask(), own := Heard())
    with pytest.raises(BusyError, match="1 answers are waiting already") as refused:
        worker.submit(ask(), Heard())
    assert 1 <= refused.value.seconds <= 60
    finish(worker)
    assert own.finishes == ["length"]
    with pytest.raises(StoppedError):
        worker.submit(ask(), Heard())


def test_a_failure_reaches_everybody(served_models: dict[str, Path]) -> None:
    models = open_models({"base": find_trained(str(served_models["base"]))}, window=1500, dtype="float32")
    worker = Worker(models, slots=1, waiting=2)
    heard = [Heard() for _ in range(3)]
    for own in heard:
        worker.submit(ask(), own)

    def break_it(piece: Piece) -> None:
        norm = models["base"].trunk.base.model.norm  # type: ignore[union-attr]
        norm.weight.data = norm.weight.data[:7]  # type: ignore[union-attr]

    heard[0].after = break_it
    with pytest.raises(RuntimeError):
        worker.run()
    assert all(own.pieces[-1] is None for own in heard)
    with pytest.raises(StoppedError):
        worker.submit(ask(), Heard())


# --- the table that the worker stands on ------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_table_grows_in_both_directions_while_rows_run(models: dict[str, Served]) -> None:
    trunk = models["base"].trunk
    table = Table(trunk, frozenset())
    prompts = [HI, (256, *b"z" * 70, 257), (256, 66, 257)]
    rows = [Row.begin(Sampling(max_tokens=count), 5, p, 0) for p, count in enumerate((100, 60, 20))]
    for prompt, row in zip(prompts, rows, strict=True):
        (prefilled,) = table.prefill([prompt])
        table.make_free(1)
        table.put(table.free[0], row, prefilled)
        for _ in range(10):
            table.step()
    while table.live:
        table.keep_live()
        table.step()
    assert [row.finish for row in rows] == ["length"] * 3
    for p, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        again = [Row.begin(row.sampling, 5, p, 0)]
        alone = Table(trunk, frozenset(), slots=1, places=200)
        alone.put(0, again[0], alone.prefill([prompt])[0])
        while alone.live:
            alone.step()
        assert row.tokens == again[0].tokens
        assert row.logps == pytest.approx(again[0].logps, abs=1e-4)
