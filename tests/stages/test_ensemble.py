"""Ensembles: numbers by hand, members on one trunk, disagreement, folders that move, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_stages as tiny
from trimtab.config import DataRef, ModelRef, check_recipe
from trimtab.errors import ConfigError, ModelError
from trimtab.model.trunk import Trunk
from trimtab.pipeline import find_model, run_recipe
from trimtab.records.read import read_groups
from trimtab.records.types import Group
from trimtab.rewards.ensemble import Ensemble, combine
from trimtab.rewards.scorer import open_scorer
from trimtab.stages.ensemble import ensemble


def member(folder: Path, model: Path, name: str, seed: int, scale: float = 1.0) -> ModelRef:
    """A reward model with a head of its own."""
    weight = scale * torch.randn(64, generator=torch.Generator().manual_seed(seed))
    made = tiny.hand_made_reward(folder / name, model, weight, bias=3 * scale)
    assert made.artifact is not None
    manifest = {**made.artifact.manifest, "name": name, "key": f"{seed:064d}"}
    (folder / name / "manifest.json").write_text(json.dumps(manifest))
    return ModelRef(name, made.base, type(made.artifact)(folder / name, manifest))


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[ModelRef, ...]:
    """Three reward models of very different scales."""
    folder = tmp_path_factory.mktemp("trio")
    return tuple(member(folder, tiny_model, f"r{i}", i, scale) for i, scale in enumerate((0.1, 5.0, 100.0), 1))


def make(folder: Path, members: tuple[ModelRef, ...], **options: Any) -> tuple[ModelRef, dict[str, float]]:
    data = tiny.preferences(folder)
    result = ensemble(tiny.make_run(folder / "made", "ensemble"), members=members, data=data, **options)
    assert result.base is not None
    return tiny.finished(folder / "made", "ensemble", "ensemble", result.base), dict(result.metrics)


def groups_of(folder: Path) -> list[Group]:
    return list(read_groups(str(folder / "preferences.jsonl")).groups)


def standard(ref: ModelRef, groups: list[Group]) -> torch.Tensor:
    """A member's own scores, standardised over these very answers."""
    rows = open_scorer(ref, dtype="float32").score(groups)
    scores = torch.tensor([score for row in rows for score in row], dtype=torch.float64)
    return (scores - scores.mean()) / scores.std(correction=0)


def test_combinations_by_hand() -> None:
    """(1, 1.2, 2.6), penalty .5: mean 1.6, variance .5067, 1.3467, worst 1; weights (2, 0, -1): -.6."""
    scores = torch.tensor([[1.0], [1.2], [2.6]], dtype=torch.float64)
    assert float(combine(scores, "mean")) == pytest.approx(1.6)
    assert float(combine(scores, "worst")) == 1.0
    assert float(combine(scores, "uncertain", penalty=0.5)) == pytest.approx(1.3467, abs=5e-5)
    assert float(combine(scores, "weighted", weights=(2.0, 0.0, -1.0))) == pytest.approx(-0.6)


@pytest.mark.parametrize(
    ("options", "by_hand"),
    [
        ({}, lambda z: z.mean(0)),
        ({"how": "worst"}, lambda z: z.amin(0)),
        ({"how": "uncertain", "penalty": 2.0}, lambda z: z.mean(0) - 2 * ((z - z.mean(0)) ** 2).mean(0)),
        ({"how": "weighted", "weights": {"r3": 0.25, "r1": -1.0}}, lambda z: -z[0] + 0.25 * z[2]),
    ],
)
def test_members_are_standardised_first(
    tmp_path: Path, trio: tuple[ModelRef, ...], options: dict[str, Any], by_hand: Any
) -> None:
    made, _ = make(tmp_path, trio, **options)
    groups = groups_of(tmp_path)
    expected = by_hand(torch.stack([standard(ref, groups) for ref in trio]))
    opened = open_scorer(made, dtype="float32")
    assert isinstance(opened, Ensemble)
    assert len(opened.trunks) == 1  # all on one base
    flat = [score for row in opened.score(groups) for score in row]
    assert flat == pytest.approx(expected.tolist(), abs=2e-4)


def test_disagreement_and_what_is_told(tmp_path: Path, trio: tuple[ModelRef, ...]) -> None:
    made, metrics = make(tmp_path, trio, heldout=tiny.preferences(tmp_path))
    groups = groups_of(tmp_path)
    table = torch.stack([standard(ref, groups) for ref in trio])
    opened = Ensemble.open(made, dtype="float32")
    spread = table.std(0, correction=0)
    found = opened.disagreement(groups)
    assert [len(row) for row in found] == [len(group.answers) for group in groups]
    assert [x for row in found for x in row] == pytest.approx(spread.tolist(), abs=2e-4)
    assert metrics["members/disagreement"] == pytest.approx(float(spread.mean()), abs=2e-4)
    from scipy.stats import spearmanr

    pairs = [spearmanr(table[i], table[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert metrics["members/agreement"] == pytest.approx(sum(pairs) / 3, abs=1e-6)
    assert metrics["members/agreement_lowest"] == pytest.approx(min(pairs), abs=1e-6)
    assert {"heldout/accuracy", "heldout/longer_wins", *(f"members/accuracy/r{i}" for i in (1, 2, 3))} <= set(metrics)
    scores = open_scorer(trio[1], dtype="float32").score(groups)
    right, ranking = [row[0] > row[1] for row in scores[:5]], scores[5]  # 2 > 0 > 1
    hits = [*right, ranking[2] > ranking[0], ranking[2] > ranking[1], ranking[0] > ranking[1]]
    assert metrics["members/accuracy/r2"] == pytest.approx((sum(hits[:5]) + sum(hits[5:]) / 3) / 6)


def test_members_from_elsewhere_are_copied_in(tmp_path: Path, trio: tuple[ModelRef, ...], tiny_model: Path) -> None:
    made, _ = make(tmp_path, trio)
    assert made.artifact is not None
    groups = groups_of(tmp_path)
    before = open_scorer(made, dtype="float32").score(groups)
    moved = made.artifact.folder.rename(tmp_path / "moved")
    card = (moved / "ensemble.json").read_text()
    assert str(tmp_path) not in card
    assert "r1" in card
    assert trio[0].artifact is not None
    assert str(trio[0].artifact.folder.parent) not in card
    found = tiny.finished(moved, "ensemble", "ensemble", str(tiny_model))
    assert open_scorer(found, dtype="float32").score(groups) == before
    (moved / "members" / "1" / "manifest.json").unlink()
    with pytest.raises(ModelError, match="its member 'r2' is not at"):
        open_scorer(found, dtype="float32")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalty": 1.0}, r"^stages\.ensemble\.penalty would change nothing: how is 'mean'$"),
        ({"how": "weighted"}, r"^stages\.ensemble\.how: weighted needs weights$"),
        ({"weights": {"r1": 1.0}}, r"^stages\.ensemble\.weights would change nothing: how is 'mean'$"),
        ({"how": "weighted", "weights": {"r9": 1.0}}, r"weights: no member 'r9'; "),
        ({"how": "weighted", "weights": {"r1": 0.0}}, "every weight is 0"),
    ],
)
def test_settings_that_cannot_be_meant(
    tmp_path: Path, trio: tuple[ModelRef, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(tmp_path, trio, **options)


def test_members_that_cannot_be_meant(tmp_path: Path, trio: tuple[ModelRef, ...], tiny_model: Path) -> None:
    for members, words in (
        (trio[:1], "two members or more"),
        ((trio[0], trio[0]), "named twice"),
        ((trio[0], tiny.base(tiny_model)), "'base' is no stage's result"),
    ):
        with pytest.raises(ConfigError, match=words):
            make(tmp_path, members)


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run with every kind of scorer, an ensemble of all, an ensemble of that, and a policy of one step."""
    folder = tmp_path_factory.mktemp("shelf")
    pairs, texts = tiny.preferences(folder).source, tiny.demonstrations(folder).source
    rows = [
        tiny.row(f"l{i}", q, [a, "No" * (i + 1)], [
            {"kind": "score", "answer": j, "values": {"wit": float(i + j), "tact": float((i * 2 + j) % 3)}}
            for j in range(2)
        ])
        for i, (q, a) in enumerate(zip(tiny.QUESTIONS, tiny.ANSWERS, strict=True))
    ]  # fmt: skip
    labels = tiny.write_rows(folder / "labels.jsonl", rows).source
    lora = {"rank": 4, "alpha": 8}
    common: dict[str, Any] = {"data": pairs, "init": "sft", "batch": 3, "lora": lora, "lr": 1e-2}
    recipe = {
        "model": str(tiny_model), "dtype": "float32", "output": str(folder / "runs"),
        "stages": {
            "sft": {"data": texts, "epochs": 1, "batch": 3, "lora": lora},
            "plain": {**common, "stage": "reward"},
            "whole": {"stage": "reward", "data": pairs, "tune": "full", "batch": 3, "lr": 1e-4},
            "gated": {"stage": "gated_reward", "init": "plain", "data": labels, "preferences": pairs, "steps": 2},
            "dpo": {**common, "stage": "preference"},
            "simpo": {**common, "stage": "preference", "method": "simpo"},
            "all": {"stage": "ensemble", "members": ["plain", "whole", "gated", "dpo", "simpo", "sft"], "data": pairs},
            "nested": {"stage": "ensemble", "members": ["all", "plain"], "data": pairs, "heldout": pairs},
            "policy": {
                "init": "sft", "reward": "nested", "prompts": tiny.prompts(folder).source, "steps": 1, "batch": 2,
                "answers": 2, "critic": {"warmup": 0}, "sampling": {"max_tokens": 4}, "lora": lora,
            },
        },
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIMTAB_CACHE", str(folder / "cache"))
        patch.setenv("OMP_NUM_THREADS", "1")
        return run_recipe(check_recipe(recipe, "shelf.yaml", name="shelf"))


KINDS = ("plain", "whole", "gated", "dpo", "simpo", "sft", "all", "nested")


def some_groups(root: Path) -> list[Group]:
    return list(read_groups(str(root.parent.parent / "preferences.jsonl")).groups)


@pytest.mark.parametrize("name", KINDS)
def test_every_scorer_obeys_the_laws(root: Path, name: str) -> None:
    """Permuted answers have permuted scores; no answers, no scores; how Groups are batched does not matter."""
    groups = some_groups(root)
    scorer = open_scorer(find_model(str(root / name), name), dtype="float32")
    found = scorer.score(groups)
    assert [len(row) for row in found] == [2] * 5 + [3]
    assert len({score for row in found for score in row}) > 5
    turned = [group.with_answers(group.answers[::-1]) for group in groups]
    for row, other in zip(found, scorer.score(turned), strict=True):
        assert other[::-1] == pytest.approx(row, abs=1e-4)
    for group, row in zip(groups, found, strict=True):
        assert scorer.score([group])[0] == pytest.approx(row, abs=1e-4)
        alone = [scorer.score([group.with_answers((answer,))])[0][0] for answer in group.answers]
        assert alone == pytest.approx(row, abs=1e-4)
    bare = Group(id="bare")
    mixed = scorer.score([groups[0].with_answers(()), groups[0], bare, groups[1]])
    assert [len(row) for row in mixed] == [0, 2, 0, 2]
    assert mixed[1] == pytest.approx(found[0], abs=1e-4)
    assert scorer.score([bare]) == [[]]
    assert scorer.score([]) == []


@pytest.mark.parametrize("name", KINDS)
def test_a_scorer_may_share_a_trunk(root: Path, name: str, tiny_model: Path) -> None:
    model = find_model(str(root / name), name)
    trunk = Trunk.load(model.base, dtype="float32")
    groups = some_groups(root)
    scorer = open_scorer(model, trunk=trunk, dtype="float32")
    assert trunk in scorer.trunks
    assert len(scorer.trunks) == (2 if name in ("all", "nested") else 1)  # the whole model is a base of its own
    for row, other in zip(scorer.score(groups), open_scorer(model, dtype="float32").score(groups), strict=True):
        assert row == pytest.approx(other, abs=1e-6)


def test_a_run_that_has_moved_scores_the_same(root: Path, tmp_path: Path) -> None:
    groups = some_groups(root)
    before = {name: open_scorer(find_model(str(root / name), name), dtype="float32").score(groups) for name in KINDS}
    for name in ("all", "nested", "gated"):
        for file in ("ensemble.json", "gated.json"):
            path = root / name / file
            assert not path.exists() or str(root) not in path.read_text()
    moved = root.rename(tmp_path / "moved")
    try:
        for name in KINDS:
            assert open_scorer(find_model(str(moved / name), name), dtype="float32").score(groups) == before[name]
    finally:
        moved.rename(root)


@pytest.mark.parametrize("name", KINDS)
def test_a_policy_learns_from_any_scorer(root: Path, name: str, tmp_path: Path, tiny_model: Path) -> None:
    """The scores of a rollout are those of its text, whether the scorer read tokens or text."""
    source = tiny.prompts(tmp_path)
    reward = find_model(str(root / name), name)
    task = tiny.policy_task(tmp_path, init=tiny.base(tiny_model), reward=reward, source=source)
    sample, rollout = tiny.roll(task, 0, [0, 3])
    said = open_scorer(reward, dtype="float32").score(task.roller.as_groups(sample))
    text = [task.roller.roles.actor.trunk.chat.group(g).answers for g in task.roller.as_groups(sample)]
    same = [
        tuple(a.tokens) == t
        for own, texts in zip(sample.answers, text, strict=True)
        for a, t in zip(own, texts, strict=True)
    ]
    flat = [score for row in said for score in row]
    for mine, theirs, clean in zip(rollout.scores.tolist(), flat, same, strict=True):
        assert not clean or mine == pytest.approx(theirs, abs=1e-3)
    log = tiny.metrics(root / "policy")
    assert len(log) == 1
    assert log[0]["rollout/kl"] == pytest.approx(0, abs=1e-6)


def test_an_ensemble_gives_a_critic_nothing_to_start_from(root: Path, tmp_path: Path, tiny_model: Path) -> None:
    from trimtab.stages._online_settings import Critic
    from trimtab.stages.policy import policy

    with pytest.raises(ConfigError, match=r"critic\.start: 'all' \(ensemble\) has no adapter of its own to start from"):
        policy(
            tiny.make_run(tmp_path, "policy"), init=tiny.base(tiny_model), reward=find_model(str(root / "all"), "all"),
            prompts=DataRef("nothing.jsonl"), critic=Critic(start="reward"),
        )  # fmt: skip
