"""Recipes: what is understood, and the sentence for everything that is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.config import (
    BASE,
    DataRef,
    ModelRef,
    as_word,
    check_options,
    check_recipe,
    check_settings,
    find_recipe,
    load_recipe,
    read_setting,
    read_yaml,
    references,
    schema,
)
from trimtab.errors import ConfigError
from trimtab.model.sampler import Sampling
from trimtab.model.trunk import Lora
from trimtab.registry import PREFERENCE_LOSSES, STAGES, Entry
from trimtab.stages.policy import KL

SFT = {"data": "quickstart/demonstrations"}
POLICY = {"reward": "r", "prompts": "quickstart/prompts"}


def said(error: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def check(stages: Any, *overrides: str, **top: Any) -> Any:
    return check_recipe({"stages": stages, **top}, "r.yaml", overrides)


# --- what is understood -----------------------------------------------------------------------------------------------


def test_a_recipe_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        """
model: tiny
seed: 7
stages:
  warm: {stage: sft, data: d.jsonl, lr: 1e-5, lora: {rank: 4}}
  sft: {data: d.jsonl, init: warm}
  policy:
    init: sft
    reward: warm
    prompts: p.jsonl
    kl: {beta: 1}
"""
    )
    recipe = load_recipe(path, ["policy.kl.target=6", "stages.sft.epochs=0.5", "seed=8", "sft.lora.rank=2"])
    assert (recipe.name, recipe.model, recipe.seed, recipe.dtype) == ("mine", "tiny", 8, "auto")
    assert list(recipe.stages) == ["warm", "sft", "policy"]
    warm, sft, policy = recipe.stages.values()
    assert (warm.stage, sft.stage) == ("sft", "sft")
    assert warm.settings["lr"] == 1e-5
    assert warm.settings["lora"] == Lora(rank=4)
    assert warm.settings["init"] == "base"
    assert sft.settings["epochs"] == 0.5
    assert sft.settings["lora"] == Lora(rank=2)
    assert policy.settings["kl"] == KL(beta=1.0, target=6.0)
    assert policy.settings["method"] == "ppo"


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "1.e-5", "+1e-5", ".1e-4", "0.00001", "1_0e-6"])
def test_a_learning_rate_is_a_number(text: str) -> None:
    assert read_yaml(text, "x") == pytest.approx(1e-5)
    assert isinstance(read_setting(f"lr={text}")[1], float)


@pytest.mark.parametrize("text", ["e-5", "1e", "1e-", "sft-1e", "1-e5", "v1e5", "1e5x", "."])
def test_a_name_is_no_number(text: str) -> None:
    assert read_yaml(text, "x") == text


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_number_python_writes_is_a_number(value: float) -> None:
    assert read_yaml(repr(value), "x") == value


def test_settings_are_yaml() -> None:
    assert read_setting("models=[base, sft]") == ("models", ["base", "sft"])
    assert read_setting("a.b=x=y") == ("a.b", "x=y")
    assert read_setting("kl.target=null") == ("kl.target", None)


def test_the_callers_recipe_is_not_changed_by_overrides() -> None:
    raw = {"stages": {"sft": {**SFT, "lora": {"rank": 4}}}}
    recipe = check_recipe(raw, "r", ["sft.lora.rank=2", "sft.epochs=1", "seed=3"])
    assert recipe.stages["sft"].settings["lora"].rank == 2
    assert raw == {"stages": {"sft": {**SFT, "lora": {"rank": 4}}}}


def test_a_function_is_its_own_schema() -> None:
    def stage(
        run: object, *, data: DataRef, many: tuple[ModelRef, ...] = (BASE,), init: ModelRef = BASE,
        maybe: DataRef | None = None, lr: float = 1.0,
    ) -> None:  # fmt: skip
        """Nothing."""

    entry = Entry("stage", stage)
    assert check_settings(entry, {"data": "d"}, "w") == {
        "data": "d", "many": ("base",), "init": "base", "maybe": None, "lr": 1.0,
    }  # fmt: skip
    assert check_settings(entry, {"data": "d", "many": ["a", "b"], "lr": 2}, "w")["many"] == ("a", "b")


def test_defaults_that_are_references_become_words() -> None:
    assert as_word((BASE, ModelRef("x"))) == ("base", "x")
    assert as_word(DataRef("d")) == "d"
    recipe = check({"evaluate": {"prompts": "p"}})
    assert recipe.stages["evaluate"].settings["models"] == ("base",)


def test_references_are_found_wherever_they_stand() -> None:
    recipe = check({"sft": SFT, "evaluate": {"prompts": "p", "models": ["base", "sft"], "judge": "j"}})
    assert set(references(recipe.stages["evaluate"])) == {
        ("prompts", DataRef, "p"), ("models", ModelRef, "base"), ("models", ModelRef, "sft"), ("judge", DataRef, "j"),
        ("encoder_model", ModelRef, "minilm-l6-v2"),
    }  # fmt: skip


# --- a method's options beside the stage's ----------------------------------------------------------------------------


def test_a_methods_options_stand_beside_the_stages() -> None:
    settings = check({"preference": {"data": "d", "beta": 0.2}}).stages["preference"].settings
    assert (settings["method"], settings["beta"], settings["batch"]) == ("dpo", 0.2, 16)
    other = check({"mine": {"stage": "preference", "data": "d", "method": "simpo"}}, "mine.gamma=2")
    assert (other.stages["mine"].settings["beta"], other.stages["mine"].settings["gamma"]) == (2.0, 2.0)
    assert "beta" not in check({"preference": {"data": "d", "method": "orpo"}}).stages["preference"].settings


def test_a_schema_is_the_stages_options_then_the_methods() -> None:
    stage = STAGES["preference"]
    assert list(schema(stage, {})) == [*stage.options, "beta"]
    hint, parameter = schema(stage, {"method": "kto"})["desirable_weight"]
    assert (hint, parameter.default) == (float, 1.0)
    assert list(schema(STAGES["sft"], {})) == list(STAGES["sft"].options)


@pytest.mark.parametrize("name", PREFERENCE_LOSSES)
def test_no_option_of_a_method_hides_one_of_the_stage(name: str) -> None:
    assert not set(PREFERENCE_LOSSES[name].options) & set(STAGES["preference"].options)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "dpoo"}, "r.yaml: stages.preference.method: no preference loss 'dpoo'; did you mean 'dpo'?"),
        ({"method": 3}, "r.yaml: stages.preference.method: no preference loss 3; known: cdpo, "),
        ({"method": None}, "r.yaml: stages.preference.method: no preference loss None; "),
        ({"bta": 1}, "r.yaml: stages.preference: no option 'bta'; did you mean 'beta'?"),
        ({"gamma": 1}, "r.yaml: stages.preference: no option 'gamma'; "),  # simpo's, and this is dpo
        ({"method": "orpo", "beta": 1}, "r.yaml: stages.preference: no option 'beta'; "),
        ({"beta": "much"}, "r.yaml: stages.preference.beta='much': input should be a valid number"),
        ({"beta": True}, "r.yaml: stages.preference.beta=true: input should be a number"),
    ],
)
def test_methods_and_options_that_do_not_fit(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check({"preference": {"data": "d", **settings}})
    assert said(error).startswith(sentence)


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ({"stf": SFT}, "r.yaml: stages.stf: no stage 'stf'; did you mean 'sft'?"),
        ({"x": {"stage": "stf"}}, "r.yaml: stages.x: no stage 'stf'; did you mean 'sft'?"),
        ({"sft": {**SFT, "epoch": 1}}, "r.yaml: stages.sft: no option 'epoch'; did you mean 'epochs'?"),
        ({"sft": {**SFT, True: 1}}, "r.yaml: stages.sft: no option True; known: bad, batch"),
        ({"sft": {**SFT, "lora": {"rnk": 1}}}, "r.yaml: stages.sft.lora: no option 'rnk'; did you mean 'rank'?"),
        ({"policy": {**POLICY, "kl": {"bta": 1}}}, "r.yaml: stages.policy.kl: no option 'bta'; did you mean 'beta'?"),
        ({"sft": {}}, "r.yaml: stages.sft: option 'data' is missing"),
        ({"sft": None}, "r.yaml: stages.sft: option 'data' is missing"),
        ({"sft": 3}, "r.yaml: stages.sft=3: a stage is a mapping"),
        ({"sft": ["data"]}, "r.yaml: stages.sft=['data']: a stage is a mapping"),
        ({"sft": {**SFT, "epochs": "many"}}, "r.yaml: stages.sft.epochs='many': input should be a valid number"),
        ({"sft": {**SFT, "epochs": True}}, "r.yaml: stages.sft.epochs=true: input should be a number"),
        ({"sft": {**SFT, "lora": {"rank": True}}}, "r.yaml: stages.sft.lora.rank=true: input should be a number"),
        ({"sft": {**SFT, "batch": 1.5}}, "r.yaml: stages.sft.batch=1.5: input should be a valid integer"),
        ({"sft": {"data": 3}}, "r.yaml: stages.sft.data=3: input should be a valid string"),
        ({"sft": {**SFT, "lora": 3}}, "r.yaml: stages.sft.lora=3: here stand options of their own: rank, alpha"),
        ({"sft": {**SFT, "lora": {"rank": [4]}}}, "r.yaml: stages.sft.lora.rank=[4]: input should be a valid integer"),
        ({"policy": {**POLICY, "roles": "shard"}}, "r.yaml: stages.policy.roles='shard': input should be 'shared', "),
        (
            {"policy": {**POLICY, "sampling": {"top_p": 0}}},
            "r.yaml: stages.policy.sampling.top_p=0: input should be greater than 0",
        ),
        ({"evaluate": {"prompts": "p", "models": ["base", 3]}}, "r.yaml: stages.evaluate.models.1=3: input should be"),
        ({"base": {"stage": "sft", **SFT}}, "r.yaml: stages.base: a stage's name"),
        ({"a/b": {"stage": "sft", **SFT}}, "r.yaml: stages.a/b: a stage's name"),
        ({}, "r.yaml: 'stages' is missing or empty"),
        ([1], "r.yaml: 'stages' is missing or empty"),
        (
            {"policy": {**POLICY, "reward": "reward"}, "reward": {"data": "d"}},
            "r.yaml: stages.policy.reward: stage 'reward' comes later in the recipe; move it up",
        ),
        ({"sft": {**SFT, "init": "sft"}}, "r.yaml: stages.sft.init: stage 'sft' is this stage itself"),
        (
            {"evaluate": {"prompts": "p", "models": ["base", "sft"]}, "sft": SFT},
            "r.yaml: stages.evaluate.models: stage 'sft' comes later",
        ),
    ],
)
def test_stages_that_do_not_fit(stages: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(stages)
    assert said(error).startswith(sentence)


@pytest.mark.parametrize(
    ("top", "sentence"),
    [
        ({"modle": "tiny"}, "r.yaml: no key 'modle'; did you mean 'model'?"),
        ({"seed": "x"}, "r.yaml: seed='x': input should be a valid integer"),
        ({"seed": True}, "r.yaml: seed=true: input should be a number"),
        ({"dtype": "bf16"}, "r.yaml: dtype='bf16': input should be 'auto', 'bfloat16', "),
        ({"output": 3}, "r.yaml: output=3: input should be a valid string"),
        ({"bakeoff": {"start": "sft"}}, "r.yaml: this recipe holds a bake-off: run it with 'trimtab bakeoff'"),
        ({"bakeoff": None}, "r.yaml: this recipe holds a bake-off"),
    ],
)
def test_top_keys_that_do_not_fit(top: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check({"sft": SFT}, **top)
    assert said(error).startswith(sentence)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("sft.epochs", "'sft.epochs' is not of the form key=value"),
        ("=3", "'=3' is not of the form key=value"),
        ("sed=3", "override 'sed=3': no key 'sed'; did you mean 'seed'?"),
        ("stf.epochs=1", "override 'stf.epochs=1': no stage 'stf' in this recipe; did you mean 'sft'?"),
        ("sft=1", "override 'sft=1': 'sft' is a stage; set its options: sft.OPTION=..."),
        ("stages.sft=1", "override 'stages.sft=1': 'sft' is a stage"),
        ("stages=1", "override 'stages=1': no key 'stages'"),
        ("stages.=1", "override 'stages.=1': no key"),
        ("sft.epocs=1", "r.yaml: stages.sft: no option 'epocs'; did you mean 'epochs'?"),
        ("sft.lora.rnk=1", "r.yaml: stages.sft.lora: no option 'rnk'; did you mean 'rank'?"),
        ("sft.data.x=1", "override 'sft.data.x=1': 'data' is a value, it has no keys below it"),
        ("sft.epochs=many", "r.yaml: stages.sft.epochs='many'"),
        ("sft.epochs=[1", "'sft.epochs=[1', line 1: not valid YAML"),
        ("sft.epochs=", "r.yaml: stages.sft.epochs=None: input should be a valid number"),
    ],
)
def test_overrides_that_do_not_fit(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        check({"sft": SFT}, override)
    assert said(error).startswith(sentence)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages:\n  sft: {data: [}\n", "line 2: not valid YAML: expected the node content"),
        ("stages:\n\tsft: 1\n", "line 2: not valid YAML: found character '\\t'"),
        ("stages:\n  sft: {data: a}\n  sft: {data: b}\n", "line 3: not valid YAML: the key 'sft' stands twice"),
        ("- a\n", ": a recipe is a mapping"),
        ("", ": a recipe is a mapping"),
    ],
)
def test_files_that_are_no_recipe(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_recipe(path)
    assert said(error).startswith(str(path))
    assert sentence in said(error)


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_recipe(path)


def test_recipes_are_found_by_name_or_nearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("quickstart").name == "quickstart.yaml"
    with pytest.raises(ConfigError, match=r"no recipe 'quickstrt': .*; did you mean 'quickstart'"):
        find_recipe("quickstrt")
    with pytest.raises(ConfigError, match=r"no recipe 'my/quickstart\.yaml'"):
        find_recipe("my/quickstart.yaml")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text("stages: {}")
    assert find_recipe("own") == Path("recipes/own.yaml")


def test_options_of_a_command() -> None:
    assert check_options(Sampling, {"top_k": 5}, "sampling") == {"top_k": 5}
    for given_, sentence in (
        ({"topk": 5}, "sampling: no option 'topk'; did you mean 'top_k'?"),
        ({"temperature": -1}, "sampling: temperature=-1: input should be greater than or equal to 0"),
        ({"max_tokens": "few"}, "sampling: max_tokens='few': input should be a valid integer"),
    ):
        with pytest.raises(ConfigError) as error:
            check_options(Sampling, given_, "sampling")
        assert said(error).startswith(sentence)


def test_long_values_are_cut_in_the_sentence() -> None:
    with pytest.raises(ConfigError) as error:
        check({"sft": {**SFT, "epochs": "x" * 5000}})
    assert len(said(error)) < 250
