"""Health readings of a policy stage (PPO and its relatives). Pure: rows in, readings out.

What each metric means is in METHODS (section 3): KL is the sum over a sequence, averaged over sequences, in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log, nan
from typing import Any

from trimtab.report.read import Interval, Row
from trimtab.report.reading import Level, Reading, column, curve, percent, rising, short
from trimtab.stats.describe import Trend

KL_BUDGET = 10.0
"""Nats a sequence, where the config names no other. Ziegler et al. (arXiv:1909.08593) steer to 6 for 24-token answers;
longer answers spend more. As KL grows, people's preference first rises and then falls while the reward keeps rising
(Learning to Summarize, arXiv:2009.01325, figure 5), so that past the budget samples must be read."""

KL_BAD = 4.0
"""Times the budget. Huang et al. (arXiv:2403.17031) see their 1B model win under 20 % at 50 to 85 nats: far out, not
near."""

KL_NEGATIVE = -1.0
"""Nats. KL is at least zero; an estimate this far below means the answers are not samples of the policy being
trained."""

RATIO_WATCH, RATIO_BAD = 0.1, 0.5
"""Distance of the mean ratio from 1. Over samples of the old policy its expectation is exactly 1, whatever the new one
is."""

CLIPPED_WATCH, CLIPPED_BAD = 0.3, 0.5
"""Share of tokens whose ratio left the clip range, most of which give no gradient; at one half most of a batch is
wasted."""

APPROX_KL_WATCH, APPROX_KL_BAD = 0.03, 0.1
"""Nats a token between sampling and updated policy, ½ mean (Δ log p)². Common early-stopping targets are 0.01 to 0.03;
at 0.1 the typical ratio is off by a factor e^0.45 = 1.6, far outside a clip range of 0.2."""

ENTROPY_WATCH, ENTROPY_BAD, ENTROPY_RISE = 0.5, 0.2, 2.0
"""End over start. Half the entropy is the square root of the choices left a token; at a fifth the policy hardly
explores, and answers to one prompt become the same. Doubled, it is drifting towards noise."""

ENDED_WATCH, ENDED_BAD = 0.8, 0.5
"""Share of answers that end by themselves. A cut answer's score is a guess; when most are cut the policy learns about
stumps."""

LENGTH_WATCH, LENGTH_BAD = 1.3, 2.0
"""End over start, or start over end. Much of PPO's gain is often length alone (Singhal et al. 2023,
arXiv:2310.03716)."""

VALUE_WATCH = 0.2
"""Explained variance of the returns; below 0 the critic is worse than a constant, which is bad by definition."""

LENGTH_SCORE_WATCH, LENGTH_SCORE_BAD = 0.3, 0.5
"""|correlation| of score and length: length explains its square, 9 % and 25 % of the score's variance."""

GAP_WATCH, GAP_BAD = 0.05, 0.18
"""Mean |log p sampler - log p trainer|, nats a token. bfloat16 rounding alone gives about 0.04 (measured with a 135M
model on a CPU; float32 gives 4e-5); at log 1.2 = 0.18 the typical token stands at the edge of a clip range of 0.2
before a single update."""


REPEATED_WATCH, REPEATED_BAD = 0.1, 0.3
"""Share of an answer's runs of four words that stood in it before, beyond what it was at the start. People's prose has
hardly any; loops go towards 1."""

TAUGHT_WATCH, TAUGHT_BAD = 0.5, 0.9
"""Share of prompts whose answers are all worth the same. With a chance p of being right and k answers it is
p^k + (1 - p)^k: at one half of the prompts, half of the sampling is for nothing."""


def kl_budget(config: Mapping[str, Any]) -> float:
    """Return the KL target that a stage's config names (``kl: {target: 6}``), else `KL_BUDGET`."""
    kl = config.get("kl")
    target = kl.get("target") if isinstance(kl, Mapping) else None
    return float(target) if isinstance(target, int | float) and target > 0 else KL_BUDGET


def policy_health(
    rows: Sequence[Row],
    *,
    budget: float = KL_BUDGET,
    versus_start: Interval | None = None,
    matched: Interval | None = None,
) -> list[Reading]:
    """Return the readings of a policy stage, the most telling first.

    ``versus_start`` is the judge's win rate of the policy over the model it started from (``matched``: over answers of
    equal length); without it a rising reward stays unproven.
    """
    found = (
        reward_against_judge(rows, versus_start, matched),
        _gold(rows),
        _kl(rows, budget),
        _entropy(rows),
        _length(rows),
        _ended(rows),
        _score_and_length(rows),
        _repeated(rows),
        _skipped(rows),
        _value(rows),
        _ratio(rows),
        _clipping(rows),
        _update(rows),
        _gap(rows),
    )
    return [reading for reading in found if reading is not None]


def reward_against_judge(
    rows: Sequence[Row], versus_start: Interval | None, matched: Interval | None
) -> Reading | None:
    """Read whether anything but the reward itself improved: a reward that rises alone is being gamed."""
    score = curve(rows, "rollout/score")
    if score is None:
        return None
    level, sentence = _reward_story(score, versus_start, matched)
    value = f"score {short(score.start)} to {short(score.end)}"
    if versus_start is not None:
        value += f", judge {percent(versus_start.mean)}"
    return Reading(name="Reward against judge", level=level, value=value, sentence=sentence)


def _reward_story(score: Trend, versus: Interval | None, matched: Interval | None) -> tuple[Level, str]:
    if score.direction < 0:
        return "bad", "The reward fell: the policy learnt the wrong way, or the KL penalty outweighs the score."
    if score.direction == 0:
        return (
            "watch",
            "The reward did not clearly rise: more steps, or a larger learning rate, before asking for more.",
        )
    if versus is None:
        return "watch", "The reward rose, and nothing else was measured; that alone does not show better answers."
    if versus.verdict < 0:
        return (
            "bad",
            "The reward rose while a judge that took no part likes the answers less: the reward is being gamed.",
        )
    if versus.verdict == 0:
        return "watch", "The reward rose, but a judge that took no part sees no clear difference."
    if matched is not None and matched.mean <= 0.5:
        return "watch", "Reward and judge both rose, but not among answers of equal length: the gain may be length."
    return "ok", "The reward rose, and a judge that took no part agrees."


def _gold(rows: Sequence[Row]) -> Reading | None:
    """Read where the gold scorer, which nothing is learned from, parted from the reward."""
    gold, score = curve(rows, "rollout/gold"), curve(rows, "rollout/score")
    if gold is None or score is None:
        return None
    found = column(rows, "rollout/gold")
    best = max((i for i, x in enumerate(found) if isfinite(x)), key=found.__getitem__)
    value = f"gold {short(gold.start)} to {short(gold.end)}"
    if gold.direction > 0:
        return Reading(
            name="Gold score", level="ok", value=value, sentence="The gold scorer likes the answers more, too."
        )
    if gold.direction < 0 < score.direction:
        sentence = f"The reward rose while the gold score fell, most from step {best} on: the reward is being gamed."
        return Reading(name="Gold score", level="bad", value=value, sentence=sentence)
    return Reading(name="Gold score", level="watch", value=value, sentence="The gold scorer sees no clear gain.")


def _kl(rows: Sequence[Row], budget: float) -> Reading | None:
    kl = curve(rows, "rollout/kl")
    if kl is None:
        return None
    value = f"{short(kl.end)} nats a sequence (budget {short(budget)})"
    if kl.end < KL_NEGATIVE:
        level: Level = "bad"
        sentence = (
            "KL is negative: the answers are not samples of the policy in training (temperature, top-p, stale weights)."
        )
    else:
        level = rising(kl.end, watch=budget, bad=KL_BAD * budget)
        sentence = {
            "ok": "The policy stayed near the model it started from.",
            "watch": "The policy is past its KL budget: read samples, and consider a larger beta or an earlier step.",
            "bad": "The policy is far from the model it started from; there the reward model's scores mean little.",
        }[level]
    return Reading(name="KL", level=level, value=value, sentence=sentence)


def _entropy(rows: Sequence[Row]) -> Reading | None:
    entropy = curve(rows, "rollout/entropy")
    if entropy is None or entropy.start <= 0:
        return None
    left = entropy.end / entropy.start
    level: Level = "bad" if left < ENTROPY_BAD else "watch" if left < ENTROPY_WATCH or left > ENTROPY_RISE else "ok"
    if level == "ok":
        sentence = "The policy still explores."
    elif left > 1:
        sentence = "Entropy has grown a lot: the policy is drifting towards noise."
    else:
        sentence = "Entropy is collapsing: the policy says much the same thing each time and learns little from it."
    value = f"{short(entropy.start)} to {short(entropy.end)} nats a token ({percent(left)} of the start)"
    return Reading(name="Entropy", level=level, value=value, sentence=sentence)


def _length(rows: Sequence[Row]) -> Reading | None:
    length = curve(rows, "rollout/length")
    if length is None or length.start <= 0 or length.end <= 0:
        return None
    growth = length.end / length.start
    level = rising(max(growth, 1 / growth), watch=LENGTH_WATCH, bad=LENGTH_BAD)
    if level == "ok":
        sentence = "Answers kept about the length they had."
    elif growth > 1:
        sentence = "Answers grew much longer: look at the length-matched win rate before believing the score."
    else:
        sentence = "Answers grew much shorter: check that nothing needed is left out."
    value = f"{short(length.start)} to {short(length.end)} tokens ({100 * (growth - 1):+.0f}%)"
    return Reading(name="Length", level=level, value=value, sentence=sentence)


def _ended(rows: Sequence[Row]) -> Reading | None:
    ended = curve(rows, "rollout/ended")
    if ended is None:
        return None
    level: Level = "ok" if ended.end >= ENDED_WATCH else "watch" if ended.end >= ENDED_BAD else "bad"
    sentence = {
        "ok": "Nearly all answers end by themselves.",
        "watch": "A good part of the answers is cut off by the length limit; their scores are guesses.",
        "bad": "Most answers are cut off by the length limit: allow more tokens, or see if the model can end at all.",
    }[level]
    value = f"{percent(ended.start)} to {percent(ended.end)}"
    return Reading(name="Ended answers", level=level, value=value, sentence=sentence)


def _score_and_length(rows: Sequence[Row]) -> Reading | None:
    found = curve(rows, "rollout/score_length_correlation")
    if found is None:
        return None
    level = rising(abs(found.end), watch=LENGTH_SCORE_WATCH, bad=LENGTH_SCORE_BAD)
    more = "more" if found.end > 0 else "less"
    sentence = {
        "ok": "The score depends little on length.",
        "watch": f"The score likes {more} text: part of any gain is length.",
        "bad": f"The score is largely a measure of length: the policy is paid for {more} text.",
    }[level]
    value = f"correlation {found.end:+.2f}"
    return Reading(name="Score and length", level=level, value=value, sentence=sentence)


def _repeated(rows: Sequence[Row]) -> Reading | None:
    repeated = curve(rows, "rollout/repeated")
    if repeated is None:
        return None
    level = rising(repeated.end - repeated.start, watch=REPEATED_WATCH, bad=REPEATED_BAD)
    sentence = {
        "ok": "Answers repeat themselves no more than they did.",
        "watch": "Answers have begun to repeat themselves: read samples.",
        "bad": "Answers repeat themselves over and over: the reward pays for it.",
    }[level]
    value = f"{percent(repeated.start)} to {percent(repeated.end)} of runs of four words"
    return Reading(name="Repetition", level=level, value=value, sentence=sentence)


def _skipped(rows: Sequence[Row]) -> Reading | None:
    skipped = curve(rows, "rollout/skipped")
    if skipped is None:
        return None
    level = rising(skipped.end, watch=TAUGHT_WATCH, bad=TAUGHT_BAD)
    sentence = (
        "Most prompts have better and worse answers to learn from."
        if level == "ok"
        else "To many prompts all answers are worth the same, and they teach nothing: more answers, easier or harder "
        "prompts, or keep.how=mixed."
    )
    return Reading(name="Prompts that teach", level=level, value=f"{percent(1 - skipped.end)} do", sentence=sentence)


def _value(rows: Sequence[Row]) -> Reading | None:
    value = curve(rows, "value/explained_variance")
    if value is None:
        return None
    level: Level = "bad" if value.end < 0 else "watch" if value.end < VALUE_WATCH else "ok"
    sentence = {
        "ok": "The critic foresees a good part of the returns.",
        "watch": "The critic foresees little yet: advantages are noisy, so that steps count for less.",
        "bad": "The critic is worse than a constant: give it more warm-up, or more answers a step.",
    }[level]
    return Reading(name="Value function", level=level, value=f"explains {percent(value.end)}", sentence=sentence)


def _ratio(rows: Sequence[Row]) -> Reading | None:
    ratios = [x for x in column(rows, "policy/ratio") if isfinite(x)]
    if not ratios:
        return None
    furthest = max(ratios, key=lambda ratio: abs(ratio - 1))
    level = rising(abs(furthest - 1), watch=RATIO_WATCH, bad=RATIO_BAD)
    sentence = (
        "New and old policy agree on the sampled tokens on average, as they must."
        if level == "ok"
        else "The mean ratio must stay near 1: old log-probabilities are not the samples', or updates are too large."
    )
    return Reading(name="Probability ratio", level=level, value=f"furthest {furthest:.3f}", sentence=sentence)


def _clipping(rows: Sequence[Row]) -> Reading | None:
    clipped = curve(rows, "policy/clip_fraction")
    if clipped is None:
        return None
    level = rising(clipped.end, watch=CLIPPED_WATCH, bad=CLIPPED_BAD)
    sentence = (
        "Clipping holds back few tokens."
        if level == "ok"
        else "Clipping holds back many tokens: fewer passes over a batch, or a smaller learning rate."
    )
    return Reading(name="Clipping", level=level, value=f"{100 * clipped.end:.1f}% of tokens", sentence=sentence)


def _update(rows: Sequence[Row]) -> Reading | None:
    size = curve(rows, "policy/approx_kl")
    if size is None:
        return None
    level = rising(size.end, watch=APPROX_KL_WATCH, bad=APPROX_KL_BAD)
    sentence = (
        "One update changes the policy a little, as PPO assumes."
        if level == "ok"
        else "One update changes the policy a lot: a smaller learning rate, or fewer passes over a batch."
    )
    return Reading(name="Update size", level=level, value=f"{short(size.end)} nats a token", sentence=sentence)


def _gap(rows: Sequence[Row]) -> Reading | None:
    gaps = [x for x in column(rows, "rollout/logp_gap") if isfinite(x)]
    if not gaps:
        return None
    worst_step = max(gaps)
    level = rising(worst_step, watch=GAP_WATCH, bad=GAP_BAD)
    single = max((x for x in column(rows, "rollout/logp_gap_max") if isfinite(x)), default=nan)
    value = f"{short(worst_step)} nats a token"
    if isfinite(single):
        value += f", one token {short(single)}"
    sentence = (
        "Sampler and trainer compute the same probabilities."
        if level == "ok"
        else f"Sampler and trainer disagree on probabilities (a clip range of 0.2 is {log(1.2):.2f} nats): the ratio "
        "is off before training starts."
    )
    return Reading(name="Sampler and trainer", level=level, value=value, sentence=sentence)
