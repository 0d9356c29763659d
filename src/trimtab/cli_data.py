"""The commands under ``trimtab data``: look into data files, rewrite them, make prompts harder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.console import Live, err, out, words
from trimtab.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from trimtab.records.types import Group

data_app = typer.Typer(
    help="Look into data files, and rewrite them.",
    epilog="Example: trimtab data inspect my.jsonl",
    no_args_is_help=True,
)

Source = Annotated[str, typer.Argument(help="A file, a folder, a hub id, or quickstart/NAME.")]
Format = Annotated[str | None, typer.Option(help="Read as this format instead of detecting it.")]


@data_app.command(epilog="Example: trimtab data inspect my.jsonl --model smollm2-135m-instruct --window 1024")
def inspect(
    source: Source,
    model: Annotated[str | None, typer.Option(help="Count tokens as this model does (else words).")] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Name rows longer than this; needs --model.")] = None,
    max_answer: Annotated[int | None, typer.Option(min=1, help="Name answers longer than this; needs --model.")] = None,
    format: Format = None,
) -> None:
    """Show counts, lengths, and every row that would be refused or is too long, with the reason."""
    from trimtab.data import inspect as inspection
    from trimtab.records.read import read_groups

    if model is None and (window or max_answer):
        raise ConfigError("--window and --max-answer are in tokens: name the model that counts them with --model")
    reading = read_groups(source, format=format, on_bad="skip")
    count = None if model is None else _token_counter(model)
    out.print(inspection.render(inspection.inspect(reading, count, window=window, max_answer=max_answer)))


def _token_counter(model: str) -> Any:
    from trimtab.model.chat import Chat
    from trimtab.model.load import load_tokenizer
    from trimtab.pipeline import find_trained

    template = Chat(load_tokenizer(find_trained(model).base))

    def count(group: Group) -> tuple[int, tuple[int, ...]]:
        item = template.group(group)
        return len(item.prompt), tuple(len(answer) for answer in item.answers)

    return count


@data_app.command(epilog="Example: trimtab data convert pairs.parquet pairs.jsonl --to preference")
def convert(
    source: Source,
    target: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.gz or .parquet file.")],
    to: Annotated[
        str, typer.Option(help="'group' (our own), or TRL's prompt_completion, preference, thumbs.")
    ] = "group",
    format: Format = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave unusable rows out, and name each.")] = False,
) -> None:
    """Rewrite data in another format. A row that cannot be used stops it, by file, line and field."""
    from trimtab.records.read import read_groups
    from trimtab.records.writers import WRITERS

    if to not in WRITERS:
        raise ConfigError(f"no format {to!r} to write{did_you_mean(to, WRITERS)}")
    check_target(target)
    reading = read_groups(source, format=format, on_bad="skip" if skip_bad else "stop")
    written = WRITERS[to](target, reading.groups)
    out.print(words(f"{written.rows:,} rows written to {target}"))
    for refused in reading.refused:
        err.print(words(f"left out: {refused}"))
    reasons: dict[str, list[str]] = {}
    for name, why in written.left_out:
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        err.print(words(f"left out: {len(names):,} groups, each {why} (the first: {names[0]})"))


@data_app.command(epilog="Example: trimtab data constrain prompts.jsonl harder.jsonl --most 3")
def constrain(
    source: Source,
    target: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.gz or .parquet file.")],
    fewest: Annotated[int, typer.Option(min=1, help="Constraints a prompt gets at least.")] = 1,
    most: Annotated[int, typer.Option(min=1, help="Constraints a prompt gets at most.")] = 2,
    kind: Annotated[list[str] | None, typer.Option(help="Only constraints of this kind (may be given again).")] = None,
    seed: Annotated[int, typer.Option(help="What is drawn depends on it and on the prompt alone.")] = 0,
    format: Format = None,
) -> None:
    """Add constraints that code can check to prompts ("no comma", "at most 40 words"), for the rule `constraints`."""
    from trimtab.data.constraints import constrained
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups

    check_target(target)
    groups = read_groups(source, format=format).groups
    found = constrained(groups, (fewest, most), seed, kinds=kind)
    out.print(words(f"{write_groups(target, found):,} prompts with constraints written to {target}"))


@data_app.command(epilog="Example: trimtab data judge answers.jsonl pairs.jsonl --judge runs/mine/judge")
def judge(
    source: Source,
    target: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.gz or .parquet file.")],
    judge: Annotated[str, typer.Option(help="The folder that a judge stage has left.")],
    format: Format = None,
) -> None:
    """Have an AI judge compare the answers to every prompt, and write its verdicts as pairs with probabilities.

    Verdicts that were there are not written: a person's and the judge's on the same answers could cancel in training.
    """
    from dataclasses import replace

    from trimtab.pipeline import find_trained
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups
    from trimtab.rewards.ai_judge import AIJudge

    check_target(target)
    found = find_trained(judge)
    if found.artifact is None or found.artifact.stage != "judge":
        raise ConfigError(f"{judge}: this is not the folder of a judge stage")
    groups = read_groups(source, format=format).groups
    live = Live(err)

    def show(done: int, total: int) -> None:
        if live.total != total:
            live.begin("judging", total, "verdict")
        live.advance(done, {})

    try:
        said = AIJudge.open(found).label(groups, progress=show)
    finally:
        live.close()
    judged = [replace(g, verdicts=tuple(own)) for g, own in zip(groups, said, strict=True) if own]
    if not judged:
        raise DataError(f"{source}: there are no two different answers to one prompt in it to compare")
    verdicts, before = sum(map(len, said)), sum(len(group.verdicts) for group in groups)
    count = write_groups(target, judged)
    prompts = "prompt" if count == 1 else "prompts"
    out.print(words(f"{count:,} {prompts} with {verdicts:,} verdicts of the judge written to {target}"))
    if before:
        err.print(words(f"left out: {before:,} verdicts that were in {source}"))
    if len(judged) < len(groups):
        err.print(words(f"left out: {len(groups) - len(judged):,} prompts without two different answers"))


def check_target(path: Path | None) -> None:
    """Refuse a file that could not be written before the work, not after it."""
    from trimtab.records.output import WRITABLE

    if path is not None and not path.name.endswith(WRITABLE):
        raise DataError(f"{path}: cannot tell what kind of file to write; known endings: {', '.join(WRITABLE)}")
    if path is not None and not path.parent.is_dir():
        raise DataError(f"{path}: there is no folder {str(path.parent)!r}")
