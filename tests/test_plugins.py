"""Losses of the user's own: ``plugins`` in a recipe, from its check to the artifact, and on the command line."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from tiny_stages import preferences, same_curves, same_weights
from trimtab.cli import app
from trimtab.config import Recipe, check_recipe, own_methods, read_plugins
from trimtab.errors import ConfigError
from trimtab.pipeline import run_recipe
from trimtab.records.types import Answer, Group
from trimtab.registry import OPEN, PREFERENCE_LOSSES, REWARD_LOSSES, use_plugins
from trimtab.rewards.rule_scorer import RuleScorer

EXAMPLES = Path(__file__).parents[1] / "examples" / "plugins"

HEAD = "from torch import Tensor\nfrom torch.nn.functional import logsigmoid, softplus\n\n\n"
MINE = (
    HEAD
    + '''
def mine(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, tau: float = 0.1) -> Tensor:
    """DPO under another name.

    ``tau``: its beta.

    Source: somebody 2026
    Confirmed by: the built-in one
    """
    return -logsigmoid(tau * ((chosen - ref_chosen.detach()) - (rejected - ref_rejected.detach())))
'''
)
HIS = (
    HEAD
    + '''
def his(better: Tensor, worse: Tensor, margin: Tensor, probability: Tensor, *, sharp: float = 1.0) -> Tensor:
    """Bradley-Terry under another name.

    ``sharp``: what a point counts.

    Source: somebody 2026
    Confirmed by: nobody
    """
    return softplus(sharp * (worse - better + margin))
'''
)


NONE = "no preference/NAME.py and no reward/NAME.py and no rules/NAME.py and no tasks/NAME.py"


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    use_plugins(())


def write(folder: Path, **files: str) -> Path:
    """Write Python files by name (``preference__mine``) into a plugin folder."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return write(tmp_path / "own", preference__mine=MINE, preference___helper="1 / 0\n", reward__his=HIS)


def check(plugins: Any, **stage: Any) -> Recipe:
    raw = {"plugins": plugins, "stages": {"x": {"stage": "preference", "data": "d.jsonl", **stage}}}
    return check_recipe(raw, "r.yaml")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split()).removeprefix("error: ")


# What a recipe says


def test_an_own_loss_is_a_method_and_its_parameters_are_options(own: Path) -> None:
    for plugins in (str(own), [str(own)], [str(own), str(EXAMPLES)]):
        recipe = check(plugins, method="mine")
        assert recipe.plugins == ((plugins,) if isinstance(plugins, str) else tuple(plugins))
        assert recipe.stages["x"].settings["tau"] == 0.1
    assert check(str(own), method="mine", tau=0.3).stages["x"].settings["tau"] == 0.3
    reward = check(str(own), stage="reward", loss="his", sharp=2)
    assert reward.stages["x"].settings["sharp"] == 2.0
    assert [*OPEN["preference"].added, *OPEN["reward"].added] == [PREFERENCE_LOSSES["mine"], REWARD_LOSSES["his"]]


def test_a_relative_folder_is_seen_from_where_one_stands(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    check("own", method="mine")
    assert PREFERENCE_LOSSES["mine"].path == own / "preference" / "mine.py"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tua": 1}, "r.yaml: stages.x: no option 'tua'; did you mean 'tau'?"),
        ({"beta": 1}, "r.yaml: stages.x: no option 'beta'; known: "),
        ({"tau": "much"}, "r.yaml: stages.x.tau='much': input should be a valid number"),
        ({"method": "mien"}, "r.yaml: stages.x.method: no preference loss 'mien'; did you mean 'mine'?"),
        ({"method": "his"}, "r.yaml: stages.x.method: no preference loss 'his'; known: "),
    ],
)
def test_a_wrong_option_is_refused_as_ever(own: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(str(own), **{"method": "mine", **settings})
    assert str(caught.value).startswith(said)


def test_plugins_do_not_leak_into_the_next_recipe(own: Path) -> None:
    check(str(own), method="mine")
    for other in ((), str(EXAMPLES)):
        with pytest.raises(ConfigError, match=r"no preference loss 'mine'"):
            check(other, method="mine")
    assert [entry.name for entry in PREFERENCE_LOSSES.added] == ["apo_zero"]
    assert REWARD_LOSSES.added == ()


SHOUT = """
def shout(text: str, *, least: float = 0.5) -> float:
    \"\"\"1 where at least the share ``least`` of the letters are capitals.\"\"\"
    letters = [c for c in text if c.isalpha()]
    return float(sum(map(str.isupper, letters)) >= least * max(1, len(letters)))
"""


def paid(plugins: str, rules: Any) -> Recipe:
    policy = {"prompts": "quickstart/prompts", "rules": rules, "method": "rloo"}
    return check_recipe({"plugins": plugins, "model": "tiny", "stages": {"policy": policy}}, "r.yaml")


def test_a_rule_of_ones_own_pays(own: Path) -> None:
    write(own, rules__shout=SHOUT)
    recipe = paid(str(own), {"loud": {"rule": "shout", "least": 0.9, "weight": 2}, "shout": None})
    settings = recipe.stages["policy"].settings["rules"]
    assert settings == {"loud": {"rule": "shout", "least": 0.9, "weight": 2}, "shout": {"rule": "shout", "least": 0.5}}
    scorer = RuleScorer.of(settings, "x")
    group = Group(id="g", answers=(Answer(text="HELP me"), Answer(text="HELP")))
    assert scorer.score([group]) == [[1.0, 3.0]]
    assert {name: entry.name for name, entry in own_methods(recipe.stages["policy"]).items()} == {
        "rules.loud": "shout", "rules.shout": "shout",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"shuot": {}}, "r.yaml: stages.policy.rules.shuot: no rule 'shuot'; did you mean 'shout'?"),
        ({"a": {"rule": "shout", "leest": 1}}, "r.yaml: stages.policy.rules.a: no option 'leest'"),
        ({"a": {"rule": "shout", "least": "x"}}, "r.yaml: stages.policy.rules.a.least='x'"),
        ({"a": {"rule": "shout", "weight": "heavy"}}, "r.yaml: stages.policy.rules.a: weight='heavy'"),
        ({2024: {"rule": "shout"}}, "r.yaml: stages.policy.rules: the name 2024 must be text; put it in quotes"),
        ({"length": {"mots": 3}}, "r.yaml: stages.policy.rules.length: no option 'mots'"),
    ],
)
def test_a_wrong_rule_is_refused_when_the_recipe_is_read(own: Path, rules: Any, said: str) -> None:
    write(own, rules__shout=SHOUT)
    with pytest.raises(ConfigError) as caught:
        paid(str(own), rules)
    assert str(caught.value).startswith(said)


def test_an_edited_file_is_read_anew(own: Path) -> None:
    before = own_methods(check(str(own), method="mine").stages["x"])["method"]
    write(own, preference__mine=MINE.replace("0.1", "0.2"))
    recipe = check(str(own), method="mine")
    after = own_methods(recipe.stages["x"])["method"]
    assert recipe.stages["x"].settings["tau"] == 0.2
    assert before.digest != after.digest
    assert own_methods(check(str(own), method="dpo").stages["x"]) == {}


# What can be wrong with a folder or a file


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ("nowhere", "r.yaml: plugins: no folder 'nowhere'"),
        ("empty", f"r.yaml: plugins: there is {NONE} in 'empty'"),
        ("own/preference", f"r.yaml: plugins: there is {NONE} in 'own/preference'"),
        (3, "r.yaml: plugins=3: input should be a valid tuple"),
        (["own", 3], "r.yaml: plugins.1=3: input should be a valid string"),
        (None, "r.yaml: plugins=None: input should be a valid tuple"),
    ],
)
def test_a_folder_that_is_none(own: Path, monkeypatch: pytest.MonkeyPatch, plugins: Any, said: str) -> None:
    (own.parent / "empty" / "preference").mkdir(parents=True)
    monkeypatch.chdir(own.parent)
    with pytest.raises(ConfigError) as caught:
        check(plugins, method="dpo")
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_that_name\n", ": cannot be imported: ModuleNotFoundError: No module named "),
        ("def yours(chosen):\n    return chosen\n", ": the preference loss 'mine' needs a function of that name"),
        ("mine = print\n", ": the preference loss 'mine' needs a function of that name"),
        (
            "def mine(chosn, rejected):\n    pass\n",
            ": preference loss 'mine': no column 'chosn'; did you mean 'chosen'?",
        ),
        ("def mine(chosen, beta=0.1):\n    pass\n", ": preference loss 'mine': no column 'beta'; known: baseline, "),
        ("def mine(logps):\n    pass\n", ": preference loss 'mine': exactly one of chosen, desirable, scores must be"),
        ("def mine(chosen, scores):\n    pass\n", ": preference loss 'mine': exactly one of chosen, desirable, scores"),
        (
            "def mine(chosen, logps):\n    pass\n",
            ": preference loss 'mine': beside 'chosen' there is no 'logps'; known: ",
        ),
        ("def mine(chosen, *more):\n    pass\n", ": preference loss 'mine': 'more': columns are asked for by name"),
        ("def mine(chosen, /):\n    pass\n", ": preference loss 'mine': 'chosen': columns are asked for by name"),
        ("def mine(chosen, *, tau=1.0):\n    pass\n", ": option 'tau' has no type; write tau: float, for instance"),
        ("def mine(chosen, *, lr: float = 1.0):\n    pass\n", ": stage 'preference' takes no option 'lr' of a loss"),
        ("def mine(chosen, *, run: float = 1.0):\n    pass\n", ": stage 'preference' takes no option 'run' of a loss"),
        ("def mine(chosen, *, stage: float = 1.0):\n    pass\n", ": stage 'preference' takes no option 'stage' of a "),
        (
            "def mine(chosen: 'Tensor', *, t: float):\n    pass\n",
            ": a type in 'mine' cannot be read: name 'Tensor' is ",
        ),
    ],
)
def test_a_file_that_is_no_loss(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, preference__mine=text)
    with pytest.raises(ConfigError) as caught:
        check(str(tmp_path), method="mine")
    assert str(caught.value).startswith(f"{tmp_path / 'preference' / 'mine.py'}{said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "def his(better, worse):\n    pass\n",
            "its columns must be better, worse, margin, probability, in this order",
        ),
        ("def his(labels, scores, mask):\n    pass\n", "its columns must be scores, labels, mask, in this order"),
        ("def his(chosen, rejected):\n    pass\n", "no column 'chosen'; known: better, "),
    ],
)
def test_a_reward_loss_takes_its_columns_by_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_plugins(str(write(tmp_path, reward__his=text)))
    assert str(caught.value).startswith(f"{tmp_path / 'reward' / 'his.py'}: reward loss 'his': {said}")


def test_a_name_that_is_taken(tmp_path: Path, own: Path) -> None:
    other = write(tmp_path / "other", preference__dpo=MINE.replace("mine", "dpo"))
    with pytest.raises(ConfigError, match=r"dpo\.py: there is a preference loss 'dpo' already; give the file another"):
        check(str(other), method="dpo")
    third = write(tmp_path / "third", preference__mine=MINE)
    with pytest.raises(ConfigError, match=r"third/preference/mine\.py: there is a preference loss 'mine' already"):
        check([str(own), str(third)], method="mine")


# Runs


def recipe(tmp_path: Path, tiny_model: Path, plugins: Any = (), name: str = "run", **settings: Any) -> Recipe:
    stage = {
        "stage": "preference", "data": str(tmp_path / "preferences.jsonl"), "steps": 3, "batch": 3, "lr": 1e-3,
        "lora": {"rank": 4, "alpha": 8}, **settings,
    }  # fmt: skip
    raw = {
        "model": str(tiny_model), "dtype": "float32", "output": str(tmp_path / "runs"), "name": name,
        "plugins": plugins, "stages": {"x": stage},
    }  # fmt: skip
    return check_recipe(raw, "r.yaml")


def made(root: Path) -> tuple[bool, str]:
    """Was the stage skipped, and which artifact is it?"""
    (stage,) = json.loads((root / "run.json").read_text())["stages"]
    return stage["skipped"], stage["folder"]


def test_an_own_loss_trains_as_the_built_in_one_with_the_same_formula(
    tmp_path: Path, tiny_model: Path, own: Path
) -> None:
    preferences(tmp_path)
    theirs = run_recipe(recipe(tmp_path, tiny_model, name="theirs", method="dpo", beta=0.3))
    mine = run_recipe(recipe(tmp_path, tiny_model, str(own), name="mine", method="mine", tau=0.3))
    assert same_weights(theirs / "x", mine / "x")
    manifest = json.loads((mine / "x" / "manifest.json").read_text())
    assert manifest["config"]["method"] == "mine"
    assert manifest["plugins"] == {"method": ["chosen", "rejected", "ref_chosen", "ref_rejected"]}
    assert manifest["inputs"]["method: mine"] == PREFERENCE_LOSSES["mine"].digest
    assert json.loads((mine / "run.json").read_text())["recipe"]["plugins"] == [str(own)]
    assert "plugins" not in json.loads((theirs / "x" / "manifest.json").read_text())


def test_what_an_own_loss_says_is_part_of_the_artifacts_identity(tmp_path: Path, tiny_model: Path, own: Path) -> None:
    """Another text of the loss that is used: another artifact. Of a loss that is not used: the same."""
    preferences(tmp_path)

    def run() -> tuple[bool, str]:
        mine = recipe(tmp_path, tiny_model, str(own), method="mine")
        check((), method="dpo")  # another recipe, checked in between: the run knows its own plugins all the same
        return made(run_recipe(mine))

    skipped, first = run()
    assert not skipped
    write(own, preference__another=MINE.replace("mine", "another"), preference__mine=MINE, reward__his=HIS + "\n\n")
    assert run() == (True, first)
    write(own, preference__mine=MINE.replace("return -logsigmoid(tau", "return -1.5 * logsigmoid(tau"))
    skipped, second = run()
    assert not skipped
    assert second != first
    write(own, preference__mine=MINE)
    assert run() == (True, first)


def test_an_own_reward_loss_trains(tmp_path: Path, tiny_model: Path, own: Path) -> None:
    preferences(tmp_path)
    settings = {"stage": "reward", "batch": 3, "loss": "his", "sharp": 0.5}
    raw = {
        "model": str(tiny_model), "dtype": "float32", "output": str(tmp_path / "runs"), "plugins": [str(own)],
        "stages": {"x": {"data": str(tmp_path / "preferences.jsonl"), "lora": {"rank": 4, "alpha": 8}, **settings}},
    }  # fmt: skip
    root = run_recipe(check_recipe(raw, "r.yaml"))
    log = [json.loads(line) for line in (root / "x" / "metrics.jsonl").read_text().splitlines()]
    assert log[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert "loss: his" in json.loads((root / "x" / "manifest.json").read_text())["inputs"]


# The example


def test_the_examples_numbers() -> None:
    """beta .1, log-ratios +-10 ln 3: sigmoids 3/4 and 1/4, so 1 - .75 + .25; gradients -+ .1 x .75 x .25."""
    read_plugins(str(EXAMPLES))
    ten = 10 * math.log(3)
    chosen = torch.tensor([-20.0 + ten, -3.0], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([-30.0 - ten, -8.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-20.0, -3.0], [-30.0, -8.0]], dtype=torch.float64)
    loss = PREFERENCE_LOSSES["apo_zero"].function(chosen, rejected, *reference)
    assert loss.tolist() == pytest.approx([0.5, 1.0])
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert up.tolist() == pytest.approx([-0.01875, -0.025])
    assert down.tolist() == pytest.approx([0.01875, 0.025])


RECIPE = """
model: {model}
dtype: float32
checkpoint_seconds: 0
output: {output}
plugins: {plugins}
stages:
  x:
    stage: preference
    data: {data}
    method: apo_zero
    beta: 0.2
    steps: 16
    batch: 3
    lr: 1e-3
    lora: {{rank: 4, alpha: 8}}
"""


@pytest.mark.slow
def test_the_example_runs_from_the_command_line_and_goes_on_when_killed(tmp_path: Path, tiny_model: Path) -> None:
    data = preferences(tmp_path).source
    for name in ("whole", "cut"):
        text = RECIPE.format(model=tiny_model, output=tmp_path / "runs", plugins=EXAMPLES, data=data)
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "trimtab", "run", f"{name}.yaml"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)

    def finish(process: subprocess.Popen[str]) -> None:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output

    finish(start("whole"))
    process, root = start("cut"), tmp_path / "runs" / "cut"
    while process.poll() is None and not list(root.glob(".work/*/checkpoints/step-0000000[5-9]")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (root / "x").exists()
    finish(start("cut"))
    whole = tmp_path / "runs" / "whole"
    assert same_weights(whole / "x", root / "x")
    same_curves(whole / "x", root / "x", tolerance=0.0)
    log = [json.loads(line) for line in (whole / "x" / "metrics.jsonl").read_text().splitlines()]
    assert len(log) == 16
    assert log[0]["train/loss"] == pytest.approx(1.0, abs=1e-5)
    assert log[-1]["train/loss"] < 0.99
    assert json.loads((root / "run.json").read_text())["recipe"]["plugins"] == [str(EXAMPLES)]


# The command line


def test_list_losses_shows_own_ones_with_their_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    result = CliRunner().invoke(app, ["list", "losses", "--plugins", str(own), "--plugins", str(EXAMPLES)])
    assert result.exit_code == 0, result.output
    preference, reward = result.stdout.split("reward losses (reward.loss)")
    for part, words in ((preference, ("mine", "DPO under another name.", "tau=0.1", "somebody 2026")),
                        (preference, ("apo_zero", "arXiv:2408.06266", "hand-worked numbers")),
                        (reward, ("his", "Bradley-Terry under another name.", "sharp=1.0"))):  # fmt: skip
        block = re.split(r"\n (?=\w)", part.split(f"\n {words[0]} ")[1])[0]  # up to the next name
        assert all(word in block for word in words[1:])
    assert str(own / "preference" / "mine.py") in preference
    assert str(own / "reward" / "his.py") in reward
    assert "apo_zero" not in CliRunner().invoke(app, ["list", "losses"]).stdout


def test_list_losses_holds_own_ones_against_the_laws(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    command = ["list", "losses", "--plugins", str(EXAMPLES), "--plugins", str(own), "--check"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.split("\nlaws")[1].splitlines()]
    assert ["apo_zero", "all", "19", "they", "hold"] in rows
    assert ["his", "all", "10", "they", "hold"] in rows
    write(own, preference__mine=MINE.replace("-logsigmoid", "logsigmoid"))
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "better sides cost less" in result.stdout
    assert result.stderr.strip() == "error: laws that do not hold: 3"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "losses", "--plugins", "nowhere"), "plugins: no folder 'nowhere'"),
        (("list", "models", "--plugins", "own"), "--plugins holds losses, rules and tasks: trimtab list"),
        (
            ("list", "losses", "--check"),
            "--check is for losses of your own: trimtab list losses --plugins FOLDER --check",
        ),
        (
            ("train", "preference", "data=x", "plugins=own", "method=mine", "tua=1"),
            "stage 'preference' has no option 'tua'; did you mean 'tau'?",
        ),
        (
            ("train", "preference", "data=x", "plugins=own", "method=mine"),
            "stages.preference.data: no file or folder 'x'",
        ),
        (
            ("train", "preference", "data=x", "plugins=[]", "method=mine"),
            "trimtab train preference.method: no preferen",
        ),
        (
            ("train", "preference", "data=x", "plugins=7"),
            "trimtab train preference: plugins=7: input should be a valid",
        ),
        (
            ("train", "preference", "data=x", "plugin=own"),
            "stage 'preference' has no option 'plugin'; did you mean 'plu",
        ),
    ],
)
def test_what_the_command_line_refuses(
    own: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(own.parent)
    monkeypatch.setenv("COLUMNS", "2000")
    assert refused(*arguments).startswith(said)
