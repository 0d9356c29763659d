"""Online reinforcement learning from a reward: sample, score, shape, update. PPO and its relatives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from trimtab.config import BASE, DataRef, ModelRef
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_unjudged
from trimtab.errors import ConfigError, did_you_mean
from trimtab.model.roles import Layout, build_roles
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Lora
from trimtab.rewards.reading import ADAPTER
from trimtab.rewards.scorer import open_scorer
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._methods import METHODS, Method
from trimtab.stages._online import KL, Clip, Critic, Online, Shaping
from trimtab.stages._rollout import Roller
from trimtab.stages._texts import mixed_in
from trimtab.train.loop import Pace, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run

AtLeastOne = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def policy(
    run: Run,
    *,
    reward: ModelRef,
    prompts: DataRef,
    init: ModelRef = BASE,
    method: str = "ppo",
    steps: AtLeastOne = 16,
    batch: AtLeastOne = 8,
    answers: AtLeastOne = 4,
    epochs: AtLeastOne = 1,
    minibatches: AtLeastOne = 1,
    lr: float = 1e-4,
    critic: Critic = Critic(),  # noqa: B008 - frozen
    kl: KL = KL(),  # noqa: B008
    clip: Clip = Clip(),  # noqa: B008
    shaping: Shaping = Shaping(),  # noqa: B008
    gamma: Share = 1.0,
    lam: Share = 0.95,
    ptx: DataRef | None = None,
    ptx_weight: float = 1.0,
    ptx_batch: AtLeastOne = 8,
    roles: Layout = "shared",
    lora: Lora = Lora(),  # noqa: B008
    sampling: Sampling = Sampling(),  # noqa: B008
    bad: Bad = "skip",
    max_length: int = 1024,
    micro_tokens: int = 2048,
) -> Result:
    """Improve a policy against a reward by sampling from it (PPO: Schulman et al., 2017; Ziegler et al., 2019).

    Each step samples ``answers`` to each of ``batch`` prompts, then makes ``epochs`` x ``minibatches`` updates.
    ``method`` is a line of a table: advantage x loss x aggregation. ``roles`` says how many trunks carry the four
    models. ``ptx`` mixes next-token learning on other texts into every update (PPO-ptx; InstructGPT, eq. 2). ``bad``:
    rows that cannot be read or are too long are left out and named, or the run stops.
    """
    if method not in METHODS:
        raise ConfigError(f"stages.{run.name}.method: no method {method!r}{did_you_mean(method, METHODS)}")
    row = METHODS[method]
    _check(
        run, row, reward=reward, critic=critic, answers=answers, batch=batch, minibatches=minibatches, sampling=sampling
    )
    _check_idle(run, method, row, locals())
    layout = build_roles(
        init, reward, layout=roles, critic=critic.start if row.critic else None, frozen=critic.fit == "ridge",
        lora=lora, seed=derive(run.seed, "lora"), dtype=run.dtype,
    )  # fmt: skip
    actor = layout.actor
    trunk = actor.trunk
    scorer = open_scorer(reward, trunk=layout.reward_trunk, dtype=run.dtype)
    groups, tokens = encode(
        [group.with_answers(()) for group in read_unjudged(prompts.source, run=run, bad=bad)],
        trunk.chat, max_length=max_length - sampling.max_tokens, run=run, what="prompts", bad=bad,
    )  # fmt: skip
    mixed = mixed_in(
        run, trunk, actor.adapter, None if ptx is None else ptx.source, name="ptx", weight=ptx_weight, batch=ptx_batch,
        max_length=max_length, micro_tokens=micro_tokens, bad=bad,
    )  # fmt: skip
    roller = Roller(
        layout, TorchSampler(trunk, actor.adapter, stop=trunk.chat.stop), scorer, groups, tokens, k=answers,
        sampling=sampling, minibatches=minibatches, micro_tokens=micro_tokens, seed=run.seed,
    )  # fmt: skip
    task = Online(
        run, layout, roller, row, num_prompts=len(tokens), batch=batch, epochs=epochs, kl=kl, clip=clip,
        shaping=shaping, critic=critic, gamma=gamma, lam=lam, ptx=mixed,
    )  # fmt: skip
    optimiser_groups = [ParameterGroup(name="actor", parameters=actor.parameters(), lr=lr, rates=actor.rates())]
    if layout.critic is not None and task.ridge is None:
        value = layout.critic
        optimiser_groups.append(
            ParameterGroup(name="critic", parameters=value.parameters(), lr=critic.lr, rates=value.rates())
        )
    pace = Pace(steps=steps + task.warmup, before=task.warmup)
    shown = ("rollout/score", "rollout/kl", "rollout/ended")
    fit(run, task, Optimiser(optimiser_groups), pace, show=shown)
    assert actor.adapter is not None
    trunk.save_adapter(actor.adapter, run.folder)
    trunks = {id(t) for t in (*layout.trunks(), *scorer.trunks)}
    return Result(base=init.base, metrics={"data/prompts": len(tokens), "memory/trunks": len(trunks)})


def _check(
    run: Run, row: Method, *, reward: ModelRef, critic: Critic, answers: int, batch: int, minibatches: int,
    sampling: Sampling,
) -> None:  # fmt: skip
    """Refuse what cannot work, before a model is loaded; say what works less well than it seems."""
    where = f"stages.{run.name}"
    made = reward.artifact
    if row.critic and critic.start == "reward" and made and not (made.whole or (made.folder / ADAPTER).is_file()):
        raise ConfigError(
            f"{where}.critic.start: {reward.name!r} ({made.stage}) has no adapter of its own to start from"
        )
    if not sampling.temperature > 0:
        raise ConfigError(
            f"{where}.sampling.temperature: a policy learns from what it samples, so it must be above 0, "
            f"not {sampling.temperature}"
        )
    if row.relative and answers < 2:
        raise ConfigError(f"{where}.answers: {answers} answer to a prompt leaves nothing to compare it with; 2 or more")
    if batch % minibatches:
        raise ConfigError(f"{where}.minibatches: {batch} prompts cannot be cut into {minibatches} equal minibatches")
    if sampling.top_p < 1.0 or sampling.top_k > 0:
        run.note("sampling is cut (top_p, top_k), but updates are for the whole distribution: a bias, not corrected")


def _check_idle(run: Run, method: str, row: Method, given: Mapping[str, Any]) -> None:
    """Refuse a setting that would change nothing: whoever wrote it meant something."""
    ridge = given["critic"].fit == "ridge"
    idle = {
        "critic": (not row.critic, f"method {method!r} has no critic"),
        "lam": (not row.critic, f"method {method!r} has no critic"),
        "gamma": (not row.critic, f"method {method!r} uses whole returns"),
        "shaping.whiten": (
            not row.critic or ridge, "only a critic trained by descent sees rewards that are scaled anew every step"
        ),
        "clip.value": (not row.critic or ridge, "no critic is trained by descent"),
        "critic.lr": (ridge, "a ridge critic is solved for"),
        "critic.decay": (not ridge, "a critic trained by descent forgets by itself"),
        "kl.horizon": (given["kl"].target is None, "there is no kl.target to steer to"),
        "ptx_weight": (given["ptx"] is None, "there is no ptx"),
        "ptx_batch": (given["ptx"] is None, "there is no ptx"),
    }  # fmt: skip
    defaults = {name: p.default for name, p in inspect.signature(policy).parameters.items()}
    for option, (unused, reason) in idle.items():
        name, _, field = option.partition(".")
        mine, default = given[name], defaults[name]
        if field:
            mine, default = getattr(mine, field), getattr(default, field)
        if unused and mine != default:
            raise ConfigError(f"stages.{run.name}.{option} would change nothing: {reason}")
