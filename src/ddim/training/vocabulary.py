"""What is learnt of words from captions: a tokenizer in CLIP's layout, and which words there were."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, models, trainers

from ddim.data.preparation import BACKGROUND_NAMES, say_background
from ddim.errors import DataError
from ddim.models.byte_pairs import END, START, WORD_END, byte_alphabet, cut_texts
from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.words import WordList


def learn_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int) -> CLIPTokenizer:
    """A byte-pair encoding in which frequent words are one token, and any other text is still possible.

    As in CLIP, the vocabulary begins with all bytes, then all bytes that end a word, then the merges in the order in
    which they were learnt (Sennrich et al. 2016); the two special tokens are last.

    Args:
        captions: the texts to learn from.
        vocab_size: how many tokens, at most; 514 or more.
        max_length: the longest text in tokens, with its start and end.

    Raises:
        DataError: there are no captions with a word in them.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    cut_texts(tokenizer)
    alphabet = byte_alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocab_size - 2, 2 * len(alphabet)),
        initial_alphabet=alphabet,
        end_of_word_suffix=WORD_END,
        min_frequency=2,
        show_progress=False,
    )
    # Sorted, so that the result cannot depend on the order, whatever breaks a tie.
    tokenizer.train_from_iterator(sorted(captions), trainer)
    merges = merges_of(tokenizer)
    if not merges:
        raise DataError("the captions have no words that come up twice: a tokenizer cannot be learnt from them")
    names = [*alphabet, *(letter + WORD_END for letter in alphabet)]
    known = set(names)
    kept: list[tuple[str, str]] = []
    for left, right in merges:
        if len(names) + 2 >= vocab_size:
            break
        if left + right not in known:
            known.add(left + right)
            names.append(left + right)
        kept.append((left, right))
    names += [START, END]
    return CLIPTokenizer({name: i for i, name in enumerate(names)}, kept, model_max_length=max_length)


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges of a trained tokenizer, in order."""
    listed = json.loads(tokenizer.to_str())["model"]["merges"]
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in listed)
    return [(left, right) for left, right in pairs]


def words_of(captions: Iterable[Sequence[str]], *, with_backgrounds: bool = False) -> WordList | None:
    """The words that a model sees that is trained on captions; None if they are too many to list.

    Args:
        captions: of each picture.
        with_backgrounds: whether a background is named in some of them; see `Preparation`.
    """
    texts = [caption for options in captions for caption in options]
    return WordList.of([*texts, *(say_background("", name) for name in BACKGROUND_NAMES if with_backgrounds)])
