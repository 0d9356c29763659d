"""A bake-off's rows as a page: a verdict, one table, pictures. Rows are what ``trimtab.bakeoff`` writes.

What is compared with what, and what the intervals mean, is said in ``bakeoff_numbers``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from math import sqrt

from trimtab.report.bakeoff_numbers import (
    JUDGE,
    Compared,
    Measure,
    Row,
    by_method,
    compare,
    heldout,
    kl,
    longer_wins,
    mean,
    measures,
    minutes,
    over_start,
    peak,
    score,
    spread,
)

Table = list[list[str]]
OFF_BUDGET = 0.15  # a method whose training took so much more or less than the budget is named


def overview(rows: Sequence[Row], start: str) -> Table:
    """One line a method, the head first: how it stands beside the start, what it learned, what it cost.

    A column in which nothing stands is left out.
    """
    methods = by_method(rows)
    own = list(methods.values())
    columns: dict[str, list[str]] = {"method": list(methods)}
    for measure in measures(rows):
        columns |= _measured(rows, start, measure)
    right = [heldout(mine) for mine in own]
    columns["held-out pairs right, % (95 %)"] = [_interval(*found) if found else "" for found in right]
    columns["KL, nats"] = [f"{kl(mine):z.1f}" for mine in own]
    columns["tokens"] = [f"{mean([mean(row['tokens']) for row in mine]):.0f}" for mine in own]
    columns["ended, %"] = [f"{100 * mean([mean(row['ended']) for row in mine]):.0f}" for mine in own]
    columns["steps"] = [", ".join(dict.fromkeys(str(row["steps"] or "") for row in mine)) for mine in own]
    columns["answers sampled"] = [_count(mine, "sampled") for mine in own]
    columns["tokens sampled"] = [_count(mine, "sampled_tokens") for mine in own]
    columns["tokens trained"] = [_count(mine, "trained_tokens") for mine in own]
    columns["minutes"] = [f"{minutes(mine):.1f}" if any(row["steps"] for row in mine) else "" for mine in own]
    columns["peak GB"] = [f"{memory:.1f}" if (memory := peak(mine)) is not None else "" for mine in own]
    kept = {head: cells for head, cells in columns.items() if any(cells)}
    return [list(kept), *map(list, zip(*kept.values(), strict=True))]


def _measured(rows: Sequence[Row], start: str, measure: Measure) -> dict[str, list[str]]:
    """The columns of one measure: over the start, and each seed; of a score also its mean."""
    found, methods = over_start(rows, start, measure), by_method(rows)
    pairs = [found.get(name) for name in methods]
    if measure.judge:
        return {
            f"over {start}, % (95 %)": [_interval(p.mean, p.lo, p.hi) if p else "" for p in pairs],
            "each seed": [", ".join(_number(measure, seed) for seed in p.seeds) if p else "" for p in pairs],
        }
    scores = [score(own, measure) for own in methods.values()]
    seeds = [[mean(values) for row in own if (values := measure.of(row))] for own in methods.values()]
    return {
        f"{measure.name}{', %' if measure.share else ''}": [
            "" if own is None else _number(measure, own) for own in scores
        ],
        f"{measure.name} over {start} (95 %)": [_gain(measure, p) if p else "" for p in pairs],
        f"{measure.name}, each seed": [
            ", ".join(_number(measure, seed) for seed in own) if len(own) > 1 else "" for own in seeds
        ],
    }


def _count(rows: Sequence[Row], key: str) -> str:
    """A mean count over seeds; nothing for 0, as of what is not counted."""
    found = mean([row.get(key, 0) for row in rows])
    return f"{found:,.0f}" if found else ""


def matrix(rows: Sequence[Row], measure: Measure = JUDGE) -> Table:
    """Every method (line) over every other (column): win rate or difference, starred where the interval decides it."""
    methods = by_method(rows)
    table = [[f"{'over' if measure.judge else measure.name}{', %' if measure.share else ''}", *methods]]
    for name, own in methods.items():
        line = [name]
        for other, theirs in methods.items():
            found = compare(own, theirs, measure) if other != name else None
            star = "*" if found and found.sign else ""
            line.append(f"{_number(measure, found.mean, signed=True)}{star}" if found else "")
        table.append(line)
    return table


def markdown(table: Table) -> str:
    """A table as Markdown."""
    head, *lines = (f"| {' | '.join(cells)} |" for cells in table)
    return "\n".join([head, f"|{'---|' * len(table[0])}", *lines])


def page(
    rows: Sequence[Row], start: str, left_out: Mapping[str, Sequence[str]], picture: str, frontier: str | None = None
) -> str:
    """The whole result as Markdown: the verdict, the table, pictures, every pair of methods, and how to read it."""
    remarks = "\n".join(f"- {remark}" for remark in [*notes(rows, start), *omissions(left_out)])
    parts = [verdict(rows, start), markdown(overview(rows, start)), f"![{start} and what was made of it]({picture})"]
    if frontier is not None:
        parts.append(f"![What is gained, by how far from {start}]({frontier})")
    parts += [markdown(matrix(rows, measure)) for measure in measures(rows) if over_start(rows, start, measure)]
    return "\n\n".join([*parts, remarks]) + "\n"


def verdict(rows: Sequence[Row], start: str) -> str:
    """The result in words, by each measure: who is above the start, who is first; how far to trust the judge."""
    said = [part for measure in measures(rows) for part in _verdict(rows, start, measure)]
    return " ".join(said) or f"No method was judged beside {start} yet."


def _verdict(rows: Sequence[Row], start: str, measure: Measure) -> Iterator[str]:
    """The sentences of one measure; none where no method stands beside the start."""
    found = over_start(rows, start, measure)
    if not found:
        return
    by = "" if measure.judge else f" by {measure.name}"
    classes = {1: f"Above {start}{by}", -1: f"Below {start}{by}", 0: f"Not told apart from {start}{by}"}
    if measure.judge:
        yield _judge(rows)
        classes |= {1: f"Preferred to {start}", -1: f"Less liked than {start}"}
    else:
        yield f"{measure.name}: {start} has {_told(measure, _score(by_method(rows)[start], measure))}."
    for sign, what in classes.items():
        names = [f"{name}{_on_seeds(pair, sign)}" for name, pair in found.items() if pair.sign == sign]
        if names:
            yield f"{what}: {', '.join(names)}."
    if any(pair.sign for pair in found.values()) and (kept := _with_other_seeds(found)):
        yield kept
    if len(found) > 1:
        yield _best(rows, found, measure, by)


def notes(rows: Sequence[Row], start: str) -> list[str]:
    """What the numbers mean and what was not as it should be, a sentence or two each."""
    methods, count, known = by_method(rows), len(rows[0]["prompts"]), measures(rows)
    averaged = "Seeds are averaged by prompt; 95 % is over prompts, for these very models."
    said = [
        f"Over {start}: the share of {count} prompts on which the judge prefers a method's answer to {start}'s of the "
        f"same seed. {averaged}"
        if measure.judge
        else f"{measure.name}: the mean over {count} prompts and all seeds; over {start}: the difference on the same "
        f"prompts and seeds. {averaged}"
        for measure in known
    ]
    said.append(
        f"KL is from {start}, on the method's own answers. Minutes and memory are of the method's own training."
    )
    for measure in known:
        said += _seeds(rows, start, measure)
        judged = [pair for pair in combinations(methods.values(), 2) if compare(*pair, measure) is not None]
        if len(judged) > 1:
            said.append(
                f"Each interval speaks of one comparison alone: of {len(judged)}, about {0.05 * len(judged):.1f} would "
                f"leave out {'50 %' if measure.judge else '0'} even if no two methods differed."
            )
    longer = longer_wins(rows)
    if longer is not None:
        said.append(f"On the held-out pairs, always picking the longer answer is right on {_told(JUDGE, longer)}.")
    return [*said, *_samples(methods), *_budget(methods, start), *_origins(rows)]


def omissions(left_out: Mapping[str, Sequence[str]]) -> list[str]:
    """Which rows of the file are not counted, and why."""
    return [f"Not counted, {reason}: {', '.join(names)}." for reason, names in left_out.items()]


def _judge(rows: Sequence[Row]) -> str:
    """How far the judge agrees with verdicts that it was not fitted on; a coin is called one."""
    cards = [row["judge"] for row in rows if "accuracy_lo" in row["judge"]]
    if not cards:
        return "How far the judge can be trusted was not measured (evaluate.judge_heldout)."
    right, lo, hi, longer = (
        mean([card[name] for card in cards]) for name in ("accuracy", "accuracy_lo", "accuracy_hi", "longer_wins")
    )
    said = (
        f"The judge agrees with {_told(JUDGE, right)} of {cards[0]['n']} held-out verdicts ({_number(JUDGE, lo)} to "
        f"{_told(JUDGE, hi)}); picking the longer answer, {_told(JUDGE, longer)}."
    )
    return said if lo > 0.5 else f"{said} It is not shown to beat a coin, so what follows says little."


def _on_seeds(pair: Compared, sign: int) -> str:
    """On how many seeds the direction holds; nothing for one seed, or where there is no direction."""
    held = sum(sign * (seed - pair.level) > 0 for seed in pair.seeds)
    return f" ({held} of {len(pair.seeds)} seeds)" if sign and len(pair.seeds) > 1 else ""


def _best(rows: Sequence[Row], found: Mapping[str, Compared], measure: Measure, by: str) -> str:
    """Which method is highest over the start, and which others may be as good."""
    methods = by_method(rows)
    best = max(found, key=lambda name: found[name].mean)
    against = {name: compare(methods[best], methods[name], measure) for name in found if name != best}
    close = [name for name, pair in against.items() if pair is None or pair.sign <= 0]
    others = f"not shown to be behind it: {', '.join(close)}" if close else "every other method is behind it"
    own = found[best].mean if measure.judge else _score(methods[best], measure)
    return f"Highest{by}: {best} ({_told(measure, own)}); {others}."


def _score(rows: Sequence[Row], measure: Measure) -> float:
    """The mean score of a method that was compared by it."""
    found = score(rows, measure)
    assert found is not None
    return found


def _seeds(rows: Sequence[Row], start: str, measure: Measure) -> list[str]:
    """How much seeds matter, and the least difference of two methods beyond it: t s sqrt(2 / S) (``spread``)."""
    found = over_start(rows, start, measure)
    if not found:
        return []
    varies = spread(found)
    if varies is None:
        return ["One seed: another could turn out otherwise, and nothing here says by how much."]
    deviation, reach = varies
    least = reach * sqrt(2 / min(len(pair.seeds) for pair in found.values() if len(pair.seeds) > 1))
    far, apart = (
        (f"{100 * deviation:.1f} points", f"{100 * least:.0f} points")
        if measure.share
        else (f"{deviation:.2f}", f"{least:.2f}")
    )
    return [
        f"From seed to seed a method's {measure.name or 'rate'} over {start} varies by {far} (standard deviation). Two "
        f"methods less than {apart} apart may differ by their seeds alone, whatever the stars say."
    ]


def _with_other_seeds(found: Mapping[str, Compared]) -> str:
    """For which methods the direction is beyond prompts and seeds together: both half-widths, as root of squares."""
    varies = spread(found)
    if varies is None:
        return ""
    kept = []
    for name, pair in found.items():
        near = pair.mean - pair.lo if pair.mean > pair.level else pair.hi - pair.mean
        if len(pair.seeds) > 1 and abs(pair.mean - pair.level) > sqrt(near**2 + varies[1] ** 2 / len(pair.seeds)):
            kept.append(name)
    if not kept:
        return "As far as these seeds tell, with other seeds none of that need hold."
    return f"As far as these seeds tell, it would hold with others too for {', '.join(kept)}."


def _samples(methods: Mapping[str, Sequence[Row]]) -> list[str]:
    """Whether the methods that sample have sampled as many answers."""
    counts = {name: mean([row.get("sampled", 0) for row in own]) for name, own in methods.items()}
    counts = {name: count for name, count in counts.items() if count}
    if not counts:
        return []
    fewest, most = min(counts.values()), max(counts.values())
    if fewest == most:
        return [f"Every method that samples has sampled {most:,.0f} answers in training, greedy baselines included."]
    told = ", ".join(f"{name} {count:,.0f}" for name, count in counts.items())
    return [f"Not all have sampled as many answers in training (greedy baselines included): {told}."]


def _budget(methods: Mapping[str, Sequence[Row]], start: str) -> list[str]:
    """How steps were chosen, and who trained for longer or shorter than was meant."""
    limited = {name: own for name, own in methods.items() if name != start and own[0].get("pace")}
    if not limited:
        return []
    budget = next(iter(limited.values()))[0]["asked"]["budget"]
    given = budget.get("minutes")
    meant = f"{given:g} minute{'' if given == 1 else 's'}" if given else f"{budget['tokens']:,} tokens"
    said = [
        f"Each method's steps were chosen once, from a few steps done before its training, so that it trains for "
        f"{meant}; every seed does as many."
    ]
    machines = dict.fromkeys(row["pace"]["machine"] for own in limited.values() for row in own)
    if given and len(machines) > 1:
        said.append(f"Steps were chosen on different machines ({'; '.join(machines)}): the same time is not the same.")
    off = {name: minutes(own) for name, own in limited.items()}
    off = {name: took for name, took in off.items() if given and abs(took / given - 1) > OFF_BUDGET}
    if off:
        told = ", ".join(f"{name} {took:.1f}" for name, took in off.items())
        said.append(
            f"Off the budget, in minutes: {told}. The machine was busier or idler than when steps were chosen, or "
            "steps grew."
        )
    return said


def _origins(rows: Sequence[Row]) -> list[str]:
    """Whether all rows come from one code, one kind of machine and, for each seed, one start."""
    said = []
    codes: dict[str, set[str]] = {}
    for row in rows:
        codes.setdefault(row["method"], set()).add(row["code"])
    mixed = [name for name, found in codes.items() if len(found) > 1]
    revisions = list(dict.fromkeys(row["revision"] for row in rows))
    if mixed:
        said.append(f"Rows made by different code are counted together: {', '.join(mixed)} ({', '.join(revisions)}).")
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    if len(machines) > 1:
        said.append(f"The rows come from {len(machines)} machines: {'; '.join(machines)}.")
    starts: dict[int, set[str]] = {}
    for row in rows:
        starts.setdefault(row["seed"], set()).add(row["start"])
    several = [str(seed) for seed, found in sorted(starts.items()) if len(found) > 1]
    if several:
        said.append(
            f"Seed {', '.join(several)}: its start was trained more than once, and not to the same bits; the "
            "answers that methods are held against are of one of these trainings."
        )
    return said


def _told(measure: Measure, value: float) -> str:
    """A number of a measure in words: 50.0 %, or 0.42."""
    return f"{_number(measure, value)}{' %' if measure.share else ''}"


def _number(measure: Measure, value: float, *, signed: bool = False) -> str:
    """A number of a measure; ``signed``: a difference shows its sign, a win rate has none."""
    sign = "+" if signed and not measure.judge else ""
    return f"{100 * value:{sign}z.1f}" if measure.share else f"{value:{sign}z.2f}"


def _interval(share: float, lo: float, hi: float) -> str:
    """A share with its interval, in percent."""
    return f"{_number(JUDGE, share)} ({_number(JUDGE, lo)} to {_number(JUDGE, hi)})"


def _gain(measure: Measure, pair: Compared) -> str:
    """A difference with its interval."""
    value, lo, hi = (_number(measure, number, signed=True) for number in (pair.mean, pair.lo, pair.hi))
    return f"{value} ({lo} to {hi})"
