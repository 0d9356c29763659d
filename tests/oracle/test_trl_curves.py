"""Twenty steps of TRL's trainers and of the ``preference`` stage: the same losses from the same start and rows.

TRL is a development oracle; without it these tests are skipped. Both sides get the same adapter to start from, the same
rows in the same order, the same optimiser and rates. Texts are given to TRL as our chat template writes them, so that
both tokenise the same; TRL pads its batches, computes the reference at every step, and has a loop of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef
from trimtab.model.tiny import make_tiny
from trimtab.stages.preference import preference
from trimtab.stages.sft import sft
from trimtab.train.loop import batch_at
from trimtab.train.optim import schedule

pytest.importorskip("trl", minversion="1.16", reason="TRL is here to compare with only: pip install trl==1.16.0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental':UserWarning"),
]

STEPS, BATCH, SEED, RATE = 20, 3, 1, 5e-3
TOLERANCE = 1e-3  # measured: 1e-7 (ORPO) to 9e-5 (robust DPO, near a loss of 0)
# Seven pairs and three a step: batches run over the ends of epochs.
PAIRS = (
    ("What is tea?", "A leaf.", "NoNo"),
    ("Why?", "Because it rains a good deal there.", "No"),
    ("How tall is the old tower by the sea?", "Forty metres.", "I do not know it"),
    ("Say a word", "Word", "Two words"),
    ("Who?", "Nobody knows.", "Who?"),
    ("Where is it now?", "Here", "It is neither here nor there."),
    ("And?", "So on", "!"),
)
# No prompt but one letter, and nothing around it: ORPO as TRL has it learns the prompt, too, but for its first token.
BARE = (
    "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What both sides start from: a model, an adapter on it, and the same as a recipe's reference."""

    model: Path
    adapter: Path

    @property
    def init(self) -> ModelRef:
        return tiny.finished(self.adapter, "sft", "sft", str(self.model))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Start:
    """An adapter that has learned something: switched off, it would be another reference."""
    folder = tmp_path_factory.mktemp("start")
    data = tiny.demonstrations(folder)
    sft(tiny.make_run(folder, "sft"), data=data, init=tiny.base(tiny_model), epochs=6, batch=3, lr=1e-2, lora=tiny.LORA)
    return Start(model=tiny_model, adapter=folder)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Start:
    """The same under a chat template that writes nothing but the words."""
    folder = tmp_path_factory.mktemp("bare")
    make_tiny(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.bos_token, tokenizer.chat_template = None, BARE
    tokenizer.save_pretrained(folder)
    return Start(model=folder, adapter=start.adapter)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))


# --- our side ---------------------------------------------------------------------------------------------------------


def pairs_file(folder: Path, pairs: Sequence[tuple[str, str, str]]) -> DataRef:
    verdict = {"kind": "pair", "better": 0, "worse": 1}
    rows = [tiny.row(f"p{i}", q, [chosen, rejected], [verdict]) for i, (q, chosen, rejected) in enumerate(pairs)]
    return tiny.write_rows(folder / "pairs.jsonl", rows)


def ours(start: Start, data: DataRef, folder: Path, method: str, *, batch: int = BATCH, **options: Any) -> list[float]:
    run = tiny.make_run(folder, "preference", seed=SEED)
    preference(
        run, data=data, init=start.init, method=method, steps=STEPS, batch=batch, lr=RATE, lora=tiny.LORA, **options
    )
    return [row["train/loss"] for row in tiny.metrics(folder)]


# --- TRL's side -------------------------------------------------------------------------------------------------------


def written(start: Start, question: str) -> str:
    """A prompt as the chat template writes it, up to where the answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(start.model)
    turn = [{"role": "user", "content": question}]
    text: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    return text


def in_our_order(start: Start, pairs: Sequence[tuple[str, str, str]]) -> list[dict[str, str]]:
    """The pairs as TRL's rows, laid out as the stage's batches take them."""
    rows = [{"prompt": written(start, q), "chosen": chosen, "rejected": rejected} for q, chosen, rejected in pairs]
    return [rows[i] for step in range(STEPS) for i in batch_at(step, len(rows), BATCH, SEED)]


def theirs(
    names: tuple[str, str], start: Start, rows: Sequence[Mapping[str, Any]], folder: Path, *, batch: int = BATCH,
    parts: int = 1, **options: Any,
) -> list[float]:  # fmt: skip
    """The losses of TRL's trainer and configuration of these names, ``batch`` rows a step in ``parts`` parts."""
    from datasets import Dataset

    trainer_class, config_class = (trl_class(name) for name in names)
    losses: list[float] = []

    class Overheard(trainer_class):  # type: ignore[misc, valid-type]
        def compute_loss(self, *arguments: Any, **more: Any) -> torch.Tensor:
            loss: torch.Tensor = super().compute_loss(*arguments, **more)
            losses.append(float(loss.detach()))
            return loss

    plain = AutoModelForCausalLM.from_pretrained(start.model)
    model = PeftModel.from_pretrained(plain, str(start.adapter), is_trainable=True)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimiser = torch.optim.AdamW(weights, RATE, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule(step, STEPS))
    config = config_class(
        output_dir=str(folder), per_device_train_batch_size=batch // parts, gradient_accumulation_steps=parts,
        max_steps=STEPS, max_grad_norm=1.0, train_sampling_strategy="sequential", max_length=512, bf16=False,
        use_cpu=True, activation_checkpointing=False, save_strategy="no", logging_strategy="no", report_to="none",
        disable_tqdm=True, dataloader_pin_memory=False, **options,
    )  # fmt: skip
    Overheard(
        model=model, args=config, train_dataset=Dataset.from_list([dict(row) for row in rows]),
        processing_class=AutoTokenizer.from_pretrained(start.model), optimizers=(optimiser, rates),
    ).train()  # fmt: skip
    assert len(losses) == STEPS * parts
    return [sum(losses[i : i + parts]) / parts for i in range(0, len(losses), parts)]


def trl_class(name: str) -> Any:
    """A class of TRL, wherever it keeps it."""
    import trl

    if hasattr(trl, name):
        return getattr(trl, name)
    import trl.experimental.cpo
    import trl.experimental.orpo

    return getattr(trl.experimental.orpo if name.startswith("ORPO") else trl.experimental.cpo, name)


def same_curve(mine: Sequence[float], others: Sequence[float]) -> None:
    """Assert that both go the same way, and that they go somewhere."""
    assert len(mine) == len(others) == STEPS
    gaps = [abs(a - b) / max(abs(b), 0.1) for a, b in zip(mine, others, strict=True)]
    assert max(gaps) < TOLERANCE, list(zip(mine, others, strict=True))
    assert mine[0] - min(mine) > 0.04 * mine[0]


# --- the curves -------------------------------------------------------------------------------------------------------

DPO = ("DPOTrainer", "DPOConfig")


@pytest.mark.parametrize(
    ("method", "options", "theirs_"),
    [
        ("dpo", {"beta": 0.3}, {"loss_type": "sigmoid", "beta": 0.3}),
        ("ipo", {"tau": 0.4}, {"loss_type": "ipo", "beta": 0.4}),
        ("hinge", {"beta": 0.3}, {"loss_type": "hinge", "beta": 0.3}),
        ("rdpo", {"beta": 0.3, "label_smoothing": 0.2}, {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.2}),
    ],
)
def test_pairs_with_a_reference(
    start: Start, tmp_path: Path, method: str, options: dict[str, Any], theirs_: dict[str, Any]
) -> None:
    mine = ours(start, pairs_file(tmp_path, PAIRS), tmp_path / "ours", method, **options)
    same_curve(mine, theirs(DPO, start, in_our_order(start, PAIRS), tmp_path / "theirs", **theirs_))


def test_smoothed_labels(start: Start, tmp_path: Path) -> None:
    """TRL's sigmoid ignores label smoothing; its AOT, which sorts a batch, is that loss where a batch is a pair."""
    mine = ours(start, pairs_file(tmp_path, PAIRS), tmp_path / "ours", "cdpo", beta=0.3, label_smoothing=0.2)
    options: dict[str, Any] = {"loss_type": "aot", "beta": 0.3, "label_smoothing": 0.2}
    same_curve(mine, theirs(DPO, start, in_our_order(start, PAIRS), tmp_path / "theirs", parts=BATCH, **options))


def test_dpo_beside_likelihood(start: Start, tmp_path: Path) -> None:
    """TRL's mean is over a batch's tokens, ours over each answer's: the same where a batch is a pair."""
    mine = ours(start, pairs_file(tmp_path, PAIRS), tmp_path / "ours", "rpo", beta=0.3, alpha=0.5)
    options: dict[str, Any] = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5], "beta": 0.3}
    same_curve(mine, theirs(DPO, start, in_our_order(start, PAIRS), tmp_path / "theirs", parts=BATCH, **options))


def test_simpo(start: Start, tmp_path: Path) -> None:
    mine = ours(start, pairs_file(tmp_path, PAIRS), tmp_path / "ours", "simpo", beta=2.5, gamma=0.8)
    options: dict[str, Any] = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.5, "simpo_gamma": 0.8}
    rows = in_our_order(start, PAIRS)
    same_curve(mine, theirs(("CPOTrainer", "CPOConfig"), start, rows, tmp_path / "theirs", **options))


def test_orpo(bare: Start, tmp_path: Path) -> None:
    """On prompts of one token, a pair a batch: TRL's likelihood is then over the answer's tokens alone, as ours is."""
    pairs = [(letter, chosen, rejected) for letter, (_, chosen, rejected) in zip("abcdefg", PAIRS, strict=True)]
    mine = ours(bare, pairs_file(tmp_path, pairs), tmp_path / "ours", "orpo", weight=0.5)
    rows = in_our_order(bare, pairs)
    assert [row["prompt"] for row in rows[:3]] == [pairs[i][0] for i in batch_at(0, 7, BATCH, SEED)]
    others = theirs(("ORPOTrainer", "ORPOConfig"), bare, rows, tmp_path / "theirs", parts=BATCH, beta=0.5)
    same_curve(mine, others)


def test_kto(start: Start, tmp_path: Path) -> None:
    """TRL's baseline takes the answer of the row before, ours of the row after: it gets the rows from last to first.

    A batch is the whole file on both sides, so both roll over the same rows.
    """
    thumbs = [(q, good if i % 2 == 0 else bad, i % 2 == 0) for i, (q, good, bad) in enumerate(PAIRS)]
    rows = [
        tiny.row(f"t{i}", q, [a], [{"kind": "thumb", "answer": 0, "up": up}]) for i, (q, a, up) in enumerate(thumbs)
    ]
    data = tiny.write_rows(tmp_path / "thumbs.jsonl", rows)
    weights: dict[str, Any] = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.75}
    mine = ours(start, data, tmp_path / "ours", "kto", batch=len(rows), **weights)
    baselines = [row["train/baseline"] for row in tiny.metrics(tmp_path / "ours")]
    assert baselines[0] < 1e-4 < 1e-2 < max(baselines)
    backwards = [{"prompt": written(start, q), "completion": a, "label": up} for q, a, up in reversed(thumbs)]
    names = ("KTOTrainer", "KTOConfig")
    same_curve(mine, theirs(names, start, backwards * STEPS, tmp_path / "theirs", batch=len(rows), **weights))


def test_another_loss_is_another_curve(start: Start, tmp_path: Path) -> None:
    """What the tolerance would not forgive: a beta that is a hundredth off."""
    data = pairs_file(tmp_path, PAIRS)
    a, b = (ours(start, data, tmp_path / str(beta), "dpo", beta=beta) for beta in (0.3, 0.303))
    with pytest.raises(AssertionError):
        same_curve(a, b)
