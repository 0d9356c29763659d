"""The command line as a user meets it: what it prints, and one sentence for everything that is wrong."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import trimtab
from trimtab.cli import app
from trimtab.listing import meaning
from trimtab.records.read import read_groups
from trimtab.records.types import Score
from trimtab.registry import PREFERENCE_LOSSES, REWARD_LOSSES, STAGES

TINY = ("model=tiny", "dtype=float32", "lora.rank=4", "epochs=0.1", "micro_tokens=4096")
COMMANDS = (
    (), ("run",), ("train",), ("bakeoff",), ("generate",), ("chat",), ("score",), ("list",), ("show",), ("doctor",),
    ("data",), ("data", "inspect"), ("data", "convert"), ("data", "constrain"), ("data", "judge"),
)  # fmt: skip
RECIPE = """
model: tiny
dtype: float32
stages:
  sft: {data: demonstrations.jsonl, epochs: 1, lora: {rank: 2}}
  reward: {init: sft, data: preferences.jsonl, epochs: 1, lora: {rank: 2}}
  evaluate: {models: [base, sft], prompts: demonstrations.jsonl, sampling: {max_tokens: 4}, base_max_tokens: 4}
"""
QUESTIONS = ("What is tea?", "Why?", "Who was it?", "Where is the tower?")


def call(*arguments: str, text: str | None = None) -> Result:
    result = CliRunner().invoke(app, list(arguments), input=text)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def good(*arguments: str, text: str | None = None) -> str:
    result = call(*arguments, text=text)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str, text: str | None = None) -> str:
    """The one sentence that a user gets for a mistake."""
    result = call(*arguments, text=text)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture(scope="module", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own for the tiny model, and one thread: two wait for each other on so small a model."""
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("COLUMNS", "200")
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a small recipe has run: runs/small with sft, reward and evaluate."""
    folder = tmp_path_factory.mktemp("work")
    turn = [{"prompt": q, "completion": "Yes, so it is."} for q in QUESTIONS]
    pair = [{"prompt": q, "chosen": "Yes, so it is.", "rejected": "No"} for q in QUESTIONS]
    for name, rows in (("demonstrations", turn), ("preferences", pair)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "small.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        printed = good("run", "small.yaml")
    assert "runs/small/report.html" in printed
    return folder


@pytest.fixture
def work(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, as the working directory."""
    monkeypatch.chdir(finished)
    return finished


# --- looking around ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_has_one_example_that_is_a_real_command(command: Sequence[str]) -> None:
    text = re.sub(r"\s+", " ", good(*command, "--help"))
    (example,) = re.findall(r"Example: trimtab ([a-z ]+)", text)
    assert example.split()[: len(command)] == list(command)


def test_no_arguments_is_help() -> None:
    assert "Usage" in call().output


def test_version() -> None:
    assert good("--version").startswith(f"trimtab {trimtab.__version__}")


def test_list() -> None:
    everything = good("list")
    for name in ("stages", "methods", "losses", "models", "formats"):
        assert good("list", name) in everything
    assert refused("list", "stags") == "nothing to list under 'stags'; did you mean 'stages'?"


def test_list_stages_has_every_option_its_default_and_what_it_means() -> None:
    lines = [line.strip() for line in good("list", "stages").splitlines()]

    def row(option: str) -> list[str]:
        return next(re.split(r"  +", line) for line in lines if line.startswith(f"{option} "))

    assert row("prompts") == ["prompts", "(needed)"]
    assert row("models") == ["models", "[base]"]
    assert row("judge")[:2] == ["judge", "(none)"]
    assert row("kl.beta")[:2] == ["kl.beta", "0.05"]
    assert row("lora.rank")[:2] == ["lora.rank", "16"]
    assert row("checkpoint_activations") == ["checkpoint_activations", "false"]
    assert row("answers")[2] == meaning("answers", inspect.getdoc(STAGES["policy"].function) or "") != ""
    assert "``" not in "".join(lines)


def test_list_stages_says_where_the_options_of_a_method_stand() -> None:
    text = good("list", "stages")
    (after,) = re.findall(r"^preference: .*?^ and the options of its (.*?)$", text, re.MULTILINE | re.DOTALL)
    assert after == "method (a preference loss): see 'trimtab list losses'"
    assert re.findall(r"options of its (.*):", text) == ["method (a preference loss)", "loss (a reward loss)"]


def test_list_losses_has_every_loss_its_options_paper_and_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")  # nothing is folded
    text = good("list", "losses")
    preference, reward = text.split("reward losses (reward.loss)")
    for part, folder in ((preference, PREFERENCE_LOSSES), (reward, REWARD_LOSSES)):
        assert len(folder) > 3
        for name, entry in folder.items():
            own = re.split(r"\n (?=\w)", part.split(f"\n {name} ")[1])[0]  # up to the next name
            assert entry.path is not None
            for cell in (entry.summary, entry.paper, entry.confirmed, f"{name}.py"):
                assert cell
                assert cell.replace("``", "") in own
            for option, parameter in entry.options.items():
                assert re.search(rf" {option}={str(parameter.default).lower()}(,| |$)", own, re.MULTILINE), option
    assert "``" not in text


def test_an_options_meaning_is_the_part_of_the_docstring_that_names_it() -> None:
    text = """Do it (Me et al., 2019).

    ``batch`` rows a step; ``center`` pulls (eq. 2) towards
    0. Each of ``a`` x ``b``. ``eos``: what the end does.
    """
    assert meaning("batch", text) == "batch rows a step"
    assert meaning("center", text) == "center pulls (eq. 2) towards 0"
    assert meaning("a", text) == meaning("b", text) == "Each of a x b"
    assert meaning("eos", text) == "what the end does"
    assert meaning("lr", text) == ""


def test_list_formats_says_what_can_be_written() -> None:
    lines = good("list", "formats").splitlines()
    assert any(re.match(r" *preference +prompt, chosen, rejected +--to preference", line) for line in lines)


def test_doctor() -> None:
    text = good("doctor")
    assert f"torch {torch.__version__}" in text
    assert re.search(r"model tiny +(in the cache|not here yet)", text)


def test_show(work: Path) -> None:
    text = good("show", "runs/small")
    assert re.search(r"^ *reward +\d+ +\d+\.\d\d", text, re.MULTILINE)
    assert "no-such-run" in refused("show", "no-such-run")


# --- training ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_not_done_again(work: Path) -> None:
    text = good("run", "small.yaml")
    assert [f"· {name}: done before, skipped" in text for name in ("sft", "reward", "evaluate")] == [True] * 3


def test_train_one_stage(work: Path) -> None:
    text = good("train", "sft", "data=quickstart/demonstrations", "name=alone", *TINY, "lr=1e-3")
    assert re.search(r"^sft: step (\d+) of \1  loss \d", text, re.MULTILINE)
    config = json.loads((work / "runs/alone/sft/manifest.json").read_text())["config"]
    assert (config["lora"]["rank"], config["epochs"], config["lr"]) == (4, 0.1, 1e-3)
    assert (work / "runs/alone/report.html").is_file()


def test_train_with_the_options_of_a_method(work: Path) -> None:
    settings = ("data=preferences.jsonl", "method=dpo", "beta=0.2", "name=pairs", *TINY, "lr=1e-3")
    assert re.search(r"^preference: step (\d+) of \1  loss \d", good("train", "preference", *settings), re.MULTILINE)
    config = json.loads((work / "runs/pairs/preference/manifest.json").read_text())["config"]
    assert (config["method"], config["beta"], config["lora"]["rank"]) == ("dpo", 0.2, 4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("run", "smal.yaml"), "no recipe 'smal.yaml'"),
        (("run", "quickstrt"), "no recipe 'quickstrt': no such file, and no recipe of that name; did you mean 'quick"),
        (("run", "small.yaml", "sft.epochs"), "'sft.epochs' is not of the form key=value"),
        (("run", "small.yaml", "sft.epocs=1"), "small.yaml: stages.sft: no option 'epocs'; did you mean 'epochs'?"),
        (("run", "small.yaml", "sft.epochs=many"), "small.yaml: stages.sft.epochs='many': input should be a valid num"),
        (("run", "small.yaml", "rewrd.epochs=1"), "override 'rewrd.epochs=1': no stage 'rewrd' in this recipe; did yo"),
        (("run", "small.yaml", "sft.init=reward"), "small.yaml: stages.sft.init: stage 'reward' comes later in the r"),
        (("run", "small.yaml", "reward.init=sfft"), "stages.reward.init: no stage or model 'sfft'; did you mean 'sft'"),
        (("run", "small.yaml", "reward.data=preference.jsonl"), "stages.reward.data: no file or folder 'preference.j"),
        (("run", "small.yaml", "model=tin"), "no model 'tin'; did you mean 'tiny'?"),
        (("train", "stf", "data=x"), "no stage 'stf'; did you mean 'sft'?"),
        (("train", "sft", "dta=x"), "stage 'sft' has no option 'dta'; did you mean 'data'?"),
        (("train", "preference", "data=x", "bta=1"), "stage 'preference' has no option 'bta'; did you mean 'beta'?"),
        (("train", "preference", "data=x", "method=orpo", "beta=1"), "stage 'preference' has no option 'beta'; known:"),
        (
            ("train", "preference", "data=x", "method=dpoo"),
            "trimtab train preference.method: no preference loss 'dpoo'; did you mean 'dpo'?",
        ),
        (("train", "sft", "data"), "'data' is not of the form key=value"),
        (("train", "sft", "model=tiny"), "trimtab train sft: stages.sft: option 'data' is missing"),
        (("train", "sft", "data=quickstart/demonstration"), "stages.sft.data: no quickstart data 'demonstration'"),
    ],
)
def test_settings_that_do_not_fit(arguments: Sequence[str], sentence: str, work: Path) -> None:
    before = sorted((work / "runs").iterdir())
    assert sentence in refused(*arguments)
    assert sorted((work / "runs").iterdir()) == before  # nothing had begun


def test_a_bakeoff_has_a_command_of_its_own(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "b.yaml"
    contest = "bakeoff:\n  start: sft\n  methods: {dpo: {stage: preference, data: preferences.jsonl}}\n"
    path.write_text(f"{RECIPE}{contest}  evaluate: {{prompts: demonstrations.jsonl}}\n")
    assert refused("run", str(path)) == f"{path}: this recipe holds a bake-off: run it with 'trimtab bakeoff'"
    assert refused("bakeoff", "small.yaml").startswith("small.yaml: no bake-off in it")
    before = sorted((work / "runs").iterdir())
    assert refused("bakeoff", str(path), "--table") == "runs/b/rows.jsonl: no rows of this bake-off yet"
    assert refused("bakeoff", str(path), "--table", "--rows", "preferences.jsonl") == (
        "preferences.jsonl, line 1: not a row of a bake-off"
    )
    assert sorted((work / "runs").iterdir()) == before


def test_a_recipe_that_is_not_yaml(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: tiny\nstages:\n  sft: {data: [}\n")
    assert refused("run", str(path)).startswith(f"{path}, line 3: not valid YAML")


def test_a_bad_row_is_named_by_file_line_and_field(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": 3}\n')
    said = refused("train", "sft", f"data={path}", "name=bad", "bad=stop", *TINY)
    assert f"{path}, line 2, field 'completion'" in said


def test_an_output_folder_that_cannot_be_written(work: Path, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    assert "Permission denied" in refused("run", "small.yaml", f"output={tmp_path}/x")


# --- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tiny", "runs/small/sft"])
def test_generate(model: str, work: Path) -> None:
    asked = ("generate", model, "--prompt", "One?", "--prompt", "Two?", "--k", "2", "max_tokens=5")
    text = good(*asked)
    assert re.findall(r"^(One\?|Two\?)$", text, re.MULTILINE) == ["One?", "Two?"]
    assert text.count("(cut off at max_tokens)") == 4
    assert text == good(*asked)
    assert text != good(*asked, "--seed", "1")


def test_generate_to_a_file(work: Path, tmp_path: Path) -> None:
    target = tmp_path / "answers.jsonl"
    text = good(
        "generate", "runs/small/sft", "--prompts", "demonstrations.jsonl", "--prompt", "First?", "--out", str(target),
        "max_tokens=4", "temperature=0",
    )  # fmt: skip
    assert text == f"5 groups written to {target}\n"
    groups = read_groups(target).groups
    assert [g.prompt[-1].content for g in groups] == ["First?", *QUESTIONS]
    assert all(len(g.answers) == 1 and not g.verdicts for g in groups)
    (answer,) = groups[1].answers
    assert (answer.model, answer.finish) == ("runs/small/sft", "length")
    assert answer.logprob is not None
    assert answer.logprob < 0


@pytest.mark.parametrize("scorer", ["reward", "sft"])
def test_generate_the_best_of_some(scorer: str, work: Path, tmp_path: Path) -> None:
    """The first of the four answers with the highest score, by the scorer asked apart; the same on the terminal."""
    few = ("--prompts", "demonstrations.jsonl", "max_tokens=6", "temperature=1")
    every, best, scored = (tmp_path / f"{name}.jsonl" for name in ("every", "best", "scored"))
    good("generate", "runs/small/sft", *few, "--k", "4", "--out", str(every))
    chosen = ("--best-of", "4", "--scorer", f"runs/small/{scorer}")
    good("generate", "runs/small/sft", *few, *chosen, "--out", str(best))
    good("score", f"runs/small/{scorer}", str(every), "--out", str(scored))
    terminal = good("generate", "runs/small/sft", *few, *chosen)
    for group, kept in zip(read_groups(scored).groups, read_groups(best).groups, strict=True):
        scores = [v.values["reward"] for v in group.verdicts if isinstance(v, Score)]
        ((answer,), (verdict,)) = kept.answers, kept.verdicts
        assert isinstance(verdict, Score)
        assert verdict.values["reward"] == pytest.approx(max(scores), abs=1e-4)
        assert answer.text == group.answers[scores.index(max(scores))].text
        assert f"{verdict.values['reward']:+.3f}" in terminal


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("tiny",), "nothing to answer: give --prompt TEXT or --prompts FILE"),
        (("tiny", "--prompts", "nothing.jsonl"), "no file or folder 'nothing.jsonl'"),
        (("tinny", "--prompt", "x"), "no model 'tinny'; did you mean 'tiny'?"),
        (("runs/small", "--prompt", "x"), "runs/small: this is a whole run; name one of its models: runs/small/reward"),
        (("runs/small/stf", "--prompt", "x"), "runs/small/stf: the run has no such stage; did you mean 'sft'?"),
        (("runs/small/evaluate", "--prompt", "x"), "runs/small/evaluate: stage 'evaluate' makes no model"),
        (("tiny", "--prompt", "x", "temprature=1"), "sampling: no option 'temprature'; did you mean 'temperature'?"),
        (("tiny", "--prompt", "x", "top_p=2"), "sampling: top_p=2: input should be less than or equal to 1"),
        (
            ("tiny", "--prompt", "x", "max_tokens=0"),
            "sampling: max_tokens=0: input should be greater than or equal to 1",
        ),
        (("tiny", "--prompt", "x", "--best-of", "2"), "--best-of N and --scorer FOLDER go together"),
        (("tiny", "--prompt", "x", "--scorer", "runs/small/reward"), "--best-of N and --scorer FOLDER go together"),
        (
            ("tiny", "--prompt", "x", "--best-of", "2", "--scorer", "runs/small/reward", "--k", "3"),
            "--k would change nothing: --best-of keeps one answer to a prompt",
        ),
        (("tiny", "--prompt", "x", "--best-of", "2", "--scorer", "tiny"), "'tiny' is not a reward model"),
        (("tiny", "--prompt", "x", "--out", "a.csv"), "a.csv: cannot tell what kind of file to write"),
        (("tiny", "--prompt", "x", "--out", "no/a.jsonl"), "no/a.jsonl: there is no folder 'no'"),
    ],
)
def test_generate_refuses(arguments: Sequence[str], sentence: str, work: Path) -> None:
    assert refused("generate", *arguments).startswith(sentence)


def test_prompts_without_a_prompt_are_named(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "no prompt here"}\n')
    assert "has no prompt to answer" in refused("generate", "tiny", "--prompts", str(path))


@pytest.mark.parametrize("model", ["tiny", "runs/small/sft"])
def test_chat(model: str, work: Path) -> None:
    text = good("chat", model, "max_tokens=4", text="Hi\nAnd?\n/new\nHi\n\n")
    assert text.count("you: ") == 5
    assert text.count("model: ") == 3
    assert good("chat", "tiny", "max_tokens=4", text="Hi\n").count("model: ") == 1  # the end of the input ends it


def test_score(work: Path, tmp_path: Path) -> None:
    text = good("score", "runs/small/reward", "preferences.jsonl")
    shown = re.findall(r"^  ([+-]\d\.\d{3})  (.*)$", text, re.MULTILINE)
    assert [answer for _, answer in shown] == ["Yes, so it is.", "No"] * 4
    target = tmp_path / "scored.jsonl"
    good("score", "runs/small/reward", "preferences.jsonl", "--out", str(target))
    for i, group in enumerate(read_groups(target).groups):
        scores = [verdict for verdict in group.verdicts if isinstance(verdict, Score)]
        assert len(group.verdicts) == 3  # the pair is still there
        for j, verdict in enumerate(scores):
            assert (verdict.answer, str(verdict.rater)[:7]) == (j, "reward:")
            assert f"{verdict.values['reward']:+.3f}" == shown[2 * i + j][0]


def test_score_refuses(work: Path) -> None:
    assert "is not a reward model" in refused("score", "tiny", "preferences.jsonl")
    assert "makes no model" in refused("score", "runs/small/evaluate", "preferences.jsonl")
    assert "there are no answers in it to score" in refused("score", "runs/small/reward", "quickstart/prompts")


def test_text_of_models_and_files_is_never_markup(work: Path, tmp_path: Path) -> None:
    nasty = "[bold]x[/] \x1b[2J \x1b]0;t\x07 :smile:"
    path = tmp_path / "n.jsonl"
    path.write_text(json.dumps({"prompt": nasty, "completion": nasty}) + "\n")
    for text in (
        good("score", "runs/small/reward", str(path)),
        good("generate", "tiny", "--prompt", nasty, "max_tokens=1"),
        call("run", nasty).output,
    ):
        assert r"[bold]x[/] \x1b[2J \x1b]0;t\x07 :smile:" in text.replace("\\\\", "\\")
        assert "\x1b" not in text


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demonstrations", "preferences", "prompts", "heldout", "judge"])
def test_inspect_the_quickstart_sets(name: str) -> None:
    groups = len(read_groups(f"quickstart/{name}").groups)
    for model in ((), ("--model", "tiny")):
        text = good("data", "inspect", f"quickstart/{name}", *model)
        assert re.search(rf"^groups +{groups:,} with", text, re.MULTILINE)
        assert f"prompts, in {'tokens' if model else 'words'}" in text
        assert "refused" not in text


def test_inspect_names_rows_that_are_lost_or_too_long(work: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    long = {"prompt": "a", "completion": "b" * 50}
    path.write_text(f'{json.dumps(long)}\n{{"prompt": 3}}\nnot json\n')
    text = good("data", "inspect", str(path), "--model", "runs/small/sft", "--window", "60", "--max-answer", "9")
    assert "2 refused, 1 too long" in text
    assert re.search(r"d\.jsonl, line 1 +answer 0 has 51 tokens, an answer may have 9", text)
    assert refused("data", "inspect", str(path), "--window", "60").startswith("--window and --max-answer are in tokens")


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "parquet"])
def test_convert_there_and_back(suffix: str, tmp_path: Path) -> None:
    whole, pairs, back = (str(tmp_path / f"{name}.{suffix}") for name in ("whole", "pairs", "back"))
    source = "quickstart/preferences"
    assert re.fullmatch(r"[\d,]+ rows written to .*\n", good("data", "convert", source, whole))
    assert read_groups(whole).groups == read_groups(source).groups
    good("data", "convert", whole, pairs, "--to", "preference")
    good("data", "convert", pairs, back)
    assert read_groups(pairs).format == "preference"
    assert read_groups(back).groups == read_groups(pairs).groups


def test_convert_says_what_it_left_out(tmp_path: Path) -> None:
    path, target = tmp_path / "d.jsonl", tmp_path / "t.jsonl"
    judged = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path.write_text(f"{json.dumps(judged)}\n{json.dumps({**judged, 'tie': True})}\n")
    plain = tmp_path / "p.jsonl"
    good("data", "convert", str(path), str(plain))
    rows = [json.loads(line) for line in plain.read_text().splitlines()]
    plain.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], {**rows[1], "verdicts": []}]))
    result = call("data", "convert", str(plain), str(target), "--to", "preference")
    assert (result.exit_code, result.stdout) == (0, f"1 rows written to {target}\n")
    assert result.stderr == f"left out: 1 groups, each has no strict preference (the first: {rows[1]['id']})\n"


def test_convert_stops_at_a_bad_row_or_names_it(tmp_path: Path) -> None:
    path, target = tmp_path / "d.jsonl", tmp_path / "t.jsonl"
    judged = {"prompt": "a", "chosen": "b", "rejected": "c"}
    path.write_text("".join(json.dumps(row) + "\n" for row in (judged, {**judged, "rejected": True}, judged)))
    reason = f"{path}, line 2, field 'rejected': expected text or a list of messages, found true"
    assert reason in refused("data", "convert", str(path), str(target))
    assert not target.exists()
    result = call("data", "convert", str(path), str(target), "--skip-bad")
    assert (result.exit_code, result.stdout) == (0, f"2 rows written to {target}\n")
    assert result.stderr == f"left out: {reason}\n"


def test_convert_refuses(tmp_path: Path) -> None:
    target = tmp_path / "t.jsonl"
    target.write_text("precious\n")
    source = "quickstart/demonstrations"
    said = refused("data", "convert", source, str(target), "--to", "preference")
    assert "nothing to write: group" in said
    assert "has no strict preference, nor any other" in said
    assert target.read_text() == "precious\n"
    assert list(tmp_path.iterdir()) == [target]
    assert "did you mean 'preference'" in refused("data", "convert", source, str(target), "--to", "preferenc")
    assert "cannot tell what kind" in refused("data", "convert", source, "t.csv")
    assert "did you mean 'alpaca'" in refused("data", "convert", source, str(target), "--format", "alpacca")


# --- as a process -----------------------------------------------------------------------------------------------------


def heed_ctrl_c() -> None:
    """A shell's background job ignores Ctrl-C, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str, **settings: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trimtab", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
        preexec_fn=heed_ctrl_c, **settings,
    )  # fmt: skip


def test_a_mistake_is_one_sentence_and_code_2(work: Path) -> None:
    process = start("run", "small.yaml", "sft.epocs=1", cwd=work)
    printed, said = process.communicate(timeout=120)
    assert (process.returncode, printed) == (2, "")
    assert said == "error: small.yaml: stages.sft: no option 'epocs'; did you mean 'epochs'?\n"


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    process = start("list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert process.wait(timeout=120) == 1
    assert said == ""


def test_ctrl_c_is_no_traceback_and_the_run_goes_on_later(work: Path) -> None:
    process = start("train", "sft", "data=demonstrations.jsonl", "name=long", "epochs=100000", "model=tiny", cwd=work)
    assert process.stdout is not None
    log = work / "runs/long/.work"
    while process.poll() is None and not list(log.glob("*/metrics.jsonl")):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()  # nothing, when it has ended
    assert process.returncode == 130
    assert said.strip() == "stopped; the same command goes on where it was"


def test_constraints_are_added_to_prompts(tmp_path: Path) -> None:
    once, again, other = (tmp_path / f"{name}.jsonl" for name in ("once", "again", "other"))
    for target, seed in ((once, "3"), (again, "3"), (other, "4")):
        text = good(
            "data", "constrain", "quickstart/choose", str(target), "--fewest", "2", "--most", "3", "--seed", seed
        )
        assert f"64 prompts with constraints written to {target}" in " ".join(text.split())
    assert once.read_text() == again.read_text() != other.read_text()
    for group, plain in zip(read_groups(str(once)).groups, read_groups("quickstart/choose").groups, strict=True):
        assert 2 <= len(group.meta["constraints"]) <= 3
        assert group.prompt[-1].content.startswith(plain.prompt[-1].content.rstrip())
    only = good("data", "constrain", "quickstart/choose", str(other), "--kind", "no_comma", "--most", "1")
    assert "64 prompts" in only
    assert all(group.meta["constraints"] == [{"kind": "no_comma"}] for group in read_groups(str(other)).groups)
    assert "no constraint of the kind 'no_coma'; did you mean 'no_comma'" in refused(
        "data", "constrain", "quickstart/choose", str(other), "--kind", "no_coma"
    )
