"""Supervised fine-tuning: the next token of the answer, given the prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_demonstrations
from trimtab.errors import ConfigError
from trimtab.model.trunk import Trunk
from trimtab.model.tuning import Lora, Tune
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._texts import Texts
from trimtab.tensors.tree import pack
from trimtab.train.loop import Pace, fit, num_steps
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run, invariant

FULL_LR = 5e-5
EPOCHS = 2.0
AtLeastOne = Annotated[int, Field(ge=1)]


def sft(
    run: Run,
    *,
    data: DataRef,
    init: ModelRef = BASE,
    epochs: float = EPOCHS,
    steps: AtLeastOne | None = None,
    batch: int = 16,
    lr: float = 2e-4,
    tune: Tune = "lora",
    lora: Lora = Lora(),  # noqa: B008 - frozen
    bad: Bad = "skip",
    max_length: int = 1024,
    micro_tokens: int = 2048,
    checkpoint_activations: bool = False,
) -> Result:
    """Fine-tune on demonstrations: token-mean cross-entropy of the answers and their end (InstructGPT, step 1).

    ``batch`` conversations a step; every assistant turn of a conversation is trained. ``micro_tokens`` bounds memory
    and changes nothing else. Where answers were judged, only those that lost to none and that nobody disliked are
    learned from. ``bad``: rows that cannot be read or are too long are left out and named, or the run stops.
    ``tune`` trains an adapter (``lora``) or all weights (``full``): the result is then a whole model, and a tenth of
    the rate is usual. ``steps`` is for who counts steps, not ``epochs``.
    """
    if steps is not None and epochs != EPOCHS:
        raise ConfigError(f"stages.{run.name}.epochs would change nothing: there are {steps} steps")
    trunk, start = Trunk.open(init, dtype=run.dtype)
    tuned = trunk.trainable(tune, "sft", start, lora, seed=derive(run.seed, "lora"))
    if tune == "full" and lr > FULL_LR:
        run.note(f"lr {lr:g} is an adapter's rate; all weights are usually trained at {FULL_LR:g} or less")
    groups = read_demonstrations(data.source, run=run, what="demonstrations", bad=bad)
    _, tokens = encode(groups, trunk.chat, max_length=max_length, run=run, what="demonstrations", bad=bad)
    invariant(
        any(a and a[-1] == trunk.chat.end for item in tokens for a in item.answers),
        f"no demonstration in {data.source} ends with the end-of-turn token: the model would never learn to stop",
    )
    task = Texts(trunk, tuned.adapter, tokens, batch=batch, micro_tokens=micro_tokens, seed=run.seed)
    optimiser = Optimiser([ParameterGroup(name="sft", parameters=tuned.parameters, lr=lr, rates=tuned.rates)])
    trunk.checkpoint_activations(checkpoint_activations)
    before = task.mean_loss()
    fit(run, task, optimiser, Pace(steps=steps or num_steps(len(tokens), batch, epochs)), show=("train/loss",))
    trunk.checkpoint_activations(False)
    after = task.mean_loss()
    return Result(
        base=trunk.save(tuned.adapter, run.folder),
        metrics={
            "train/loss_before": before,
            "train/loss_after": after,
            "data/demonstrations": len(tokens),
            "data/target_tokens": sum(pack([item]).num_targets for item in tokens),
        },
    )
