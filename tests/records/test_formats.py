"""One hand-written row of every format, and what becomes of it."""

# ruff: noqa: E501  (a refusal is one line)
from __future__ import annotations

import pytest

from trimtab.errors import DataError
from trimtab.records.fields import FieldError, Fields
from trimtab.records.formats import FORMATS, detect, named
from trimtab.records.types import Answer, Edit, Group, Message, Pair, Ranking, Score, Thumb


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


def read(row: dict, expected_format: str) -> Group:
    found = detect(row)
    assert found.name == expected_format
    return found.read(Fields(row, default_id="file:1"))


HI, HELLO = user("Hi"), assistant("Hello")
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


# --- demonstrations ---------------------------------------------------------------------------------------------------


def test_alpaca() -> None:
    row = {"instruction": "Add", "input": "1, 2", "output": "3", "topic": "sums"}
    assert read(row, "alpaca") == Group(
        id="file:1", prompt=(user("Add\n\n1, 2"),), answers=(Answer(text="3"),), meta={"topic": "sums"}
    )


def test_alpaca_with_an_empty_input_a_system_text_and_a_history() -> None:
    row = {"instruction": "And now?", "input": "", "output": "4", "system": "Be brief.", "history": [["1+2?", "3"]]}
    prompt = (system("Be brief."), user("1+2?"), assistant("3"), user("And now?"))
    assert read(row, "alpaca") == Group(id="file:1", prompt=prompt, answers=(Answer(text="4"),))
    assert read({"instruction": "", "input": "1, 2", "output": "3"}, "alpaca").prompt == (user("1, 2"),)
    assert read({"instruction": "", "output": "3"}, "alpaca").prompt == ()


def test_messages_of_one_exchange() -> None:
    row = {"id": 7, "messages": MESSAGES, "source": "s"}
    assert read(row, "messages") == Group(id="7", prompt=(HI,), answers=(Answer(text="Hello"),), meta={"source": "s"})


def test_messages_of_several_exchanges_keep_every_turn() -> None:
    turns = (system("S"), HI, HELLO, user("And?"), assistant("Well."))
    row = {"messages": [{"role": turn.role, "content": turn.content} for turn in turns]}
    assert read(row, "messages") == Group(
        id="file:1", prompt=turns[:2], answers=(Answer(text="Well.", messages=turns[2:]),)
    )


def test_sharegpt() -> None:
    row = {
        "system": "Be kind.",
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": "weather()"},
            {"from": "observation", "value": "sun"},
            {"from": "gpt", "value": "Sunny."},
        ],
    }
    rest = (assistant("weather()"), Message(role="tool", content="sun"), assistant("Sunny."))
    assert read(row, "messages") == Group(
        id="file:1", prompt=(system("Be kind."), user("Weather?")), answers=(Answer(text="Sunny.", messages=rest),)
    )


def test_messages_without_an_assistant_are_a_prompt() -> None:
    assert read({"messages": MESSAGES[:1]}, "messages") == Group(id="file:1", prompt=(HI,))


def test_text_parts_are_joined_and_what_a_message_cannot_hold_goes_to_meta() -> None:
    parts = [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]
    row = {"messages": [MESSAGES[0], {"role": "assistant", "content": parts, "weight": 0, "name": None}]}
    group = read(row, "messages")
    assert group.answers == (Answer(text="Hello"),)
    assert group.meta == {"message_fields": {"messages": {"1": {"weight": 0}}}}


def test_prompt_and_completion() -> None:
    group = Group(id="file:1", prompt=(user("The sky is"),), answers=(Answer(text=" blue."),))
    assert read({"prompt": "The sky is", "completion": " blue."}, "prompt_completion") == group
    conversational = {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}
    assert read(conversational, "prompt_completion") == Group(
        id="file:1", prompt=(HI,), answers=(Answer(text="Hello"),)
    )
    assert read({"prompt": "", "completion": "x"}, "prompt_completion").prompt == ()


def test_question_and_answer() -> None:
    row = {"question": "6 x 7?", "answer": "6 x 7 = <<6*7=42>>42\n#### 42"}
    assert read(row, "question_answer") == Group(
        id="file:1", prompt=(user("6 x 7?"),), answers=(Answer(text=row["answer"]),), meta={"final": "42"}
    )
    assert read({"question": "6 x 7?", "answer": 42}, "question_answer").answers == (Answer(text="42"),)


def test_question_with_a_final_answer_only() -> None:
    row = {"id": "svamp-1", "question": "6 x 7?", "final": 42, "type": "product"}
    assert read(row, "question_answer") == Group(
        id="svamp-1", prompt=(user("6 x 7?"),), meta={"type": "product", "final": "42"}
    )


def test_code_task() -> None:
    row = {"task_id": 5, "prompt": "Add.", "code": "def f(): ...", "test_imports": [], "test_list": ["assert f()"]}
    assert read(row, "code") == Group(
        id="5",
        prompt=(user("Add."),),
        answers=(Answer(text="def f(): ..."),),
        meta={"test_imports": [], "test_list": ["assert f()"]},
    )
    human_eval = {"task_id": "HumanEval/0", "prompt": "def f():", "canonical_solution": " ...", "test": "def check()"}
    assert read(human_eval, "code").meta == {"test": "def check()"}


def test_text_and_prompts() -> None:
    assert read({"text": "Once.", "source": "s"}, "text") == Group(
        id="file:1", answers=(Answer(text="Once."),), meta={"source": "s"}
    )
    prompt = {"id": "1", "prompt": "Hi", "label": "safe", "note": None}
    assert read(prompt, "prompts") == Group(id="1", prompt=(HI,), meta={"label": "safe"})
    assert read({"prompt": "\n\nHuman: Hi\n\nAssistant:"}, "prompts").prompt == (HI,)


# --- comparisons ------------------------------------------------------------------------------------------------------


def test_preference_with_text() -> None:
    row = {
        "prompt": "Hi", "chosen": "Hello", "rejected": "What", "strength": 3, "probability": 0.9, "reason": "kinder",
        "annotator": 12, "chosen_model": "a", "rejected_model": "b", "score_chosen": 8.5, "score_rejected": 2, "x": 1,
    }  # fmt: skip
    assert read(row, "preference") == Group(
        id="file:1",
        prompt=(HI,),
        answers=(Answer(text="Hello", model="a"), Answer(text="What", model="b")),
        verdicts=(
            Pair(better=0, worse=1, strength=3.0, probability=0.9, reason="kinder", rater="human:12"),
            Score(answer=0, values={"score": 8.5}),
            Score(answer=1, values={"score": 2.0}),
        ),
        meta={"x": 1},
    )


PREFERENCE = Group(
    id="file:1", prompt=(HI,), answers=(Answer(text="Hello"), Answer(text="What")), verdicts=(Pair(better=0, worse=1),)
)
WHAT = {"role": "assistant", "content": "What"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": MESSAGES[:1], "chosen": MESSAGES[1:], "rejected": [WHAT]},
        {"chosen": MESSAGES, "rejected": [MESSAGES[0], WHAT]},
        {"prompt": "Hi", "chosen": MESSAGES, "rejected": [MESSAGES[0], WHAT]},
        {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "What"},
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello"},
            "rejected": {"from": "gpt", "value": "What"},
        },
    ],
    ids=["conversational", "implicit prompt", "prompt repeated", "alpaca", "sharegpt"],
)
def test_preference_in_all_its_shapes(row: dict) -> None:
    assert read(row, "preference") == PREFERENCE


def test_a_longer_repeated_prompt_counts() -> None:
    with_system = [{"role": "system", "content": "S"}, *MESSAGES]
    row = {"prompt": "Hi", "chosen": with_system, "rejected": [*with_system[:2], WHAT]}
    assert read(row, "preference").prompt == (system("S"), HI)


def test_implicit_prompt_ends_where_the_two_part() -> None:
    chosen = [*MESSAGES, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    rejected = [*MESSAGES, {"role": "user", "content": "A"}, {"role": "assistant", "content": "C"}]
    group = read({"chosen": chosen, "rejected": rejected}, "preference")
    assert group.prompt == (HI, HELLO, user("A"))
    assert [answer.text for answer in group.answers] == ["B", "C"]
    same = read({"chosen": chosen, "rejected": chosen}, "preference")
    assert same.prompt == group.prompt
    assert same.answers[0] == same.answers[1] == Answer(text="B")


def test_conversations_that_part_at_the_users_turn_answer_from_the_turn_before() -> None:
    chosen = [*MESSAGES, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    rejected = [*MESSAGES, {"role": "user", "content": "X"}, {"role": "assistant", "content": "Y"}]
    group = read({"chosen": chosen, "rejected": rejected}, "preference")
    assert group.prompt == (HI,)
    assert group.answers[0] == Answer(text="B", messages=(HELLO, user("A"), assistant("B")))


@pytest.mark.parametrize(
    ("value", "tie"), [(True, "tie"), (False, None), (None, None), ("both_bad", "both_bad"), ("both_good", "both_good")]
)
def test_preference_that_is_a_tie(value: object, tie: str | None) -> None:
    group = read({"prompt": "Hi", "chosen": "a", "rejected": "b", "tie": value}, "preference")
    assert group.verdicts == (Pair(better=0, worse=1, tie=tie),)


def test_transcripts() -> None:
    shared = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: And?\n\nAssistant:"
    group = read({"chosen": f"{shared} Fine.", "rejected": f"{shared} Bah. "}, "transcripts")
    assert group == Group(
        id="file:1",
        prompt=(HI, HELLO, user("And?")),
        answers=(Answer(text="Fine."), Answer(text="Bah.")),
        verdicts=(Pair(better=0, worse=1),),
    )


def test_votes_of_people_and_judges() -> None:
    row = {
        "id": "p", "prompt": MESSAGES[:1], "response_1": "a", "response_2": "b", "human": [0, 1, 2], "human_majority": None,
        "judge": {"gpt": 1, "panda": None}, "judge_reason": {"gpt": "clear", "panda": ""}, "models": "x-7b_y-7b",
    }  # fmt: skip
    assert read(row, "votes") == Group(
        id="p",
        prompt=(HI,),
        answers=(Answer(text="a", model="x-7b"), Answer(text="b", model="y-7b")),
        verdicts=(
            Pair(better=0, worse=1, tie="tie", rater="human:1"),
            Pair(better=0, worse=1, rater="human:2"),
            Pair(better=1, worse=0, rater="human:3"),
            Pair(better=0, worse=1, rater="judge:gpt", reason="clear"),
        ),
    )


def test_a_reason_without_a_label_stays_in_meta() -> None:
    row = {
        "prompt": "Hi",
        "response_1": "a",
        "response_2": "b",
        "judge": {"g": None},
        "judge_reason": {"g": "both fine"},
    }
    group = read(row, "votes")
    assert group.verdicts == ()
    assert group.meta == {"judge_reason": {"g": "both fine"}}


def test_votes_by_attribute() -> None:
    row = {
        "prompt": "Hi", "response_a": "a", "response_b": "b", "author": ["human", "gpt-4o"], "annotators": [118, 119],
        "human": {"depth": {"votes": ["a", "n"], "gold": "n"}, "quality_overall": {"votes": ["b", "a"], "gold": "a"}},
        "judge": {"combined": {"depth": "b", "quality_overall": None}},
    }  # fmt: skip
    group = read(row, "votes")
    assert [answer.model for answer in group.answers] == ["human", "gpt-4o"]
    assert group.verdicts == (
        Pair(better=1, worse=0, rater="human:118"),
        Score(answer=0, values={"depth": 1.0, "quality_overall": 0.0}, rater="human:118"),
        Score(answer=1, values={"depth": 0.0, "quality_overall": 1.0}, rater="human:118"),
        Pair(better=0, worse=1, rater="human:119"),
        Score(answer=0, values={"depth": 0.5, "quality_overall": 1.0}, rater="human:119"),
        Score(answer=1, values={"depth": 0.5, "quality_overall": 0.0}, rater="human:119"),
        Pair(better=1, worse=0, rater="judge:combined"),
        Score(answer=0, values={"depth": 0.0}, rater="judge:combined"),
        Score(answer=1, values={"depth": 1.0}, rater="judge:combined"),
    )
    assert group.meta == {"human": row["human"]}  # the gold labels


def test_votes_by_name_and_without_any() -> None:
    row = {"prompt": "Hi", "response_1": "a", "response_2": "b", "human": {"ann": 2, "bob": None}, "models": "x_y_z"}
    group = read(row, "votes")
    assert group.verdicts == (Pair(better=1, worse=0, rater="human:ann"),)
    assert group.meta == {"models": "x_y_z"}
    assert read({"prompt": "Hi", "response_1": "a", "response_2": "b"}, "votes").verdicts == ()


@pytest.mark.parametrize(
    ("winner", "judge", "verdict"),
    [
        ("model_b", "arena_user_9", Pair(better=1, worse=0, rater="human:arena_user_9")),
        ("tie (bothbad)", "gpt4_pair", Pair(better=0, worse=1, tie="both_bad", rater="judge:gpt4_pair")),
        ("tie", None, Pair(better=0, worse=1, tie="tie")),
    ],
)
def test_arena_battles(winner: str, judge: str | None, verdict: Pair) -> None:
    sides = {"conversation_a": MESSAGES, "conversation_b": [MESSAGES[0], WHAT]}
    group = read({**sides, "model_a": "m", "model_b": "n", "winner": winner, "judge": judge, "turn": 1}, "votes")
    assert group == Group(
        id="file:1",
        prompt=(HI,),
        answers=(Answer(text="Hello", model="m"), Answer(text="What", model="n")),
        verdicts=(verdict,),
        meta={"turn": 1},
    )


# --- ratings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "up"), [(True, True), (False, False), (1, True), (0, False)])
def test_thumbs(label: object, up: bool) -> None:
    expected = Group(id="file:1", prompt=(HI,), answers=(Answer(text="Hello"),), verdicts=(Thumb(answer=0, up=up),))
    assert read({"prompt": "Hi", "completion": "Hello", "label": label}, "thumbs") == expected
    assert read({"prompt": MESSAGES[:1], "response": MESSAGES[1:], "label": label}, "thumbs") == expected
    assert read({"messages": MESSAGES, "kto_tag": label}, "thumbs") == expected


def test_a_null_label_is_no_verdict_and_counts_stay_in_meta() -> None:
    row = {"prompt": "Hi", "response": "Hello", "up": 1, "down": 1, "label": None}
    group = read(row, "thumbs")
    assert group.verdicts == ()
    assert group.meta == {"up": 1, "down": 1}


def test_reactions() -> None:
    row = {"prompt": "Hi", "has_error": True, "error_response": "Bah", "error_type": "Rude", "user_reaction": "Ouch",
           "next_response": "Sorry"}  # fmt: skip
    assert read(row, "reaction") == Group(
        id="file:1",
        prompt=(HI,),
        answers=(Answer(text="Bah"),),
        verdicts=(Thumb(answer=0, up=False, reason="Rude"),),
        meta={"user_reaction": "Ouch", "next_response": "Sorry"},
    )
    fine = {"prompt": "Hi", "has_error": False, "error_response": None, "error_type": None, "next_response": "Hello"}
    assert read(fine, "reaction") == Group(
        id="file:1", prompt=(HI,), answers=(Answer(text="Hello"),), verdicts=(Thumb(answer=0, up=True),)
    )


def test_judge_scores() -> None:
    row = {"bench": "b", "question_id": 3, "system": "vicuna", "instruction": "Hi", "response": "Hello", "rubric": "R",
           "judge_scores": [4, 5], "judge_feedback": ["good", "great"]}  # fmt: skip
    assert read(row, "rated") == Group(
        id="b-3/vicuna",
        prompt=(HI,),
        answers=(Answer(text="Hello", model="vicuna"),),
        verdicts=(
            Score(answer=0, values={"score": 4.0}, rater="judge:1", reason="good"),
            Score(answer=0, values={"score": 5.0}, rater="judge:2", reason="great"),
        ),
        meta={"bench": "b", "question_id": 3, "rubric": "R"},
    )


def test_attribute_ratings_of_one_answer() -> None:
    helpsteer = {"prompt": "Hi", "response": "Hello", "helpfulness": 4, "verbosity": 1}
    assert read(helpsteer, "rated").verdicts == (Score(answer=0, values={"helpfulness": 4.0, "verbosity": 1.0}),)
    assert read({"prompt": "Hi", "response": "Hello", "scores": {"tone": 2, "x": None}}, "rated").verdicts == (
        Score(answer=0, values={"tone": 2.0}),
    )
    assert read({"prompt": "Hi", "response": "Hello", "reward": 0.5}, "rated").verdicts == (
        Score(answer=0, values={"reward": 0.5}),
    )


def test_refusal_labels() -> None:
    row = {"id": "v2", "system": "m", "type": "homonyms", "prompt": "Hi", "response": "No.",
           "human": ["2_full_refusal", "3_partial_refusal"], "human_final": "2_full_refusal",
           "judge": {"gpt-4": "I cannot assist", "string_match": "1_full_compliance"}}  # fmt: skip
    assert read(row, "refusals") == Group(
        id="v2/m",
        prompt=(HI,),
        answers=(Answer(text="No.", model="m"),),
        verdicts=(
            Score(answer=0, values={"refusal": 1.0}, rater="human:1", reason="2_full_refusal"),
            Score(answer=0, values={"refusal": 0.5}, rater="human:2", reason="3_partial_refusal"),
            Score(answer=0, values={"refusal": 0.0}, rater="rule:string_match", reason="1_full_compliance"),
        ),
        meta={"type": "homonyms", "human_final": "2_full_refusal", "judge": row["judge"]},
    )


@pytest.mark.parametrize(("label", "value"), [(1, 1.0), (0, 0.0), (True, 1.0), (-0.5, -0.5)])
def test_labelled_text(label: object, value: float) -> None:
    assert read({"id": "t", "text": "a fine film", "label": label}, "labelled_text") == Group(
        id="t", answers=(Answer(text="a fine film"),), verdicts=(Score(answer=0, values={"label": value}),)
    )


def test_ranks_with_a_tie_and_an_answer_without_one() -> None:
    responses = [
        {"text": "b", "rank": 2, "synthetic": True},
        {"text": "a", "rank": 1, "model": "m"},
        {"text": "c", "rank": 2},
        {"text": "d", "rank": None},
    ]
    assert read({"prompt": "Hi", "responses": responses}, "ranked") == Group(
        id="file:1",
        prompt=(HI,),
        answers=(Answer(text="b"), Answer(text="a", model="m"), Answer(text="c"), Answer(text="d")),
        verdicts=(Ranking(order=((1,), (0, 2))),),
        meta={"responses": [{"synthetic": True}, {}, {}, {}]},
    )


def test_answers_with_ranks_are_no_group_of_ours() -> None:
    row = {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "a", "model": "m", "rank": 2.0}, {"answer": "b", "model": "n", "rank": 1.0}],
        "turns": 1,
        "source": ["s"],
    }
    assert read(row, "ranked") == Group(
        id="file:1",
        prompt=(HI,),
        answers=(Answer(text="a", model="m"), Answer(text="b", model="n")),
        verdicts=(Ranking(order=((1,), (0,))),),
        meta={"turns": 1, "source": ["s"]},
    )
    ours = {"prompt": MESSAGES[:1], "answers": [{"text": "a"}]}
    assert read(ours, "group").answers == (Answer(text="a"),)
    with pytest.raises(FieldError, match="'answers'"):
        detect({"question": "Hi", "answers": ["a", "b"]})


def test_lists_of_texts_with_ranks_or_scores() -> None:
    row = {"query": "Hi", "responses": ["a", "b"], "scores": [0.5, None], "ranks": [2, 1]}
    group = read(row, "ranked")
    assert group.answers == (Answer(text="a"), Answer(text="b"))
    assert group.verdicts == (Ranking(order=((1,), (0,))), Score(answer=0, values={"score": 0.5}))


def test_several_raters_several_attributes() -> None:
    responses = [
        {"system": "bart", "text": "a", "mean": {"overall": 15.0}, "human": [
            {"annotator": 3, "correctness_rating": 10, "overall_rating": 20, "overall_rank": 2},
            {"annotator": 1, "correctness_rating": 30, "overall_rating": 10, "overall_rank": 1}]},
        {"system": "human", "text": "b", "human": [
            {"annotator": 3, "correctness_rating": 99, "overall_rating": 98, "overall_rank": 1, "correctness_rank": 1}]},
    ]  # fmt: skip
    group = read({"question": "Q", "responses": responses}, "ranked")
    assert [answer.model for answer in group.answers] == ["bart", "human"]
    assert group.verdicts == (
        Score(answer=0, values={"correctness": 10.0, "overall": 20.0}, rater="human:3"),
        Score(answer=0, values={"correctness": 30.0, "overall": 10.0}, rater="human:1"),
        Score(answer=1, values={"correctness": 99.0, "overall": 98.0}, rater="human:3"),
        Ranking(order=((1,), (0,)), rater="human:3"),
    )
    # what has no place in a verdict is kept: derived means, and the list with the rank by a single attribute
    assert group.meta == {"responses": [{"mean": {"overall": 15.0}}, {"human": responses[1]["human"]}]}


def test_scores_by_attribute_and_correctness() -> None:
    responses = [{"text": "a", "grades": {"depth": 6}}, {"text": "b", "score": 2, "correct": True}]
    assert read({"prompt": "Hi", "responses": responses}, "ranked").verdicts == (
        Score(answer=0, values={"depth": 6.0}),
        Score(answer=1, values={"score": 2.0, "correct": 1.0}),
    )


def test_pairwise_labels_and_a_correction() -> None:
    row = {
        "prompt": "Hi",
        "responses": [{"text": "a", "wins": 1.0}, {"text": "b", "wins": 0.0}, {"text": "c", "wins": 0.5}],
        "pairwise": [{"a": 0, "b": 1, "label": 1}, {"a": 1, "b": 2, "label": 2}, {"a": 0, "b": 2, "label": 0}],
        "feedback_on_response_0": {"errors": [], "corrected": "A"},
        "feedback_on_response_1": {"corrected": "b"},
    }
    group = read(row, "ranked")
    assert group.verdicts == (
        Pair(better=0, worse=1),
        Pair(better=2, worse=1),
        Pair(better=0, worse=2, tie="tie"),
        Edit(answer=0, text="A"),
    )
    assert set(group.meta) == {"feedback_on_response_0", "feedback_on_response_1", "responses"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format_name", "row", "field", "reason"),
    [
        ("alpaca", {"instruction": "x"}, "output", "is missing (nor is there 'response')"),
        ("alpaca", {"instruction": 3, "output": "y"}, "instruction", "expected text, found the number 3"),
        ("alpaca", {"instruction": "x", "output": "y", "history": [["q"]]}, "history[0]", "expected a question and an answer, found 1 items"),
        ("messages", {"messages": "x"}, "messages", "expected a list of messages, found text"),
        ("messages", {"messages": MESSAGES[:1] * 2 + MESSAGES[1:] + MESSAGES[:1]}, "messages", "ends with a turn of the user, so there is no answer"),
        ("messages", {"messages": [{"text": "x"}]}, "messages[0]", "a message needs 'role' and 'content' (or 'from' and 'value'); found 'text'"),
        ("messages", {"messages": [{"role": "asistant", "content": "x"}]}, "messages[0].role", "no role 'asistant'; did you mean 'assistant'?"),
        ("messages", {"messages": [{"role": "user", "content": None}]}, "messages[0].content", "expected text, found nothing (null)"),
        ("messages", {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls", "a tool call beside the text cannot be kept; write it into the content"),
        ("messages", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "only text parts can be used, found 'image_url'"),
        ("prompt_completion", {"prompt": "x", "completion": "\ud800"}, "completion", "half a surrogate pair: this text cannot be written as UTF-8"),
        ("prompt_completion", {"prompt": "x", "completion": []}, "completion", "holds no turns, so there is no answer"),
        ("prompt_completion", {"prompt": "x", "completion": [{"role": "user", "content": {}}]}, "completion[0].content", "expected text, found an object"),
        ("prompt_completion", {"prompt": {"text": "x"}, "completion": "y"}, "prompt[0]", "a message needs 'role' and 'content' (or 'from' and 'value'); found 'text'"),
        ("question_answer", {"question": "x", "final": True}, "final", "expected text or a number"),
        ("preference", {"prompt": "x", "chosen": "a"}, "rejected", "is missing"),
        ("preference", {"prompt": "x", "chosen": "a", "rejectd": "b"}, "rejected", "is missing; is it 'rejectd'?"),
        ("preference", {"prompt": "x", "chosen": None, "rejected": "b"}, "chosen", "is null"),
        ("preference", {"prompt": "x", "chosen": [], "rejected": "b"}, "chosen", "holds no turns, so there is no answer"),
        ("preference", {"prompt": "x", "chosen": "a", "rejected": "b", "tie": "draw"}, "tie", "expected true, false or one of tie, both_good, both_bad, found 'draw'"),
        ("preference", {"prompt": "x", "chosen": "a", "rejected": "b", "probability": 2}, "probability", "expected a probability from 0 to 1, found 2.0"),
        ("preference", {"prompt": "x", "chosen": "a", "rejected": "b", "score_chosen": 10**400}, "score_chosen", "expected a finite number"),
        ("preference", {"prompt": "x", "chosen": MESSAGES, "rejected": MESSAGES}, "chosen", "holds turns of the user, but does not begin with the prompt"),
        ("preference", {"chosen": MESSAGES[:1], "rejected": MESSAGES}, "rejected", "shares no prompt with 'chosen' that an assistant's turn follows in both"),
        ("transcripts", {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "y"}, "rejected", "no transcript: expected turns that begin with 'Human:' and 'Assistant:'"),
        ("votes", {"prompt": "x", "response_1": "a", "human": [1]}, "response_2", "is missing"),
        ("votes", {"prompt": "x", "response_1": True, "response_2": "b"}, "response_1", "expected text, found true"),
        ("votes", {"prompt": "x", "response_1": "a", "response_2": "b", "human": [3]}, "human[0]", "no label 3: expected 1, 2, a, b, 0 or tie, both_good, both_bad"),
        ("votes", {"prompt": "x", "response_1": "a", "response_2": "b", "annotators": [1], "human": {"d": {"votes": ["a", "b"]}}}, "human.d.votes", "2 votes, but 1 annotators"),
        ("thumbs", {"prompt": "x", "completion": "y", "label": "good"}, "label", "expected true or false, found 'good'"),
        ("reaction", {"prompt": "x", "error_response": "y"}, "has_error", "is missing"),
        ("reaction", {"prompt": "x", "has_error": 1, "error_response": "y"}, "has_error", "expected true or false"),
        ("rated", {"prompt": "x", "response": "y", "judge_scores": [1], "judge_feedback": []}, "judge_feedback", "0 texts, but 1 scores"),
        ("refusals", {"prompt": "x", "response": "y", "human": ["2_refusal"], "judge": {}}, "human[0]", "no label '2_refusal'; did you mean '2_full_refusal'?"),
        ("labelled_text", {"text": "x", "label": "bad"}, "label", "expected a number, found text"),
        ("ranked", {"prompt": "x", "responses": "y"}, "responses", "expected a list, found text"),
        ("ranked", {"prompt": "x", "responses": [{"text": "y"}, 3]}, "responses[1]", "expected an object, found the number 3"),
        ("ranked", {"prompt": "x", "responses": [{"text": "y", "rank": "1"}]}, "responses[0].rank", "expected a number, found text"),
        ("ranked", {"prompt": "x", "responses": ["y"], "scores": [1, 2]}, "scores", "2 numbers, but 1 answers"),
        ("ranked", {"prompt": "x", "responses": ["y"], "pairwise": [{"a": 0, "label": 1}]}, "pairwise[0].a", "a pairwise label needs 'a', 'b' and 'label'"),
        ("ranked", {"prompt": "x", "responses": [{"text": "y", "human": [{"overall_rank": 1}]}]}, "responses[0].human[0].annotator", "is missing (nor is there 'rater' or 'worker')"),
    ],
)  # fmt: skip
def test_refusals_name_the_field_and_the_reason(format_name: str, row: dict, field: str, reason: str) -> None:
    with pytest.raises(FieldError) as caught:
        named(format_name).read(Fields(row))
    assert (caught.value.field, caught.value.reason) == (field, reason)


def test_a_transcript_may_say_human_in_the_middle_of_a_line() -> None:
    group = read({"prompt": "\n\nHuman: A Human: what is it?", "completion": "You."}, "prompt_completion")
    assert group.prompt == (user("A Human: what is it?"),)


def test_unknown_fields_are_named_with_the_known_formats() -> None:
    with pytest.raises(FieldError) as caught:
        detect({"name": "pair-v2", "prompt_template": "..."})
    assert str(caught.value).startswith(
        "no known format has the fields 'name', 'prompt_template'; known formats: group ("
    )
    assert all(known.name in str(caught.value) for known in FORMATS)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "x", "competion": "y"}, "field 'competion': is not understood beside a prompt alone; did you mean 'completion'?"),
        ({"question": "x", "answers": ["y"]}, "field 'answers': is not understood beside a prompt alone"),
    ],
)  # fmt: skip
def test_a_misspelt_answer_does_not_pass_for_a_prompt(row: dict, sentence: str) -> None:
    with pytest.raises(FieldError) as caught:
        detect(row)
    assert str(caught.value) == sentence


def test_our_own_format_is_known_by_its_answers_or_its_meta() -> None:
    assert read({"id": "g", "answers": [{"text": "a"}]}, "group") == Group(id="g", answers=(Answer(text="a"),))
    assert read({"prompt": MESSAGES[:1], "meta": {"final": "4"}}, "group") == Group(
        id="file:1", prompt=(HI,), meta={"final": "4"}
    )


def test_an_unknown_format_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match=r"^no format 'alpacca'; did you mean 'alpaca'\?$"):
        named("alpacca")


def test_null_votes_are_no_verdicts() -> None:
    row = {"prompt": "Hi", "response_1": "a", "response_2": "b", "human": [None, 1], "author": "ann_lee"}
    group = read(row, "votes")
    assert group.verdicts == (Pair(better=0, worse=1, rater="human:2"),)
    assert group.meta == {"author": "ann_lee"}  # a name, not two
    unsaid = {"d": {"votes": [None]}, "e": {"votes": [None]}}
    assert read({**row, "human": unsaid}, "votes").verdicts == ()
    several = {"d": {"votes": ["a"]}, "e": {"votes": ["b"]}}  # no attribute is the overall one
    assert [type(v) for v in read({**row, "human": several}, "votes").verdicts] == [Score, Score]


def test_remarks_of_a_rater_stay_in_meta() -> None:
    said = [{"rater": "x", "remark": "hm"}]
    group = read({"prompt": "Hi", "responses": [{"text": "a", "human": said}, {"text": "b"}]}, "ranked")
    assert group.verdicts == ()
    assert group.meta == {"responses": [{"human": said}, {}]}


def test_system_is_a_model_when_it_is_one_word_beside_scores() -> None:
    row = {"prompt": "Hi", "response": "Hello", "score": 1, "system": "Be brief."}
    assert read(row, "rated").prompt == (system("Be brief."), HI)
    assert read({**row, "model": "m"}, "rated").answers[0].model == "m"
    assert read({**row, "system": "vicuna"}, "rated").answers[0].model == "vicuna"


def test_scores_beside_a_thumb() -> None:
    row = {"prompt": "Hi", "completion": "Hello", "label": True, "score": 0.25}
    assert read(row, "thumbs").verdicts == (Thumb(answer=0, up=True), Score(answer=0, values={"score": 0.25}))


def test_an_empty_row_is_no_known_format() -> None:
    with pytest.raises(FieldError, match=r"^no known format has the fields nothing; known formats: "):
        detect({})
