"""Learning from one's own answers: sample, score, learn. PPO, GRPO and relatives, RAFT, online DPO."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Annotated, Any

from pydantic import Field

from trimtab.config import BASE, DataRef, ModelRef, check_settings
from trimtab.data.encode import encode
from trimtab.data.judged import Bad, read_unjudged
from trimtab.errors import ConfigError
from trimtab.model.roles import Layout, Roles, build_roles
from trimtab.model.sampler import Sampling, TorchSampler
from trimtab.model.trunk import Lora
from trimtab.registry import ADVANTAGES, POLICY_LOSSES, PREFERENCE_LOSSES, TASKS, Named
from trimtab.rewards.ai_judge import AIJudge
from trimtab.rewards.reading import ADAPTER
from trimtab.rewards.rule_scorer import Rules, RuleScorer
from trimtab.rewards.scorer import Scorer, only_compares, open_scorer
from trimtab.seeds import derive
from trimtab.stages import Result
from trimtab.stages._ahead import Ahead
from trimtab.stages._compare import Comparison
from trimtab.stages._episodes import Episodes, environment_of
from trimtab.stages._imitate import Imitation
from trimtab.stages._methods import METHODS, Method
from trimtab.stages._online import Online
from trimtab.stages._online_settings import KL, Clip, Compare, Critic, Guard, Keep, Shaping
from trimtab.stages._preference import Objective
from trimtab.stages._rollout import Roller
from trimtab.stages._rounds import Rounds
from trimtab.stages._texts import mixed_in
from trimtab.stages._watch import Watch
from trimtab.train.control import MAX_ERROR
from trimtab.train.loop import Pace, fit
from trimtab.train.optim import Optimiser, ParameterGroup
from trimtab.train.run import Run

REWARD_COMPARES = "the judge says only which of several answers to a prompt is better"

AtLeastOne = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


def policy(
    run: Run,
    *,
    prompts: DataRef | None = None,
    environment: Annotated[Mapping[str, Any] | None, Named(TASKS, "task")] = None,
    reward: ModelRef | None = None,
    reward_weight: float = 1.0,
    rules: Rules = None,
    init: ModelRef = BASE,
    method: Annotated[str, METHODS] = "ppo",
    steps: AtLeastOne = 16,
    batch: AtLeastOne = 8,
    answers: AtLeastOne = 4,
    staleness: Annotated[int, Field(ge=0)] = 0,
    epochs: AtLeastOne = 1,
    minibatches: AtLeastOne = 1,
    lr: float = 1e-4,
    critic: Critic = Critic(),  # noqa: B008 - frozen
    kl: KL = KL(),  # noqa: B008
    clip: Clip = Clip(),  # noqa: B008
    shaping: Shaping = Shaping(),  # noqa: B008
    keep: Keep = Keep(),  # noqa: B008
    compare: Compare = Compare(),  # noqa: B008
    gold: ModelRef | None = None,
    guard: Guard = Guard(),  # noqa: B008
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
    There are ``steps`` of them, after ``critic.warmup`` that teach a critic alone.
    ``method`` is a line of a table (``trimtab list methods``), which also has defaults of its own. An answer's score is
    ``reward_weight`` times the ``reward`` model's, plus what the ``rules`` give: each has options and a ``weight``.
    ``environment``: a text environment instead of prompts, {task: NAME, ...}, whose conversations are the answers and
    which pays, too.
    ``gold`` is a scorer that nothing is learned from: its curve stands beside the reward's, and ``guard`` stops the run
    where it turns. ``staleness``: rounds are sampled beside the learning, by weights up to that many rounds old.
    ``roles`` says how many trunks carry the models. ``ptx`` mixes next-token learning on other texts
    into every update (PPO-ptx; InstructGPT, eq. 2). ``bad``: rows that cannot be read or are too long are left out and
    named, or the run stops.
    """
    row = METHODS[method]
    given = locals()
    _check(run, row, given)
    _check_idle(run, method, row, given)
    objective = _objective(run, row, compare) if row.preference else None
    paid_by = RuleScorer.of(rules, f"stages.{run.name}.rules") if rules else None
    world = None
    if environment is not None:
        world = environment_of(environment, f"stages.{run.name}.environment", paid=bool(reward or rules))
    layout = build_roles(
        init, reward, layout=roles, critic=critic.start if row.critic else None, frozen=critic.fit == "ridge",
        lora=lora, seed=derive(run.seed, "lora"), dtype=run.dtype,
    )  # fmt: skip
    actor = layout.actor
    trunk = actor.trunk
    scorer = None if reward is None else open_scorer(reward, trunk=layout.reward_trunk, dtype=run.dtype)
    episodes = None
    if world is not None:
        episodes = Episodes(world, trunk.chat, max_length=max_length, where=f"stages.{run.name}.environment")
        wanted = steps * batch * keep.rounds
        groups, tokens = episodes.starts(run, count=wanted, max_tokens=sampling.max_tokens, bad=bad)
    else:
        assert prompts is not None
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
        sampling=sampling, minibatches=minibatches, micro_tokens=micro_tokens, seed=run.seed, rules=paid_by,
        weight=reward_weight, greedy=row.greedy, episodes=episodes,
    )  # fmt: skip
    second = None if gold is None else open_scorer(gold, trunk=layout.actor.trunk, dtype=run.dtype)
    _check_scorers(run, scorer, second, alone=answers < 2 or row.greedy)
    warmup = critic.warmup if row.critic else 0
    watch = Watch(run, roller, guard, second, actor.parameters(), warmup=warmup)
    rounds = Rounds(run, roller, num_prompts=len(tokens), batch=batch, keep=keep, shaping=shaping, watch=watch)
    task: Online | Imitation | Comparison
    if row.imitates:
        task = Imitation(
            run, layout, rounds, epochs=epochs, minibatches=minibatches, micro_tokens=micro_tokens, kl=kl, ptx=mixed
        )
    elif objective is not None:
        task = Comparison(
            run, layout, rounds, objective, epochs=epochs, minibatches=minibatches,
            micro_tokens=micro_tokens, kl=kl, compare=compare, ptx=mixed,
        )  # fmt: skip
    else:
        task = Online(
            run, layout, rounds, row, epochs=epochs, kl=kl, clip=clip, critic=critic, gamma=gamma, lam=lam, ptx=mixed
        )
    pace = Pace(steps=steps + task.warmup, before=task.warmup)
    if staleness:
        rounds.ahead = Ahead(
            roller, actor, rounds.chosen, steps=pace.steps, staleness=staleness, over=lambda: bool(watch.stopped)
        )
    shown = ("rollout/score", "rollout/kl", "rollout/ended")
    learners = _learners(layout, lr, critic, ridge=critic.fit == "ridge")
    with rounds.ahead or nullcontext():
        fit(run, task, Optimiser(learners), pace, show=shown, ended=lambda: bool(watch.stopped))
    watch.settle()
    assert actor.adapter is not None
    trunk.save_adapter(actor.adapter, run.folder)
    trunks = {id(t) for t in (*layout.trunks(), *(t for s in (scorer, second) if s is not None for t in s.trunks))}
    return Result(base=init.base, metrics={"data/prompts": len(tokens), "memory/trunks": len(trunks)})


def _check_scorers(run: Run, reward: Scorer | None, gold: Scorer | None, *, alone: bool) -> None:
    """Refuse a judge that can do no more than compare where answers come alone, or where its mean should rise."""
    where = f"stages.{run.name}"
    if reward is not None and alone and only_compares(reward):
        raise ConfigError(
            f"{where}.reward: {REWARD_COMPARES}, and here some answer comes alone: have 2 or more answers sampled by a "
            "method without a greedy one, or give the judge's stage answers to compare with (against)"
        )
    if isinstance(gold, AIJudge) and only_compares(gold):  # of an ensemble, other members may rise
        raise ConfigError(
            f"{where}.gold: {REWARD_COMPARES}, so its curve could not rise: give the judge's stage answers to compare "
            "with (against)"
        )


def _learners(layout: Roles, lr: float, critic: Critic, *, ridge: bool) -> list[ParameterGroup]:
    """What is trained by descent, and how fast."""
    actor, value = layout.actor, layout.critic
    groups = [ParameterGroup(name="actor", parameters=actor.parameters(), lr=lr, rates=actor.rates())]
    if value is not None and not ridge:
        groups.append(ParameterGroup(name="critic", parameters=value.parameters(), lr=critic.lr, rates=value.rates()))
    return groups


def _objective(run: Run, row: Method, compare: Compare) -> Objective:
    """The preference loss of a method that compares, with its own options."""
    where, entry = f"stages.{run.name}.compare", PREFERENCE_LOSSES[row.preference]
    objective = Objective(entry, check_settings(entry, compare.options, f"{where}.options"))
    if objective.needs_kl and compare.reference == "previous":
        raise ConfigError(
            f"{where}.reference: {row.preference!r} reads the reference's whole distribution, of which only that of "
            "the initial model is at hand"
        )
    if not objective.needs_reference and compare.reference == "previous":
        raise ConfigError(f"{where}.reference would change nothing: {row.preference!r} has no reference")
    if objective.kind == "list" and compare.pairs != "extremes":
        raise ConfigError(f"{where}.pairs would change nothing: {row.preference!r} learns from all answers in order")
    return objective


def _check(run: Run, row: Method, given: Mapping[str, Any]) -> None:
    """Refuse what cannot work, before a model is loaded; say what works less well than it seems."""
    where = f"stages.{run.name}"
    reward, critic, answers, sampling = (given[name] for name in ("reward", "critic", "answers", "sampling"))
    batch, minibatches, keep = given["batch"], given["minibatches"], given["keep"]
    if (given["prompts"] is None) == (given["environment"] is None):
        raise ConfigError(
            f"{where}: answers are to 'prompts' or played in an 'environment': exactly one of the two must be given"
        )
    if given["environment"] is not None and given["staleness"]:
        raise ConfigError(f"{where}.staleness: conversations in an environment are not sampled ahead; only answers are")
    if given["environment"] is None and reward is None and not given["rules"]:
        raise ConfigError(f"{where}: option 'reward' or 'rules' is missing: nothing would say which answers are good")
    made = None if reward is None else reward.artifact
    if row.critic and critic.start == "reward" and made and not (made.whole or (made.folder / ADAPTER).is_file()):
        raise ConfigError(
            f"{where}.critic.start: {reward.name!r} ({made.stage}) has no adapter of its own to start from"
        )
    if not sampling.temperature > 0:
        raise ConfigError(
            f"{where}.sampling.temperature: a policy learns from what it samples, so it must be above 0, "
            f"not {sampling.temperature}"
        )
    if (row.relative or keep.how == "mixed") and answers < 2:
        raise ConfigError(f"{where}.answers: {answers} answer to a prompt leaves nothing to compare it with; 2 or more")
    if batch % minibatches:
        raise ConfigError(f"{where}.minibatches: {batch} prompts cannot be cut into {minibatches} equal minibatches")
    if row.imitates and keep.how in ("all", "mixed"):
        raise ConfigError(f"{where}.keep.how: {given['method']!r} learns the best answers: best, top or above")
    if not row.imitates and keep.how in ("best", "top", "above"):
        raise ConfigError(f"{where}.keep.how: {given['method']!r} learns from good and bad answers: all or mixed")
    if given["environment"] is not None and "environment" in (given["rules"] or {}):
        raise ConfigError(
            f"{where}.rules.environment: that is what the environment's own pay is called; rename the rule"
        )
    if given["environment"] is None and given["shaping"].overlong > sampling.max_tokens:
        raise ConfigError(
            f"{where}.shaping.overlong: {given['shaping'].overlong} tokens before the cap is more than all of the "
            f"{sampling.max_tokens} of an answer (sampling.max_tokens)"
        )
    least = MAX_ERROR * batch * answers
    if given["kl"].target is not None and given["kl"].horizon <= least:
        raise ConfigError(
            f"{where}.kl.horizon: {given['kl'].horizon} is too short for {batch * answers} answers a round: the weight "
            f"could fall to zero at once; it must be above {least:g}"
        )
    cut = sampling.top_p < 1.0 or sampling.top_k > 0
    if row.advantage and cut and given["staleness"]:
        raise ConfigError(
            f"{where}.staleness: answers of older weights count by pi / pi_sampler, which is not known if sampling is "
            "cut (top_p, top_k)"
        )
    if row.advantage and cut:
        run.note("sampling is cut (top_p, top_k), but updates are for the whole distribution: a bias, not corrected")


def _check_idle(run: Run, method: str, row: Method, given: Mapping[str, Any]) -> None:
    """Refuse a setting that would change nothing: whoever wrote it meant something."""
    ridge, keep = given["critic"].fit == "ridge", given["keep"].how
    cut = given["sampling"].top_p < 1.0 or given["sampling"].top_k > 0
    descent = row.advantage and row.critic and not ridge
    loss = POLICY_LOSSES[row.loss].options if row.advantage else {}
    no_critic = f"method {method!r} has no critic"
    no_clip = f"method {method!r} has no such bound"
    scores = f"method {method!r} has no rewards of tokens"
    idle = {
        "critic": (not row.critic, no_critic),
        "lam": (not row.critic, no_critic),
        "gamma": (
            "gamma" not in (ADVANTAGES[row.advantage].options if row.advantage else ()),
            f"method {method!r} uses whole returns",
        ),
        "shaping.whiten": (
            not descent, "only a critic trained by descent sees rewards that are scaled anew every step"
        ),
        "shaping.penalty": (
            given["shaping"].eos in ("none", "leave_out") and not given["shaping"].overlong, "nothing is penalised"
        ),
        "clip.value": (not descent, "no critic is trained by descent"),
        "clip.low": ("clip_low" not in loss, no_clip),
        "clip.high": ("clip_high" not in loss, no_clip),
        "clip.dual": ("dual_clip" not in loss, no_clip),
        "clip.importance": (
            not row.advantage or cut,
            "sampling is cut (top_p, top_k), so there is no such weight" if row.advantage else no_clip,
        ),
        "critic.lr": (ridge, "a ridge critic is solved for"),
        "critic.decay": (not ridge, "a critic trained by descent forgets by itself"),
        "kl.target": (
            not row.advantage or given["kl"].beta == 0, "kl.beta is 0: no weight to steer" if row.advantage else scores
        ),
        "kl.horizon": (given["kl"].target is None, "there is no kl.target to steer to"),
        "kl.credit": (not row.greedy, "only ReMax's release has that"),
        "keep.share": (keep != "top", "keep.how is not top"),
        "keep.threshold": (keep != "above", "keep.how is not above"),
        "keep.rounds": (keep != "mixed", "keep.how is not mixed"),
        "compare": (not row.preference, f"method {method!r} compares no answers by a preference loss"),
        "guard.patience": (given["gold"] is None, "there is no gold scorer"),
        "guard.window": (given["gold"] is None, "there is no gold scorer"),
        "reward_weight": (given["reward"] is None, "there is no reward model"),
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
