"""The command line. Every command is a thin layer over the library; settings are ``key=value``, never flags per field."""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trimtab import __version__
from trimtab.console import Live
from trimtab.errors import ConfigError, TrimtabError, UserError, did_you_mean

app = typer.Typer(
    help="Turn a language model into one that people prefer.",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
data_app = typer.Typer(help="Look into data files, and convert them.", no_args_is_help=True)
app.add_typer(data_app, name="data")
out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE ...]", help="Settings to change.")]
KNOWN_WORDS = ("run", "train", "generate", "chat", "score", "data", "list", "show", "doctor")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from trimtab.artifacts import revision

        out.print(revision())
        raise typer.Exit


@app.command(epilog="Example: trimtab run recipes/quickstart.yaml policy.steps=20 seed=1")
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one.")], settings: Settings = None
) -> None:
    """Run a recipe: every stage that is not done yet, then the report."""
    from trimtab.config import find_recipe, load_recipe

    _run(load_recipe(find_recipe(recipe), settings or []))


@app.command(epilog="Example: trimtab train sft data=my.jsonl model=smollm2-135m-instruct epochs=1")
def train(
    stage: Annotated[str, typer.Argument(help="A stage: see 'trimtab list stages'.")], settings: Settings = None
) -> None:
    """Run one stage without a recipe. The result lands in runs/STAGE (name=... to change)."""
    from trimtab.config import Recipe, check_recipe, read_yaml
    from trimtab.registry import STAGES

    entry = STAGES[stage]
    top = {field.name for field in dataclasses.fields(Recipe)} - {"stages"}
    raw: dict[str, Any] = {"name": stage, "stages": {stage: {}}}
    rest: list[str] = []
    for setting in settings or []:
        key, eq, value = setting.partition("=")
        if not eq:
            raise ConfigError(f"{setting!r} is not of the form key=value")
        if key in top and key not in entry.options:
            raw[key] = read_yaml(value, setting)
        elif key.split(".")[0] in entry.options:
            rest.append(f"{stage}.{setting}")
        else:
            raise ConfigError(f"stage {stage!r} has no option {key!r}{did_you_mean(key, [*entry.options, *top])}")
    _run(check_recipe(raw, f"trimtab train {stage}", rest, name=stage))


def _run(recipe: Any) -> None:
    from trimtab.pipeline import run_recipe
    from trimtab.report.summary import sentences

    live = Live(out)
    try:
        root = run_recipe(recipe, live)
    finally:
        live.close()
    for sentence in sentences(json.loads((root / "summary.json").read_text())):
        out.print(f"  {sentence}", highlight=False)
    out.print(f"[bold]report[/]   {root / 'report.html'}", highlight=False)
    out.print(f"[bold]summary[/]  {root / 'summary.json'}", highlight=False)


def _open(model: str, settings: list[str] | None, **defaults: Any) -> tuple[Any, Any]:
    """A model and how to sample from it."""
    import pydantic

    from trimtab.config import read_yaml
    from trimtab.model.sampler import Sampling, TorchSampler
    from trimtab.model.trunk import Trunk
    from trimtab.pipeline import find_model

    values = dict(defaults)
    known = [field.name for field in dataclasses.fields(Sampling)]
    for setting in settings or []:
        key, eq, text = setting.partition("=")
        if not eq or key not in known:
            raise ConfigError(f"no sampling option {key!r}{did_you_mean(key, known)}")
        values[key] = read_yaml(text, setting)
    try:
        sampling = pydantic.TypeAdapter(Sampling).validate_python(values)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{first['loc'][0]}={first['input']!r}: {first['msg']}") from None
    trunk, adapter = Trunk.open(find_model(model, Path(model).name))
    return TorchSampler(trunk, adapter, stop=trunk.chat.stop), sampling


@app.command(epilog="Example: trimtab generate runs/quickstart/policy --prompt 'How do I boil an egg?' temperature=0")
def generate(
    model: Annotated[str, typer.Argument(help="A run's stage folder, a bundled name, a local folder or a hub id.")],
    settings: Settings = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts in any known format.")] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Write Groups to this JSONL file.")] = None,
    k: Annotated[int, typer.Option(help="Answers to each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same answers.")] = 0,
) -> None:
    """Answer prompts with a model."""
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups
    from trimtab.records.types import Answer, Group, Message

    if not prompt and not prompts:
        raise ConfigError("nothing to answer: give --prompt TEXT or --prompts FILE")
    groups = [
        Group(id=f"prompt-{i}", prompt=(Message(role="user", content=text),)) for i, text in enumerate(prompt or [])
    ]
    if prompts:
        groups += [group.with_answers(()) for group in read_groups(prompts).groups]
    sampler, sampling = _open(model, settings, max_tokens=256, temperature=0.7)
    chat = sampler.trunk.chat
    sampled = sampler.sample([chat.prompt(group.prompt) for group in groups], k=k, sampling=sampling, seed=seed)
    answered = [
        group.with_answers(
            tuple(Answer(text=chat.decode(a.tokens), finish=a.finish, model=model, logprob=sum(a.logps)) for a in own)
        )
        for group, own in zip(groups, sampled, strict=True)
    ]
    if output is not None:
        out.print(f"{write_groups(output, answered)} groups written to {output}")
        return
    for group in answered:
        out.print(f"[bold]{_safe(group.prompt[-1].content)}[/]", highlight=False)
        for answer in group.answers:
            cut = " [dim](cut off at max_tokens)[/]" if answer.finish == "length" else ""
            out.print(f"  {_safe(answer.text)}{cut}", highlight=False)


@app.command(epilog="Example: trimtab chat smollm2-135m-instruct temperature=0.5")
def chat(
    model: Annotated[str, typer.Argument(help="A run's stage folder, a bundled name, a local folder or a hub id.")],
    settings: Settings = None,
) -> None:
    """Talk to a model. An empty line or Ctrl-D ends it; /new forgets what was said."""
    from trimtab.records.types import Message

    sampler, sampling = _open(model, settings, max_tokens=256, temperature=0.7)
    talk: list[Message] = []
    turn = 0
    while True:
        try:
            said = out.input("[bold]you:[/] ").strip()
        except EOFError:
            break
        if not said:
            break
        if said == "/new":
            talk = []
            continue
        talk.append(Message(role="user", content=said))
        prompt = sampler.trunk.chat.prompt(talk)
        ((answer,),) = sampler.sample([prompt], k=1, sampling=sampling, seed=turn)
        turn += 1
        text = sampler.trunk.chat.decode(answer.tokens)
        talk.append(Message(role="assistant", content=text))
        out.print(f"[bold cyan]model:[/] {_safe(text)}", highlight=False)


@app.command(epilog="Example: trimtab score runs/quickstart/reward answers.jsonl --out scored.jsonl")
def score(
    model: Annotated[str, typer.Argument(help="The folder of a reward stage.")],
    data: Annotated[str, typer.Argument(help="A file with prompts and answers in any known format.")],
    output: Annotated[Path | None, typer.Option("--out", help="Write Groups with Score verdicts to this file.")] = None,
) -> None:
    """Score answers with a reward model."""
    from trimtab.pipeline import find_model
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups
    from trimtab.records.types import Score
    from trimtab.rewards.reward_model import RewardModel

    groups = read_groups(data).groups
    reference = find_model(model, "reward")
    scores = RewardModel.open(reference).score(groups)
    rater = f"reward:{reference.artifact.key[:12] if reference.artifact else model}"
    if output is not None:
        scored = [
            dataclasses.replace(
                group,
                verdicts=(
                    *group.verdicts,
                    *(Score(answer=i, values={"reward": s}, rater=rater) for i, s in enumerate(row)),
                ),
            )
            for group, row in zip(groups, scores, strict=True)
        ]
        out.print(f"{write_groups(output, scored)} groups written to {output}")
        return
    for group, row in zip(groups, scores, strict=True):
        for answer, value in zip(group.answers, row, strict=True):
            out.print(f"{value:+.3f}  {_safe(answer.text[:100])!r}", highlight=False)


@data_app.command(epilog="Example: trimtab data inspect my.jsonl --model smollm2-135m-instruct --window 1024")
def inspect(
    source: Annotated[str, typer.Argument(help="A file, a folder, a hub id, or quickstart/NAME.")],
    model: Annotated[str | None, typer.Option(help="Count tokens as this model does (else words).")] = None,
    window: Annotated[int | None, typer.Option(help="Name rows longer than this.")] = None,
    max_answer: Annotated[int | None, typer.Option(help="Name answers longer than this.")] = None,
    format: Annotated[str | None, typer.Option(help="Read as this format instead of detecting it.")] = None,
) -> None:
    """Show counts, lengths, and every row that would be refused or is too long, with the reason."""
    from trimtab.data.inspect import inspect as look
    from trimtab.data.inspect import render
    from trimtab.records.read import read_groups

    reading = read_groups(source, format=format, on_bad="skip")
    count = None
    if model is not None:
        from trimtab.model.chat import Chat
        from trimtab.model.load import load_tokenizer

        words = Chat(load_tokenizer(model))

        def count(group: Any) -> tuple[int, tuple[int, ...]]:
            item = words.group(group)
            return len(item.prompt), tuple(len(answer) for answer in item.answers)

    out.print(render(look(reading, count, window=window, max_answer=max_answer)))


@data_app.command(epilog="Example: trimtab data convert pairs.parquet pairs.jsonl --to preference")
def convert(
    source: Annotated[str, typer.Argument(help="A file, a folder, a hub id, or quickstart/NAME.")],
    target: Annotated[Path, typer.Argument(help="A .jsonl, .jsonl.gz or .parquet file.")],
    to: Annotated[str, typer.Option(help="'group' (our own), or one of TRL's formats.")] = "group",
    format: Annotated[str | None, typer.Option(help="Read as this format instead of detecting it.")] = None,
) -> None:
    """Rewrite data in another format. A row that cannot be used stops it, by file, line and field."""
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups
    from trimtab.records.writers import WRITERS

    groups = read_groups(source, format=format).groups
    writers = {"group": write_groups, **WRITERS}
    if to not in writers:
        raise ConfigError(f"no format {to!r} to write{did_you_mean(to, writers)}")
    out.print(f"{writers[to](target, groups)} rows written to {target}")


@app.command(name="list", epilog="Example: trimtab list stages")
def list_(what: Annotated[str | None, typer.Argument(help="stages, methods, models or formats.")] = None) -> None:
    """List what there is: stages with their options, methods, bundled models, data formats."""
    from trimtab.listing import LISTINGS

    if what is not None and what not in LISTINGS:
        raise ConfigError(f"nothing to list under {what!r}{did_you_mean(what, LISTINGS)}")
    for name in [what] if what else LISTINGS:
        out.print(LISTINGS[name]())


@app.command(epilog="Example: trimtab show runs/quickstart")
def show(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Say what happened in a run."""
    from trimtab.report.summary import sentences, summarise

    summary = summarise(folder)
    table = Table("stage", "seconds", "peak GB", box=None, header_style="bold")
    for key, value in summary.items():
        if key.startswith("stage/") and key.endswith("/seconds"):
            name = key.split("/")[1]
            table.add_row(name, f"{value:.0f}", f"{summary[f'stage/{name}/peak_rss_gb']:.2f}")
    out.print(table)
    for sentence in sentences(summary):
        out.print(f"  {sentence}", highlight=False)


@app.command(epilog="Example: trimtab doctor")
def doctor() -> None:
    """Say what this machine has and what would be missing."""
    from trimtab.model.hardware import hardware

    table = Table(box=None, show_header=False)
    for name, value in dataclasses.asdict(hardware()).items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        table.add_row(name, str(shown))
    out.print(table)


def _safe(text: str) -> str:
    """Model output for a terminal: no markup, no control characters but newline and tab."""
    from rich.markup import escape

    return escape("".join(c if c in "\n\t" or c.isprintable() else "�" for c in text))


def main() -> None:
    """Run the command line; user errors are one sentence and exit code 2, never a traceback."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
    try:
        app()
    except UserError as error:
        err.print(f"[red]error:[/] {error}", highlight=False)
        sys.exit(UserError.exit_code)
    except TrimtabError as error:
        err.print(f"[red]stopped:[/] {error}", highlight=False)
        sys.exit(getattr(error, "exit_code", 3))
    except KeyboardInterrupt:
        err.print("stopped; the same command goes on where it was", highlight=False)
        sys.exit(130)


__all__ = ["__version__", "app", "main"]
