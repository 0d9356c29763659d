"""The run in words: sentences made from the numbers, which say when a number decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

from trimtab.report.read import Evaluation, HeadToHead, Interval, Judge, Row, RunRecord, StageRecord
from trimtab.report.reading import Reading, curve, percent, short

STAGE_WORDS: Mapping[str, str] = {
    "pretrain": "pretraining",
    "sft": "supervised fine-tuning",
    "reward": "a reward model",
    "gated_reward": "a gated reward model",
    "ensemble": "an ensemble",
    "judge": "an AI judge",
    "preference": "preference optimisation",
    "policy": "reinforcement learning",
    "evaluate": "an evaluation",
    "label": "labelling",
    "promote": "promotion",
}

SCORERS: Mapping[str, str] = {
    "reward": "The reward model",
    "gated_reward": "The gated reward model",
    "ensemble": "The ensemble",
    "judge": "The judge",
}
"""Stage types that leave what gives answers a number."""

TRAINED_ON_FEEDBACK = ("policy", "preference")
"""Stage types whose worth is shown against the model they started from, not against the base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """Which evaluated model is which: the last one trained, the one it started from, and the one nobody trained.

    ``start`` is ``None`` when the final model started from the base, so that one comparison says all.
    """

    final: str | None = None
    start: str | None = None
    base: str | None = None
    feedback: bool = False

    @property
    def rival(self) -> str | None:
        """The model that the final one has to beat."""
        return self.start or self.base


def roles(run: RunRecord) -> Roles:
    """Find the roles from the stages' order and their ``init``; an evaluation of fewer than two models has none to
    compare."""
    models = run.evaluation.models if run.evaluation else ()
    if not models:
        return Roles()
    by_name = {record.name: record for record in run.stages}
    base = next((model for model in models if model not in by_name), None)
    trained = [record for record in run.stages if record.name in models and record.name != base]
    if not trained:
        return Roles(final=models[-1], base=base if base != models[-1] else None)
    last = trained[-1]
    start = init_of(run, last)
    if start not in models or start == base:
        start = None
    return Roles(final=last.name, start=start, base=base, feedback=last.stage in TRAINED_ON_FEEDBACK)


def init_of(run: RunRecord, record: StageRecord) -> str | None:
    """Return the name of the model that a stage started from, as its manifest or the recipe gives it."""
    if record.init:
        return record.init
    stages = run.recipe.get("stages")
    asked = stages.get(record.name) if isinstance(stages, Mapping) else None
    init = asked.get("init") if isinstance(asked, Mapping) else None
    return init if isinstance(init, str) else None


def bounds(interval: Interval) -> str:
    """Return the ends of a 95 % interval in words."""
    return f"95% interval {percent(interval.lo)} to {percent(interval.hi)}"


def verdict(match: HeadToHead) -> str:
    """Say who is preferred, over how many prompts, and whether the interval decides it."""
    rate, over = match.rate, f"of {match.rate.n} prompts"
    if rate.verdict > 0:
        return f"The judge prefers {match.a} to {match.b} on {percent(rate.mean)} {over} ({bounds(rate)})."
    if rate.verdict < 0:
        other = rate.flipped()
        return f"The judge prefers {match.b} to {match.a} on {percent(other.mean)} {over} ({bounds(other)})."
    return (
        f"There is no clear winner between {match.a} and {match.b}: the judge prefers {match.a} on "
        f"{percent(rate.mean)} {over}, and the interval ({percent(rate.lo)} to {percent(rate.hi)}) includes one half."
    )


def reward_verdict(match: HeadToHead) -> str:
    """Say what a reward model finds where nothing else has judged."""
    rate = match.rate
    decided = "" if rate.verdict else ", which decides nothing"
    return (
        f"No judge compared the models. The reward model scores {match.a} above {match.b} on {percent(rate.mean)} of "
        f"{rate.n} prompts ({bounds(rate)}){decided}: that is worth what its held-out figures are worth, and nothing "
        "if the training has raised this very score."
    )


def rules_verdict(match: HeadToHead, rules: Row) -> str:
    """Say what the rules find: they are what was asked for, not an opinion of it."""
    mine, theirs = rules.get(match.a, nan), rules.get(match.b, nan)
    decided = "" if match.rate.verdict else ", which decides nothing"
    return (
        f"By the rules an answer of {match.a} gets {short(mine)} on average, one of {match.b} {short(theirs)}; "
        f"{match.a} gets more on {percent(match.rate.mean)} of {match.rate.n} prompts, ties counted half "
        f"({bounds(match.rate)}){decided}."
    )


def matched_note(match: HeadToHead) -> str | None:
    """Say what is left of a verdict among answers of about equal length."""
    matched = match.length_matched
    if matched is None:
        return None
    share = percent(matched.mean)
    where = f"Where both answers are about equally long ({matched.n} prompts), {match.a} is preferred on {share}"
    if matched.verdict == match.rate.verdict != 0:
        return f"{where} ({bounds(matched)}), so length alone does not explain it."
    if matched.verdict == 0:
        few = ", with few prompts to tell" if matched.n < match.rate.n / 2 else ""
        return f"{where} ({bounds(matched)}), which includes one half{few}."
    return f"{where} ({bounds(matched)}), which points the other way: length plays a part."


def always_valid_note(match: HeadToHead) -> str | None:
    """Warn when the interval that allows for repeated looks decides less than the plain one."""
    always = match.always_valid
    if always is None or match.rate.verdict == 0 or always.verdict == match.rate.verdict:
        return None
    return (
        f"The always-valid interval ({percent(always.lo)} to {percent(always.hi)} of decided prompts), which holds "
        "however often one looks before stopping, includes one half: do not stop early on this."
    )


def base_note(role: Roles, evaluation: Evaluation) -> str | None:
    """Say what beating the untrained model shows: that fine-tuning worked, not that the feedback did."""
    if not (role.feedback and role.start and role.base and role.final):
        return None
    match = evaluation.versus(role.final, role.base)
    if match is None or match.rate.verdict <= 0:
        return None
    return (
        f"Against {role.base}, {role.final} is preferred on {percent(match.rate.mean)} ({bounds(match.rate)}), but "
        f"that shows fine-tuning ({role.start}) at work; what feedback added is the comparison with {role.start}."
    )


def judge_sentences(judge: Judge) -> list[str]:
    """Say who judged, how far it can be trusted, and what it does not see."""
    said = []
    who = f"The judge ({judge.name})" if judge.name else "The judge"
    accuracy = judge.accuracy
    if accuracy:
        said.append(
            f"{who} is a model, not people: on {accuracy.n} held-out pairs with a known better answer it is right on "
            f"{percent(accuracy.mean)} ({bounds(accuracy)})."
        )
        rule = max(judge.longer_wins, 1 - judge.longer_wins)
        if isfinite(rule) and accuracy.lo <= rule:
            said.append(
                f"A rule that looks at nothing but length is right on {percent(rule)} of them; lean little on it."
            )
    else:
        said.append(f"{who} is a model, not people, and was not tested on pairs with a known better answer.")
    if judge.limits:
        said.append(judge.limits.strip().rstrip(".") + ".")
    return said


def coin_note(judge: Judge) -> str | None:
    """Warn, before anything that it said, of a judge that is not shown to be better than tossing a coin."""
    accuracy = judge.accuracy
    if not accuracy or accuracy.lo > 0.5:
        return None
    return (
        f"The judge is not shown to beat a coin here: it is right on {percent(accuracy.mean)} of {accuracy.n} held-out "
        f"pairs ({bounds(accuracy)}), so its verdicts below decide nothing."
    )


def result_sentences(run: RunRecord) -> list[str]:
    """Say what the evaluation decides: the final model against the one it started from, then against the base."""
    role = roles(run)
    if run.evaluation is None or not (role.final and role.rival):
        return ["No models were compared, so the run does not show whether the answers got better."]
    match = run.evaluation.versus(role.final, role.rival)
    scored = run.evaluation.versus(role.final, role.rival, by="by_reward")
    checked = run.evaluation.versus(role.final, role.rival, by="by_rules")
    ruled = [] if checked is None else [rules_verdict(checked, run.evaluation.rules)]
    if match is None and scored is not None:
        return [*ruled, reward_verdict(scored), *filter(None, [matched_note(scored)])]
    if match is None and ruled:
        return ruled
    if match is None:
        said = [f"{role.final} was not compared with {role.rival}, the model it started from."]
    else:
        notes = (matched_note(match), always_valid_note(match))
        said = [verdict(match), *(note for note in notes if note)]
    if coin := coin_note(run.evaluation.judge):
        said.insert(0, coin)
    note = base_note(role, run.evaluation)
    return [*ruled, *said, note] if note else [*ruled, *said]


def training_sentences(run: RunRecord) -> list[str]:
    """Say what each training stage did to its own numbers."""
    said = []
    for record in run.stages:
        loss, score, kl = (curve(record.rows, name) for name in ("train/loss", "rollout/score", "rollout/kl"))
        heldout = record.metrics.get("heldout/accuracy")
        if record.stage in SCORERS and heldout is not None and isfinite(heldout):
            said.append(f"{SCORERS[record.stage]} ({record.name}) orders {percent(heldout)} of held-out pairs rightly.")
        elif score:
            cost = f", at a KL of {short(kl.end)} nats from the start" if kl else ""
            said.append(f"In {record.name} the reward went from {short(score.start)} to {short(score.end)}{cost}.")
        elif loss:
            said.append(f"In {record.name} the loss went from {short(loss.start)} to {short(loss.end)}.")
    return said


def health_sentences(health: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Name the readings that are bad or to be watched, bad ones first; one sentence a stage."""
    said = []
    for level, word in (("bad", "Bad"), ("watch", "To watch")):
        for stage, readings in health.items():
            names = [reading.name.lower() for reading in readings if reading.level == level]
            if names:
                said.append(f"{word} in {stage}: {', '.join(names)}.")
    return said or (["All health readings are fine."] if any(health.values()) else [])


def opening(run: RunRecord) -> str:
    """Say what was run, in one or two sentences."""
    parts = [f"{STAGE_WORDS.get(record.stage, record.stage)} ({record.name})" for record in run.stages]
    if not parts:
        return "Nothing has been run yet."
    listed = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    model = run.recipe.get("model")
    told = f"This run took {model} through {listed}." if isinstance(model, str) else f"This run went through {listed}."
    open_stages = [record.name for record in run.stages if not record.finished]
    return told + (f" Not finished yet: {', '.join(open_stages)}." if open_stages else "")


def story(run: RunRecord, health: Mapping[str, Sequence[Reading]]) -> list[str]:
    """Return the page's paragraphs: what was done, what came of it, who judged, how training went."""
    judge = judge_sentences(run.evaluation.judge) if run.evaluation and run.evaluation.head_to_head else []
    paragraphs = (
        [opening(run)],
        result_sentences(run),
        judge,
        [*training_sentences(run), *health_sentences(health)],
    )
    return [" ".join(sentences) for sentences in paragraphs if sentences]
