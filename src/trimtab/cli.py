"""The command line: each command is a thin layer over the library; settings are ``key=value``, never flags per field.

What a user can put right is one sentence on stderr and exit code 2; a broken promise of ours is 3, Ctrl-C 130.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from trimtab.cli_data import Source, check_target, data_app
from trimtab.console import Live, Polite, err, out, warn, words
from trimtab.errors import ConfigError, DataError, did_you_mean

if TYPE_CHECKING:
    from trimtab.config import ModelRef, Recipe
    from trimtab.model.sampler import Sampled, Sampling, TorchSampler
    from trimtab.model.trunk import Trunk
    from trimtab.records.types import Group, Message
    from trimtab.rewards.scorer import Scorer

app = typer.Typer(
    cls=Polite, help="Turn a language model into one that people prefer.", epilog="Example: trimtab run quickstart",
    no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
app.add_typer(data_app, name="data")

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")]
SampledModel = Annotated[
    str, typer.Argument(help="A run's stage folder, a bundled name, a local folder, a .gguf file or a hub id.")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        from trimtab.artifacts import revision

        out.print(f"trimtab {revision()}", highlight=False)
        raise typer.Exit


# --- training ---------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: trimtab run recipes/quickstart.yaml policy.steps=20 seed=1")
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one.")], settings: Settings = None
) -> None:
    """Run a recipe: every stage that is not done yet, then the report."""
    from trimtab.config import find_recipe, load_recipe

    _run(load_recipe(find_recipe(recipe), settings or []))


@app.command(epilog="Example: trimtab train sft data=my.jsonl model=smollm2-135m-instruct epochs=1 lora.rank=8")
def train(
    stage: Annotated[str, typer.Argument(help="A stage: see 'trimtab list stages'.")], settings: Settings = None
) -> None:
    """Run one stage without a recipe. The result lands in runs/STAGE (name=... to change)."""
    from trimtab.config import Recipe, check_recipe, read_plugins, read_setting, schema
    from trimtab.registry import STAGES

    given = dict(map(read_setting, settings or []))
    read_plugins(given.get("plugins", ()), f"trimtab train {stage}: ")
    options = schema(STAGES[stage], given, f"trimtab train {stage}")
    top = {field.name for field in dataclasses.fields(Recipe)} - {"stages"}
    raw: dict[str, Any] = {"name": stage, "stages": {stage: {}}}
    overrides: list[str] = []
    for setting in settings or []:
        key, value = read_setting(setting)
        if key.split(".")[0] in options:
            overrides.append(f"{stage}.{setting}")
        elif key in top:
            raw[key] = value
        else:
            raise ConfigError(f"stage {stage!r} has no option {key!r}{did_you_mean(key, [*options, *top])}")
    _run(check_recipe(raw, f"trimtab train {stage}", overrides, name=stage))


@app.command(epilog="Example: trimtab bakeoff recipes/bakeoff_preferences.yaml bakeoff.seeds=[0] --rows mine.jsonl")
def bakeoff(
    recipe: Annotated[str, typer.Argument(help="A recipe with the key 'bakeoff', or the name of one.")],
    settings: Settings = None,
    rows: Annotated[Path | None, typer.Option(help="Where finished rows are kept (runs/NAME/rows.jsonl).")] = None,
    table: Annotated[bool, typer.Option("--table", help="Run nothing: only the table of what is there.")] = False,
    any_code: Annotated[bool, typer.Option("--any-code", help="Count rows that other code made, and say so.")] = False,
) -> None:
    """Train several methods from one start with several seeds, and compare them; what is done is not done again.

    Rows of other settings, data or code are named and not counted.
    """
    from rich.table import Table

    from trimtab.bakeoff import identify, left_out, load_bakeoff, read_rows, rows_of, run_bakeoff
    from trimtab.config import find_recipe
    from trimtab.report.bakeoff import notes, omissions, overview, page, verdict
    from trimtab.report.bakeoff_pictures import draw, frontier

    plan = load_bakeoff(find_recipe(recipe), settings or [])
    folder, start = plan.output / plan.name, plan.contest.start
    path = rows or folder / "rows.jsonl"
    if not table:
        for row in run_bakeoff(plan, path, any_code=any_code):
            out.print(words(f"{row['method']}, seed {row['seed']}: {row['seconds'] / 60:.1f} minutes", style="bold"))
    every = read_rows(path)
    identities = {method: identify(plan, method) for method in plan.entrants}
    mine = rows_of(identities, plan.contest.seeds, every, any_code=any_code)
    others = left_out(identities, every, mine)
    if not mine:
        raise DataError(". ".join([f"{path}: no rows of this bake-off yet", *omissions(others)]))
    folder.mkdir(parents=True, exist_ok=True)
    draw(mine, start, folder / "bakeoff.svg")
    second = "frontier.svg" if frontier(mine, start, folder / "frontier.svg") else None
    (folder / "bakeoff.md").write_text(page(mine, start, others, "bakeoff.svg", second), encoding="utf-8")
    head, *lines = overview(mine, start)
    shown = Table(box=None, pad_edge=False)
    for name in head:
        shown.add_column(words(name))
    for line in lines:
        shown.add_row(*map(words, line))
    out.print(shown)
    for sentence in [verdict(mine, start), *notes(mine, start), *omissions(others)]:
        out.print(words(sentence))
    out.print(Text("table    ", style="bold") + words(str(folder / "bakeoff.md")))
    for picture in filter(None, ("bakeoff.svg", second)):
        out.print(Text("picture  ", style="bold") + words(str(folder / picture)))


def _run(recipe: Recipe) -> None:
    from trimtab.pipeline import run_recipe
    from trimtab.report.summary import sentences

    live = Live(out)
    try:
        root = run_recipe(recipe, live)
    finally:
        live.close()
    for sentence in sentences(json.loads((root / "summary.json").read_text(encoding="utf-8"))):
        out.print(words(f"  {sentence}"))
    out.print(Text("report   ", style="bold") + words(str(root / "report.html")))
    out.print(Text("summary  ", style="bold") + words(str(root / "summary.json")))


# --- models -----------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: trimtab generate runs/quickstart/policy --prompt 'How do I boil an egg?' temperature=0")
def generate(
    model: SampledModel,
    settings: Settings = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt; may be given several times.")] = None,
    prompts: Annotated[str | None, typer.Option(help="A file of prompts in any known format.")] = None,
    output: Annotated[Path | None, typer.Option("--out", help="Write Groups to this file.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Answers to each prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Same seed, same answers.")] = 0,
    best_of: Annotated[int | None, typer.Option(min=2, help="Sample so many and keep the best by --scorer.")] = None,
    scorer: Annotated[
        str | None, typer.Option(help="The folder of a stage that scores: a reward, an ensemble.")
    ] = None,
) -> None:
    """Answer prompts with a model. Settings: max_tokens, temperature, top_p, top_k."""
    from trimtab.pipeline import find_trained
    from trimtab.records.codec import write_groups
    from trimtab.records.types import Answer, Score
    from trimtab.rewards.best_of import best_of as keep_best

    if (best_of is None) != (scorer is None):
        raise ConfigError("--best-of N and --scorer FOLDER go together: the scorer says which of the N is best")
    if best_of is not None and k != 1:
        raise ConfigError("--k would change nothing: --best-of keeps one answer to a prompt")
    groups = _prompts(prompt or [], prompts)
    check_target(output)
    sampler, sampling = _sampler(model, settings or [])
    found = find_trained(scorer) if scorer is not None else None
    judge = _open_scorer(found, sampler.trunk) if found is not None else None
    chat = sampler.trunk.chat
    count = best_of or k
    live = Live(err)
    live.begin("answering", len(groups) * count, "answer")
    try:
        sampled = sampler.sample(
            [chat.prompt(group.prompt) for group in groups], k=count, sampling=sampling, seed=seed,
            progress=lambda done: live.advance(done, {}),
        )  # fmt: skip
    finally:
        live.close()

    def record(a: Sampled) -> Answer:
        return Answer(text=chat.decode(a.tokens), finish=a.finish, model=model, logprob=sum(a.logps))

    answered = [g.with_answers(tuple(map(record, own))) for g, own in zip(groups, sampled, strict=True)]
    if judge is not None and found is not None:
        answered = keep_best(answered, judge.score(answered), rater=_rater(found))
    if output is not None:
        out.print(words(f"{write_groups(output, answered):,} groups written to {output}"))
        return
    for group in answered:
        out.print(words(group.prompt[-1].content, style="bold"))
        for answer in group.answers:
            said = [f"{value:+.3f}  " for v in group.verdicts if isinstance(v, Score) for value in v.values.values()]
            out.print(Text("  " + "".join(said)) + _answer(answer.text, answer.finish))


def _open_scorer(scorer: ModelRef, trunk: Trunk) -> Scorer:
    """A scorer, on the sampler's trunk when that is its base."""
    from trimtab.rewards.scorer import open_scorer

    return open_scorer(scorer, trunk=trunk if scorer.base == trunk.loaded.source.ref else None)


def _rater(scorer: ModelRef) -> str:
    """Who says it, in a verdict."""
    return f"reward:{scorer.artifact.key[:12] if scorer.artifact else scorer.name}"


@app.command(epilog="Example: trimtab chat smollm2-135m-instruct temperature=0.5")
def chat(model: SampledModel, settings: Settings = None) -> None:
    """Talk to a model. An empty line or Ctrl-D ends it; /new forgets what was said."""
    from trimtab.records.types import Message

    sampler, sampling = _sampler(model, settings or [])
    talk: list[Message] = []
    turn = 0
    while True:
        try:
            said = out.input(Text("you: ", style="bold")).strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            break
        if not said:
            break
        if said == "/new":
            talk = []
            continue
        talk.append(Message(role="user", content=said))
        ((answer,),) = sampler.sample([sampler.trunk.chat.prompt(talk)], k=1, sampling=sampling, seed=turn)
        turn += 1
        text = sampler.trunk.chat.decode(answer.tokens)
        talk.append(Message(role="assistant", content=text))
        out.print(Text("model: ", style="bold cyan") + _answer(text, answer.finish))


@app.command(epilog="Example: trimtab score runs/quickstart/reward answers.jsonl --out scored.jsonl")
def score(
    model: Annotated[str, typer.Argument(help="The folder of a stage that scores: a reward, an ensemble, a policy.")],
    source: Source,
    output: Annotated[Path | None, typer.Option("--out", help="Write Groups with Score verdicts to this file.")] = None,
) -> None:
    """Score answers: higher is better; a reward model's 0 is the mean of its training answers.

    A model of a preference or sft stage scores by its own probabilities: by how much likelier training has made an
    answer, or, without a reference, by its mean log-probability a token.
    """
    from trimtab.pipeline import find_trained
    from trimtab.records.codec import write_groups
    from trimtab.records.read import read_groups
    from trimtab.records.types import Score
    from trimtab.rewards.scorer import open_scorer

    groups = read_groups(source).groups
    if not any(group.answers for group in groups):
        raise DataError(f"{source}: there are no answers in it to score")
    check_target(output)
    reference = find_trained(model)
    scores = open_scorer(reference).score(groups)
    rater = _rater(reference)
    if output is None:
        for group, row in zip(groups, scores, strict=True):
            out.print(words(group.prompt[-1].content if group.prompt else group.id, style="bold"))
            for answer, value in zip(group.answers, row, strict=True):
                out.print(Text(f"  {value:+.3f}  ") + words(answer.text))
        return
    scored = []
    for group, row in zip(groups, scores, strict=True):
        said = (Score(answer=i, values={"reward": value}, rater=rater) for i, value in enumerate(row))
        scored.append(dataclasses.replace(group, verdicts=(*group.verdicts, *said)))
    out.print(words(f"{write_groups(output, scored):,} groups written to {output}"))


def _prompts(given: Sequence[str], source: str | None) -> list[Group]:
    """The prompts of the command line, then those of a file."""
    from trimtab.records.read import read_groups
    from trimtab.records.types import Group, Message

    if not given and source is None:
        raise ConfigError("nothing to answer: give --prompt TEXT or --prompts FILE")
    groups = [Group(id=f"prompt-{i}", prompt=(Message(role="user", content=text),)) for i, text in enumerate(given)]
    found = [] if source is None else read_groups(source).groups
    for group in found:
        if not group.prompt:
            raise DataError(f"{source}: group {group.id!r} has no prompt to answer")
    return [*groups, *(group.with_answers(()) for group in found)]


def _sampler(model: str, settings: Sequence[str]) -> tuple[TorchSampler, Sampling]:
    """A model, and how to sample from it."""
    from trimtab.config import check_options, read_setting
    from trimtab.model.sampler import Sampling, TorchSampler
    from trimtab.model.trunk import Trunk
    from trimtab.pipeline import find_trained

    given = check_options(Sampling, dict(map(read_setting, settings)), "sampling")
    sampling = Sampling(**{"max_tokens": 256, "temperature": 0.7, **given})
    trunk, adapter = Trunk.open(find_trained(model))
    return TorchSampler(trunk, adapter, stop=trunk.chat.stop), sampling


def _answer(text: str, finish: str | None) -> Text:
    cut = Text(" (cut off at max_tokens)", style="dim") if finish == "length" else Text()
    return words(text) + cut


@app.command(
    name="serve-model",
    epilog="Example: trimtab serve-model runs/quickstart/sft best=runs/quickstart/policy --port 8001",
)
def serve_model(
    models: Annotated[list[str], typer.Argument(metavar="[NAME=]MODEL...", help="Models, as 'generate' takes them.")],
    host: Annotated[str, typer.Option(help="The address to listen on; there is no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8001,
    slots: Annotated[int, typer.Option(min=1, help="Answers that are written side by side.")] = 16,
    waiting: Annotated[int, typer.Option(min=0, help="Answers that may wait; more are refused with 429.")] = 64,
    window: Annotated[int, typer.Option(min=2, help="Tokens of a prompt and its answer, if the model can.")] = 8192,
    dtype: Annotated[str, typer.Option(help="auto, bfloat16, float32 or 4bit.")] = "auto",
    drain: Annotated[int, typer.Option(min=0, help="Seconds that answers get to end after SIGTERM.")] = 30,
    until_stdin_ends: Annotated[
        bool, typer.Option("--until-stdin-ends", help="Stop when standard input is closed: with whoever started this.")
    ] = False,
) -> None:
    """Serve models over HTTP, as OpenAI's API does: any client of it works with base URL http://HOST:PORT/v1.

    Models of one base share its weights. The name of a model is its stage's, its folder's or file's, or what it is
    found by; NAME=MODEL gives another.
    """
    from trimtab.serving.server import is_loopback, serve

    if not is_loopback(host):
        warnings.warn(f"whoever reaches {host}:{port} can use these models; there is no login", stacklevel=2)
    serve(
        _served(models), host=host, port=port, slots=slots, waiting=waiting, window=window, dtype=dtype, drain_s=drain,
        until_stdin_ends=until_stdin_ends, ready=lambda address: out.print(words(f"serving at {address}/v1")),
    )  # fmt: skip


def _served(models: Sequence[str]) -> dict[str, ModelRef]:
    """Models by the names that they are served under."""
    from trimtab.pipeline import find_trained

    found: dict[str, ModelRef] = {}
    for word in models:
        name, equals, model = word.partition("=")
        ref = find_trained(model if equals else word)
        if not equals:
            path = Path(word)
            name = ref.name if ref.artifact is not None or not path.exists() else path.resolve().stem
        if name in found or not name:
            raise ConfigError(f"two models would be served as {name!r}; name one of them: NAME={model or word}")
        found[name] = ref
    return found


# --- looking around ---------------------------------------------------------------------------------------------------


@app.command(name="list", epilog="Example: trimtab list stages")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="stages, methods, losses, rules, tasks, models or formats.")
    ] = None,
    plugins: Annotated[list[str] | None, typer.Option(help="A folder of your own, to list too.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Hold your own losses against the laws.")] = False,
) -> None:
    """List what there is: stages with their options, methods, losses, rules, tasks, bundled models, data formats."""
    from trimtab.config import read_plugins
    from trimtab.listing import LISTINGS, hold_own_losses

    if what is not None and what not in LISTINGS:
        raise ConfigError(f"nothing to list under {what!r}{did_you_mean(what, LISTINGS)}")
    if plugins and what not in ("losses", "rules", "tasks"):
        raise ConfigError("--plugins holds losses, rules and tasks: trimtab list losses --plugins FOLDER")
    if check and not (plugins and what == "losses"):
        raise ConfigError("--check is for losses of your own: trimtab list losses --plugins FOLDER --check")
    read_plugins(plugins or ())
    for name in [what] if what else LISTINGS:
        out.print(LISTINGS[name]())
    if check:
        table, broken = hold_own_losses()
        out.print(table)
        if broken:
            raise ConfigError(f"laws that do not hold: {broken}")


@app.command(epilog="Example: trimtab show runs/quickstart")
def show(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Say what happened in a run."""
    from trimtab.listing import run_table
    from trimtab.report.summary import sentences, summarise

    summary = summarise(folder)
    out.print(run_table(summary))
    for sentence in sentences(summary):
        out.print(words(f"  {sentence}"))


@app.command(epilog="Example: trimtab doctor")
def doctor() -> None:
    """Say what this machine has, and what would have to be fetched."""
    from trimtab.listing import hardware_table
    from trimtab.model.hardware import hardware

    out.print(hardware_table(hardware()))


def main() -> None:
    """Run the command line."""
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft")
    warnings.showwarning = warn
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter is no reason to stop
    app()


__all__ = ["app", "main"]
