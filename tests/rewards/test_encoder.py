from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from trimtab.errors import ModelError
from trimtab.rewards.encoder import Encode, encoder, remembered

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
WINDOW = 8
CLS, SEP = 2, 3


def bert(folder: Path, *, window: int = WINDOW) -> Path:
    """A random BERT of one layer whose tokens are single letters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(VOCAB), max_position_embeddings=WINDOW, initializer_range=0.5, **shape)
    BertModel(config).save_pretrained(folder)
    inner = Tokenizer(WordLevel({token: i for i, token in enumerate(VOCAB)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": window}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bert(tmp_path_factory.mktemp("bert"))


def hidden(folder: Path, letters: str) -> torch.Tensor:
    """Last hidden states of one window by itself, (T, D)."""
    from transformers import BertModel

    ids = torch.tensor([[CLS, *(VOCAB.index(letter) for letter in letters), SEP]])
    with torch.no_grad():
        return BertModel.from_pretrained(folder).eval()(input_ids=ids).last_hidden_state[0]


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).double().numpy()


def test_a_vector_is_the_normalised_mean_over_the_tokens(folder: Path) -> None:
    vectors = encoder(folder)(["a b c", "d"])
    assert vectors.dtype == np.float64
    assert vectors.shape == (2, 16)
    assert vectors[0] == pytest.approx(unit(hidden(folder, "abc").mean(0)), abs=1e-5)
    assert vectors[1] == pytest.approx(unit(hidden(folder, "d").mean(0)), abs=1e-5)


def test_neither_neighbours_nor_order_nor_repeats_matter(folder: Path) -> None:
    encode = encoder(folder)
    texts = ["a b c d e f", "a", "", "a", "c b"]
    together = encode(texts)
    alone = np.vstack([encode([text]) for text in texts])
    assert together == pytest.approx(alone, abs=1e-5)
    assert encode(texts[::-1])[::-1] == pytest.approx(together, abs=1e-5)
    assert np.array_equal(together[1], together[3])


def test_many_texts_are_encoded_in_several_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join("abcdefghij"[i % 7 : i % 7 + 1 + i % 4]) for i in range(30)]
    whole = encoder(folder)(texts)
    monkeypatch.setattr("trimtab.rewards.encoder.BATCH_TOKENS", 10)
    assert encoder(folder)(texts) == pytest.approx(whole, abs=1e-5)


def test_a_long_text_is_read_to_its_end(folder: Path) -> None:
    # Eight tokens a window, six of them letters: a..f, then g..j.
    vector = encoder(folder)(["a b c d e f g h i j"])[0]
    both = torch.cat([hidden(folder, "abcdef"), hidden(folder, "ghij")])  # (8 + 6, D)
    assert vector == pytest.approx(unit(both.mean(0)), abs=1e-5)
    assert encoder(folder)(["a b c d e f g h i a"])[0] != pytest.approx(vector, abs=1e-3)


def test_empty_texts_and_no_texts(folder: Path) -> None:
    encode = encoder(folder)
    assert encode([""])[0] == pytest.approx(unit(hidden(folder, "").mean(0)), abs=1e-5)
    assert encode([]).shape == (0, 16)


def test_a_window_that_holds_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its window of 2 tokens holds no text"):
        encoder(bert(tmp_path, window=2))


# --- remembered -------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A cache of its own, and what ``lengths`` was asked."""
    monkeypatch.setenv("TRIMTAB_CACHE", str(tmp_path / "cache"))
    return []


def lengths(asked: list[list[str]], scale: float = 1.0) -> Encode:
    """An encoder that takes down what it is asked: each text's length, and its place."""

    def encode(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        return np.array([[scale * len(text), i] for i, text in enumerate(texts)], dtype=np.float64).reshape(-1, 2)

    return encode


def test_the_second_call_reads(asked: list[list[str]]) -> None:
    encode = remembered(lengths(asked), "weights")
    first = encode(["a", "bb"])
    assert first.tolist() == [[1, 0], [2, 1]]
    assert first.dtype == np.float64
    assert np.array_equal(encode(("a", "bb")), first)
    assert np.array_equal(remembered(lengths(asked, scale=9), "weights")(["a", "bb"]), first)  # by another process, say
    assert asked == [["a", "bb"]]


def test_other_texts_or_weights_are_computed_anew(asked: list[list[str]]) -> None:
    encode = remembered(lengths(asked), "weights")
    encode(["a", "bb"])
    assert remembered(lengths(asked, scale=9), "others")(["a", "bb"]).tolist() == [[9, 0], [18, 1]]
    assert encode(["bb", "a"]).tolist() == [[2, 0], [1, 1]]
    assert encode(["abb"]).tolist() == [[3, 0]]
    assert encode([]).shape == (0, 2)
    assert asked == [["a", "bb"], ["a", "bb"], ["bb", "a"], ["abb"], []]


def test_what_was_lost_is_computed_again(asked: list[list[str]], tmp_path: Path) -> None:
    encode = remembered(lengths(asked), "weights")
    first = encode(["a"])
    (file,) = tmp_path.rglob("vectors.npy")
    file.write_bytes(file.read_bytes()[:-3])
    assert np.array_equal(encode(["a"]), first)
    assert len(asked) == 2
