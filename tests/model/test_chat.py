"""Chat templates of several families on the byte tokenizer, each worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from trimtab.errors import DataError, ModelError
from trimtab.model.chat import Chat
from trimtab.model.tiny import tiny_tokenizer
from trimtab.records.types import Answer, Group, Message

LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Qwen3 and its kin: thoughts are kept in the last turn and cut out of earlier ones.
FORGETFUL = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{{ m['content'] if loop.last else m['content'].split('</think>')[-1] }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": (None, (), "<|im_end|>"),
    "llama3": (LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
    "gemma": (GEMMA, ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
    "plain": ("", (), "<|im_end|>"),
}
START, END = 256, 257


def chat_of(name: str) -> Chat:
    template, special, _ = TEMPLATES[name]
    return Chat(tokenizer_with(template, special))


def tokenizer_with(template: str | None, special: tuple[str, ...] = ()) -> Any:
    tokenizer = tiny_tokenizer()
    if special:
        tokenizer.add_special_tokens({"extra_special_tokens": list(special)})
    if template is not None:
        tokenizer.chat_template = template or None
    return tokenizer


def says(role: Any, content: str) -> Message:
    return Message(role=role, content=content)


def letters(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def raw(chat: Chat, tokens: tuple[int, ...]) -> str:
    return str(chat.tokenizer.decode(list(tokens), skip_special_tokens=False))


def test_chatml_by_hand() -> None:
    chat = chat_of("chatml")
    prompt = (says("system", "S"), says("user", "Hé"))
    assert chat.prompt(prompt) == (
        START, *letters("system\nS"), END, *letters("\n"),
        START, *letters("user\nHé"), END, *letters("\n"),
        START, *letters("assistant\n"),
    )  # fmt: skip
    assert chat.answer(Answer(text="Ja"), prompt) == ((*letters("Ja"), END), (True,) * 3)
    assert (chat.end, chat.stop) == (END, {END})


def test_the_plain_template_by_hand() -> None:
    chat = chat_of("plain")
    assert chat.prompt((says("user", "Hi"),)) == letters("### User:\nHi\n\n### Assistant:\n")
    assert chat.answer(Answer(text="Ja"), ())[0] == (*letters("Ja"), END)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_end_of_turn_is_found(name: str) -> None:
    chat = chat_of(name)
    end = chat.tokenizer.convert_tokens_to_ids(TEMPLATES[name][2])
    assert chat.end == end
    assert chat.stop == {end, END}  # the tokenizer's EOS stops too


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["Ja", "two\nlines", "ends with a blank ", "", "日本"])
def test_prompt_and_answer_decode_to_what_the_template_writes(name: str, text: str) -> None:
    chat = chat_of(name)
    prompt = (says("user", "Is it?"),)
    tokens, _ = chat.answer(Answer(text=text), prompt)
    whole = chat.render((*prompt, says("assistant", text)), generate=False)
    if "trim" in (TEMPLATES[name][0] or "") and text != text.strip():
        whole = whole.replace(text.strip(), text)  # these templates trim; an answer keeps the words that were given
    assert whole.startswith(raw(chat, (*chat.prompt(prompt), *tokens)))
    assert chat.decode(tokens) == text


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer_cut_by_a_cap_has_no_end(name: str) -> None:
    chat = chat_of(name)
    assert chat.answer(Answer(text="Ja", finish="length"), ()) == (letters("Ja"), (True, True))
    assert chat.answer(Answer(text="Ja", finish="stop"), ())[0][-1] == chat.end
    assert chat.answer(Answer(text="Ja", finish=None), ())[0][-1] == chat.end


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("words", ["One.", "One.\n"])  # people's data ends turns with line feeds
def test_in_a_conversation_exactly_the_assistants_words_and_ends_are_trained(name: str, words: str) -> None:
    chat = chat_of(name)
    prompt = (says("user", "A?"),)
    turns = (says("assistant", words), says("user", "B?"), says("assistant", "Two."))
    tokens, trained = chat.answer(Answer(text="Two.", messages=turns), prompt)
    assert raw(chat, (*chat.prompt(prompt), *tokens)) == chat.render((*prompt, *turns), generate=False).rstrip("\n")
    runs: list[list[int]] = [[]]
    for token, own in zip(tokens, trained, strict=True):
        if own:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    kept = words.strip() if "trim" in (TEMPLATES[name][0] or "") else words
    assert [tuple(run) for run in runs] == [(*letters(kept), chat.end), (*letters("Two."), chat.end)]


def test_a_conversation_whose_last_turn_was_cut_has_no_last_end() -> None:
    chat = chat_of("chatml")
    turns = (says("assistant", "One."), says("user", "B?"), says("assistant", "Tw"))
    tokens, trained = chat.answer(Answer(text="Tw", messages=turns, finish="length"), (says("user", "A?"),))
    assert tokens[-2:] == letters("Tw")
    assert sum(trained) == len("One.") + 1 + len("Tw")
    assert tokens.count(END) == 2  # the first answer's, and the user's


def test_two_assistant_turns_in_a_row_and_what_follows_the_last() -> None:
    chat = chat_of("chatml")
    turns = (says("assistant", "a"), says("assistant", "b"), says("user", "never answered"))
    tokens, trained = chat.answer(Answer(text="b", messages=turns), (says("user", "q"),))
    own = [token for token, mine in zip(tokens, trained, strict=True) if mine]
    assert own == [*letters("a"), END, *letters("b"), END]
    assert trained[-1]


def test_a_group() -> None:
    chat = chat_of("chatml")
    prompt = (says("user", "q"),)
    plain = chat.group(Group(id="g", prompt=prompt, answers=(Answer(text="a"), Answer(text="bc"))))
    assert plain.prompt == chat.prompt(prompt)
    assert plain.answers == ((*letters("a"), END), (*letters("bc"), END))
    assert plain.trained is None
    turns = (says("assistant", "x"), says("user", "y"), says("assistant", "z"))
    mixed = chat.group(Group(id="g", prompt=prompt, answers=(Answer(text="a"), Answer(text="z", messages=turns))))
    assert mixed.trained is not None
    assert [sum(row) for row in mixed.trained] == [2, 4]


def test_plain_text_has_no_prompt() -> None:
    chat = chat_of("chatml")
    assert chat.prompt(()) == ()
    assert chat.group(Group(id="t", answers=(Answer(text="once"),))).answers == ((*letters("once"), END),)


def test_decoding_leaves_special_tokens_out() -> None:
    chat = chat_of("chatml")
    assert chat.decode((START, *letters("a"), END)) == "a"


def test_a_template_that_forgets_earlier_words_is_refused_for_several_turns_only() -> None:
    chat = Chat(tokenizer_with(FORGETFUL))
    thought = "<think>hm</think>Yes"
    assert chat.answer(Answer(text=thought), (says("user", "q"),))[0] == (*letters(thought), END)
    turns = (says("assistant", thought), says("user", "y"), says("assistant", "z"))
    with pytest.raises(DataError, match="changes earlier turns"):
        chat.answer(Answer(text="z", messages=turns), (says("user", "q"),))


def test_a_role_that_the_template_refuses_is_named() -> None:
    with pytest.raises(DataError, match="refuses a conversation of system, user: System role not supported"):
        chat_of("gemma").prompt((says("system", "s"), says("user", "u")))


def test_a_tokenizer_without_any_end_is_refused() -> None:
    tokenizer = tokenizer_with("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-turn"):
        Chat(tokenizer)
