"""A tokenizer that is learnt from captions."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_clip import ODD_WORDS, odd_prompts

from ddim.errors import DataError
from ddim.models.byte_pairs import END, START, byte_alphabet
from ddim.models.tokenizer import CLIPTokenizer
from ddim.training.vocabulary import learn_tokenizer, merges_of

WORDS = "red blue square circle grinning face with big eyes heart flag apple noto fluent style 🙂 naïve 日本".split()


def captions(count: int = 400, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"A {' '.join(rng.choices(WORDS, k=4))}, {rng.choice(WORDS[-6:])} style" for _ in range(count)]


def listing(tokenizer: CLIPTokenizer) -> tuple[dict[str, int], list[tuple[str, str]]]:
    inner = tokenizer._tokenizer
    return inner.get_vocab(), merges_of(inner)


LEARNT = learn_tokenizer(captions(), 900, 24)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_captions_is_of_no_matter(seed: int) -> None:
    shuffled = captions()
    random.Random(seed).shuffle(shuffled)
    assert listing(learn_tokenizer(shuffled, 900, 24)) == listing(LEARNT)
    assert listing(learn_tokenizer(iter(shuffled), 900, 24)) == listing(LEARNT)


@pytest.mark.parametrize("parallelism", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_another_process_learns_the_same(parallelism: str, tmp_path: Path) -> None:
    """Ties are many here, and what breaks them may not be a hash that differs from process to process."""
    code = "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/../support']\n"
    code += "import test_vocabulary; test_vocabulary.LEARNT.save_pretrained(sys.argv[2])"
    here = str(Path(__file__).parent)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": parallelism, "PYTHONHASHSEED": str(len(parallelism))}
    subprocess.run([sys.executable, "-c", code, here, str(tmp_path / "there")], check=True, env=environment)
    LEARNT.save_pretrained(tmp_path / "here")
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} <= set(names)
    for name in names:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def normalised(text: str) -> str:
    """What of a text is left when tokens are put together again: blanks are not."""
    return "".join(unicodedata.normalize("NFC", text).lower().split())


@given(st.text(max_size=40))
def test_every_text_is_possible_and_comes_back(text: str) -> None:
    if any(special in text.lower() for special in (START, END)):
        return
    ids = LEARNT.encode(text)
    assert ids[0] == LEARNT.bos_token_id
    assert ids[-1] == LEARNT.eos_token_id
    assert LEARNT.unk_token_id not in ids[1:-1]
    joined = "".join(LEARNT.decode(ids[1:-1]).split())
    # What Unicode makes small one by one, and the tokenizer's library makes small in one go, may differ.
    assert joined.lower() == normalised(text) or joined == normalised(text)


def test_words_that_come_often_are_one_token_each() -> None:
    for word in WORDS:
        assert len(LEARNT.encode(word)) == 3, word
    assert len(LEARNT.encode("A red square, noto style")) == 2 + 6
    assert len(LEARNT.encode("zebra")) > 3


@pytest.mark.parametrize("size", [514, 515, 540, 4096])
def test_the_size_is_respected_and_more_is_the_same_and_then_some(size: int) -> None:
    tokenizer = learn_tokenizer(captions(), size, 24)
    vocab, merges = listing(tokenizer)
    assert len(tokenizer) == len(vocab) <= size
    assert (len(vocab) == size) == (size < 900)
    assert sorted(vocab.values()) == list(range(len(vocab)))
    everything = listing(LEARNT)[1]
    assert merges == everything[: len(merges)]
    assert [vocab[START], vocab[END]] == [len(vocab) - 2, len(vocab) - 1]
    alphabet = byte_alphabet()
    assert [vocab[letter] for letter in alphabet] == list(range(256))
    assert [vocab[f"{letter}</w>"] for letter in alphabet] == list(range(256, 512))


def test_transformers_loads_what_was_saved_and_gives_the_same_ids(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    LEARNT.save_pretrained(tmp_path)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    ours = CLIPTokenizer.from_pretrained(tmp_path)
    assert theirs.model_max_length == ours.model_max_length == 24
    assert len(theirs) == len(ours) == len(LEARNT)
    prompts = [*captions(30), *odd_prompts(150), *(f"a {word}" for word in ODD_WORDS)]
    expected = theirs(prompts, padding="max_length", max_length=24, truncation=True, return_tensors="pt").input_ids
    for tokenizer in (ours, LEARNT):
        ids = tokenizer.ids(prompts, warn=False)
        wrong = [prompt for prompt, one, two in zip(prompts, ids, expected, strict=True) if not one.equal(two)]
        assert not wrong


@pytest.mark.parametrize("texts", [[], [""], ["q w e r t y"], ["...", "1 2 3"]])
def test_captions_without_words_are_an_error(texts: list[str]) -> None:
    with pytest.raises(DataError, match="no words that come up twice"):
        learn_tokenizer(texts, 1000, 24)


def test_odd_captions_are_learnt_from() -> None:
    tokenizer = learn_tokenizer([*odd_prompts(300), f"{START} a red cat {END}", "a red cat"], 1000, 16)
    assert len(tokenizer) == 1000
    assert tokenizer.eos_token_id == 999
    assert tokenizer.ids([f"{END} red"], warn=False)[0, 1] == 999
