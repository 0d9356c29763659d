"""Every real sample beside the checkout loads, or is refused with a sentence that says where and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from trimtab.errors import DataError
from trimtab.records.codec import decode_group, encode_group
from trimtab.records.read import Reading, read_groups
from trimtab.records.types import pairs

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = sorted(path.relative_to(SHARED).as_posix() for path in SHARED.rglob("*.jsonl.gz")) or ["none"]

# format, Groups, verdicts by kind; the counts of rows are those of each folder's README
EXPECTED: dict[str, tuple[str, int, dict[str, int]]] = {
    "code_tests/mbpp_train.jsonl.gz": ("code", 270, {}),
    "dpo_en_demo/train.jsonl.gz": ("preference", 240, {"Pair": 240}),
    "dpo_zh_pairs/train.jsonl.gz": ("preference", 657, {"Pair": 657}),
    "finegrained_qa/train.jsonl.gz": ("ranked", 371, {"Pair": 2226, "Edit": 367}),
    "gsm8k/train.jsonl.gz": ("question_answer", 7473, {}),
    "hh_rlhf_harmless/train.jsonl.gz": ("preference", 1812, {"Pair": 1812}),
    "implicit_feedback/train.jsonl.gz": ("reaction", 700, {"Thumb": 700}),
    "kto_en_demo/train.jsonl.gz": ("thumbs", 251, {"Thumb": 251}),
    "math_small/cmath_zh_train.jsonl.gz": ("question_answer", 272, {}),
    "math_small/svamp_train.jsonl.gz": ("question_answer", 707, {}),
    "mt_bench/gpt4_scores_train.jsonl.gz": ("rated", 392, {"Score": 1176}),
    "oasst_en100/kwise_train.jsonl.gz": ("ranked", 168, {"Ranking": 168}),
    "oasst_en100/sft_train.jsonl.gz": ("messages", 133, {}),
    "oasst_en100/thumbs_train.jsonl.gz": ("thumbs", 353, {"Thumb": 334}),
    "oasst_zh/kwise_train.jsonl.gz": ("ranked", 672, {"Ranking": 672}),
    "oasst_zh/sft_train.jsonl.gz": ("messages", 602, {}),
    "pandalm_human/train.jsonl.gz": ("votes", 711, {"Pair": 3511}),
    "pretrain_en/train.jsonl.gz": ("text", 626, {}),
    "pretrain_zh/train.jsonl.gz": ("text", 7481, {}),
    "sentiment/en_reviews_train.jsonl.gz": ("labelled_text", 960, {"Score": 960}),
    "sentiment/en_sentences_train.jsonl.gz": ("labelled_text", 9567, {"Score": 9567}),
    "sentiment/zh_reviews_train.jsonl.gz": ("labelled_text", 4078, {"Score": 4078}),
    "sft_en/train.jsonl.gz": ("messages", 4145, {}),
    "sft_zh/train.jsonl.gz": ("messages", 2651, {}),
    "squality_ratings/train.jsonl.gz": ("ranked", 80, {"Score": 720, "Ranking": 240}),
    "ultrafeedback_pairs/train.jsonl.gz": ("preference", 993, {"Pair": 993}),
    "usr_topical_chat/train.jsonl.gz": ("ranked", 49, {"Score": 294}),
    "webis_rag_utility/kwise_train.jsonl.gz": ("ranked", 54, {"Score": 324}),
    "webis_rag_utility/pairs_train.jsonl.gz": ("votes", 1121, {"Pair": 6849, "Score": 13698}),
    "xstest/prompts_all.jsonl.gz": ("prompts", 450, {}),
    "xstest/train.jsonl.gz": ("refusals", 1190, {"Score": 4755}),
}
REFUSED = {"pandalm_human/train.jsonl.gz": 6, "mt_bench/judge_prompts.jsonl.gz": 8}


def read(shared_data: Path, name: str, limit: int | None = None) -> Reading:
    return read_groups(shared_data / name, on_bad="skip", limit=limit)


@pytest.mark.parametrize("name", FILES)
def test_every_sample_loads_or_is_refused_in_a_sentence(name: str, shared_data: Path) -> None:
    reading = read(shared_data, name)
    format_name, count, verdicts = EXPECTED.get(name, ("", 0, {}))
    assert reading.format == format_name
    assert len(reading.groups) == count
    assert Counter(type(verdict).__name__ for group in reading.groups for verdict in group.verdicts) == verdicts
    assert len(reading.refused) == REFUSED.get(name, 0)
    assert len({group.id for group in reading.groups}) == count  # every Group can be told from every other
    for refused in reading.refused:
        assert str(refused).startswith(f"{shared_data / name}, line {refused.line}")
    for group in reading.groups[:50]:
        assert decode_group(encode_group(group)) == group


def test_answers_that_are_no_text_are_refused_by_name(shared_data: Path) -> None:
    path = shared_data / "pandalm_human" / "train.jsonl.gz"
    with pytest.raises(DataError) as caught:
        read_groups(path)
    assert str(caught.value) == f"{path}, line 76, field 'response_1': expected text, found true"


def test_judge_templates_are_no_groups(shared_data: Path) -> None:
    path = shared_data / "mt_bench" / "judge_prompts.jsonl.gz"
    with pytest.raises(DataError, match=r"line 1: no known format has the fields 'category', 'description', 'name'"):
        read_groups(path)


def test_people_and_judges_are_told_apart(shared_data: Path) -> None:
    raters = Counter(
        v.rater for group in read(shared_data, "pandalm_human/train.jsonl.gz").groups for v in group.verdicts
    )
    assert raters["human:1"] == raters["human:2"] == raters["human:3"] == raters["judge:pandalm-7b"] == 711
    assert raters["judge:gpt-3.5-turbo"] == 667  # 44 of its labels are null


def test_one_system_is_one_side_of_every_pair_it_is_in(shared_data: Path) -> None:
    by_answer: dict[tuple[str, str], set[str]] = {}
    for group in read(shared_data, "pandalm_human/train.jsonl.gz").groups:
        for answer in group.answers:
            by_answer.setdefault((group.prompt[0].content, str(answer.model)), set()).add(answer.text)
    alone = sum(len(texts) == 1 for texts in by_answer.values())
    assert alone / len(by_answer) > 0.95  # swapped names would put several texts under most


def test_pairwise_wins_agree_with_the_files_own_count(shared_data: Path) -> None:
    for group in read(shared_data, "finegrained_qa/train.jsonl.gz").groups:
        wins = [0.0] * len(group.answers)
        for pair in group.verdicts:
            if hasattr(pair, "better") and pair.tie is None:
                wins[pair.better] += 1
            elif hasattr(pair, "better"):
                wins[pair.better] += 0.5
                wins[pair.worse] += 0.5
        assert wins == [response["wins"] for response in group.meta["responses"]]


def test_rankings_agree_with_the_same_raters_scores(shared_data: Path) -> None:
    for group in read(shared_data, "squality_ratings/train.jsonl.gz").groups:
        scores = {(v.rater, v.answer): v.values["overall"] for v in group.verdicts if hasattr(v, "values")}
        for pair in pairs(group):
            assert scores[pair.rater, pair.better] >= scores[pair.rater, pair.worse]
