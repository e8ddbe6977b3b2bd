"""CLIPTokenizer against transformers', token for token; what it cuts off; files in both directions; broken files."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
import random
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile import limits
from tiny_clip import END, START, odd_prompts, vocabulary, write_tokenizer
from tokenizers import AddedToken

from ddim.errors import CheckpointError, ConfigError
from ddim.models.tokenizer import CLIPTokenizer

PROMPTS = odd_prompts(1000)
ODD = PROMPTS[9:100]


def theirs(folder: Path) -> Any:
    from transformers import CLIPTokenizer as Reference

    return Reference.from_pretrained(folder)


def ids_of(reference: Any, prompts: list[str], length: int = 77) -> torch.Tensor:
    found = reference(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    assert isinstance(found, torch.Tensor)
    return found


def quietly(tokenizer: CLIPTokenizer, prompts: list[str], length: int | None = None) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tokenizer.ids(prompts, length)


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    change(values)
    path.write_text(json.dumps(values))


# --- layouts ---------------------------------------------------------------------------------------------------------


def sd1(folder: Path) -> None:
    write_tokenizer(folder)


def sd2(folder: Path) -> None:
    write_tokenizer(folder, pad="!")


def mixed(folder: Path) -> None:
    """The end token in two ways: the last one that is new decides whether capital letters match it."""
    write_tokenizer(folder)
    edit(folder / "special_tokens_map.json", lambda m: m.update(unk_token=END, pad_token=m["eos_token"]))


def whole(folder: Path) -> None:
    """tokenizer.json alone beside the config, as transformers 5 saves it."""
    write_tokenizer(folder / "old", pad="!")
    theirs(folder / "old").save_pretrained(folder)
    assert (folder / "tokenizer.json").exists()
    assert not (folder / "vocab.json").exists()


def bare(folder: Path) -> None:
    write_tokenizer(folder)
    (folder / "special_tokens_map.json").unlink()
    edit(folder / "tokenizer_config.json", lambda c: [c.pop(k) for k in list(c) if k != "model_max_length"])


def inversion(folder: Path) -> None:
    """With tokens of textual inversion, as transformers 4 saves them."""
    write_tokenizer(folder)
    size = len(vocabulary()[0])
    traits = {"lstrip": False, "rstrip": False, "single_word": False}

    def add(config: dict[str, Any]) -> None:
        config["added_tokens_decoder"] = {
            str(size - 2): {"content": START, **traits, "normalized": True, "special": True},
            str(size - 1): {"content": END, **traits, "normalized": False, "special": True},
            str(size): {"content": "<cat-toy>", **traits, "normalized": True, "special": False},
            str(size + 1): {"content": "heart)", **traits, "lstrip": True, "normalized": False, "special": False},
        }

    edit(folder / "tokenizer_config.json", add)


def legacy_inversion(folder: Path) -> None:
    write_tokenizer(folder)
    size = len(vocabulary()[0])
    (folder / "added_tokens.json").write_text(json.dumps({"<cat-toy>": size, "RED": size + 1}))
    edit(folder / "special_tokens_map.json", lambda m: m.update(additional_special_tokens=["<cat-toy>", "[x]"]))


LAYOUTS = [sd1, sd2, mixed, whole, bare, inversion, legacy_inversion]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.thin(fast=["sd2", "mixed", "legacy_inversion"])
def test_tokens_are_transformers(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path)
    reference, tokenizer = theirs(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    prompts = PROMPTS if layout is sd1 else PROMPTS[:200]  # layouts differ in special tokens alone
    ids = quietly(tokenizer, prompts)
    assert (ids.shape, ids.dtype) == ((len(prompts), 77), torch.int64)
    assert torch.equal(ids, ids_of(reference, prompts))
    assert [tokenizer.encode(prompt) for prompt in prompts] == reference(prompts).input_ids
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length"):
        if not (layout is bare and name == "model_max_length"):
            assert getattr(tokenizer, name) == getattr(reference, name)
    assert len(tokenizer) == len(reference)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.thin(every=3)
def test_what_is_saved_loads_in_transformers_and_here(layout: Callable[[Path], None], tmp_path: Path) -> None:
    layout(tmp_path / "first")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "first")
    ids = quietly(tokenizer, PROMPTS[:300])
    tokenizer.save_pretrained(tmp_path / "second")
    assert torch.equal(ids_of(theirs(tmp_path / "second"), PROMPTS[:300]), ids)
    again = CLIPTokenizer.from_pretrained(tmp_path, subfolder="second")
    assert torch.equal(quietly(again, PROMPTS[:300]), ids)
    again.save_pretrained(tmp_path / "third")
    for file in (tmp_path / "second").iterdir():
        assert file.read_bytes() == (tmp_path / "third" / file.name).read_bytes()


def test_decoding_is_transformers(tmp_path: Path) -> None:
    sd1(tmp_path)
    reference, tokenizer = theirs(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    for prompt in PROMPTS[:300]:
        ids = tokenizer.encode(prompt)
        assert (
            tokenizer.decode(ids, skip_special_tokens=True)
            == reference.batch_decode([ids], skip_special_tokens=True)[0]
        )
        everything = tokenizer.decode(torch.tensor(ids))
        assert everything == reference.batch_decode([ids])[0]


@pytest.mark.parametrize("length", [2, 3, 10, 200])
def test_another_length(length: int, tmp_path: Path) -> None:
    sd2(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert torch.equal(quietly(tokenizer, PROMPTS[:100], length), ids_of(theirs(tmp_path), PROMPTS[:100], length))


def test_one_text_is_a_batch_of_one_and_none_a_batch_of_none(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    assert torch.equal(tokenizer.ids("a red heart"), tokenizer.ids(["a red heart"]))
    assert tokenizer.ids([]).shape == (0, 77)


def test_overrides_win_over_the_files(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path, pad_token="!", model_max_length=12)
    assert tokenizer.ids("photo").shape == (1, 12)
    assert tokenizer.ids("photo")[0, -1] == tokenizer.pad_token_id == 0


def test_threads_may_share_one(tmp_path: Path) -> None:
    sd2(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    batches = [PROMPTS[i::8] for i in range(8)]
    alone = [[tokenizer.encode(prompt) for prompt in batch] for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: [tokenizer.encode(prompt) for prompt in batch], batches))
    assert together == alone


def test_copies_and_pickles(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(quietly(other, PROMPTS[:50]), quietly(tokenizer, PROMPTS[:50]))


# --- the arguments and results of transformers' tokenizer ------------------------------------------------------------

TEXTS = [*PROMPTS[9:60], "a photo of a cat", ""]


def same(ours: Any, theirs: Any) -> None:
    """The same keys, and under each the same numbers of the same kind."""
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert type(ours[name]) is type(value), name
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value), name
        else:
            assert np.array_equal(ours[name], value) if isinstance(value, np.ndarray) else ours[name] == value, name


@pytest.fixture(scope="module", params=[sd1, sd2], ids=["SD 1", "SD 2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIPTokenizer, Any]:
    folder = tmp_path_factory.mktemp("both")
    request.param(folder)
    return CLIPTokenizer.from_pretrained(folder), theirs(folder)


@pytest.mark.parametrize("truncation", [None, True, False, "longest_first", "only_first", "do_not_truncate"])
@pytest.mark.parametrize("padding", [False, True, "longest", "max_length", "do_not_pad"])
@pytest.mark.thin(every=3)
def test_a_call_gives_what_transformers_gives(padding: Any, truncation: Any, both: tuple[Any, Any]) -> None:
    """Every kind of padding and truncation, with each of the other arguments, and every kind of result."""
    ours, reference = both
    texts = ("a photo of 2 cats", "", TEXTS[:12], TEXTS[:1])
    for text, max_length, special in itertools.product(texts, (None, 5, 40), (True, False)):
        how: dict[str, Any] = {
            "padding": padding,
            "truncation": truncation,
            "max_length": max_length,
            "add_special_tokens": special,
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers warns of a max_length that has no effect
            expected = reference(text, **how)
            same(ours(text, **how), expected)
            kinds: tuple[str, ...] = ("pt", "np")
            if len({len(row) for row in ([expected.input_ids] if isinstance(text, str) else expected.input_ids)}) > 1:
                kinds = ()
                with pytest.raises(ValueError, match="make no tensor"):
                    ours(text, return_tensors="pt", **how)
            for kind in kinds:
                same(ours(text, return_tensors=kind, **how), reference(text, return_tensors=kind, **how))


@pytest.mark.parametrize("text", ["a photo of 2 cats", TEXTS], ids=["one", "many"])
@pytest.mark.parametrize(
    "how",
    [
        {"return_attention_mask": False},
        {"return_token_type_ids": True, "return_length": True},
        {"return_special_tokens_mask": True, "return_offsets_mapping": True, "return_length": True},
        {"pad_to_multiple_of": 8},
        {"padding": "max_length", "max_length": 50, "pad_to_multiple_of": 8},
        {"padding_side": "left"},
        {"truncation": False},
    ],
    ids=lambda how: " ".join(how),
)
@pytest.mark.thin(every=2)
def test_what_else_a_call_may_be_asked_for(how: dict[str, Any], text: Any, both: tuple[Any, Any]) -> None:
    ours, reference = both
    how = {"padding": True, **how}
    same(ours(text, **how), reference(text, **how))
    if "truncation" in how or "pad_to_multiple_of" in how:
        return
    how |= {"truncation": True, "max_length": 9, "padding": "max_length"}
    same(ours(text, **how), reference(text, **how))
    same(ours(text, return_tensors="pt", **how), reference(text, return_tensors="pt", **how))


def test_an_encoding_is_read_as_scripts_read_it(both: tuple[Any, Any]) -> None:
    encoding = both[0](["a cat", "a red heart"], padding=True, return_tensors="pt")
    assert encoding.input_ids is encoding["input_ids"]
    assert list(encoding.keys()) == ["input_ids", "attention_mask"]
    assert {**encoding}.keys() == encoding.data.keys() == dict(encoding.items()).keys()
    assert encoding.to("cpu") is encoding
    assert encoding.to("meta").attention_mask.device.type == "meta"
    assert pickle.loads(pickle.dumps(both[0]("a cat"))).input_ids == both[0]("a cat").input_ids
    with pytest.raises(AttributeError, match="has no 'pixel_values'; it has input_ids, attention_mask"):
        _ = encoding.pixel_values
    with pytest.raises(TypeError, match="but not converted"):
        encoding.to(torch.float16)


def test_filling_up_afterwards(both: tuple[Any, Any]) -> None:
    """Training scripts fill up what a data set has encoded."""
    ours, reference = both
    examples = [reference(text).data for text in TEXTS[:5]]
    lists = {"input_ids": [example["input_ids"] for example in examples]}
    for how in (
        {},
        {"padding": "max_length", "max_length": 400},
        {"return_tensors": "pt"},
        {"pad_to_multiple_of": 8, "return_tensors": "np"},
        {"return_attention_mask": False},
        {"padding": False},
    ):
        for given in (lists, examples) if how.get("return_attention_mask", True) else (lists,):
            same(ours.pad(copy.deepcopy(given), **how), reference.pad(copy.deepcopy(given), **how))
    one = reference("a cat").data
    same(ours.pad(dict(one), "max_length", 9), reference.pad(dict(one), "max_length", 9))
    with pytest.raises(ValueError, match="no input_ids"):
        ours.pad({"ids": [1]})


@pytest.mark.thin(fast=["SD 1"])
def test_words_and_ids(both: tuple[Any, Any]) -> None:
    ours, reference = both
    for text in TEXTS[::4]:
        assert ours.tokenize(text) == reference.tokenize(text)
        assert ours.tokenize(text, add_special_tokens=True) == reference.tokenize(text, add_special_tokens=True)
        words, ids = reference.tokenize(text), reference.encode(text)
        assert ours.convert_tokens_to_ids(words) == reference.convert_tokens_to_ids(words)
        for skip in (False, True):
            assert ours.convert_ids_to_tokens(ids, skip) == reference.convert_ids_to_tokens(ids, skip)
        assert ours.encode(text, return_tensors="pt").tolist() == [ids]
        assert [ours.decode([index]) for index in ids] == [reference.decode([index]) for index in ids]
        assert [ours.decode(index) for index in ids] == [reference.decode(index) for index in ids]
    batch = reference(TEXTS, padding=True, return_tensors="np").input_ids
    assert ours.batch_decode(batch) == reference.batch_decode(batch)
    assert ours.decode(torch.tensor(batch), skip_special_tokens=True) == reference.decode(
        batch, skip_special_tokens=True
    )
    assert ours.convert_tokens_to_ids("cat</w>") == reference.convert_tokens_to_ids("cat</w>")
    assert ours.convert_tokens_to_ids("no token") == ours.unk_token_id
    assert ours.convert_ids_to_tokens(3) == reference.convert_ids_to_tokens(3)
    with pytest.raises(TypeError, match="text_pair is not implemented"):
        ours("a", "b")


@pytest.mark.parametrize(
    "name",
    """bos_token eos_token pad_token unk_token bos_token_id eos_token_id pad_token_id unk_token_id model_max_length
    vocab_size all_special_tokens all_special_ids special_tokens_map model_input_names padding_side truncation_side
    is_fast added_tokens_encoder max_len_single_sentence vocab""".split(),
)
def test_attributes(name: str, both: tuple[Any, Any]) -> None:
    ours, reference = both
    assert getattr(ours, name) == getattr(reference, name)
    assert len(ours) == len(reference)
    assert ours.get_vocab() == reference.get_vocab()
    assert ours.num_special_tokens_to_add() == 2


def test_special_tokens_can_be_assigned(tmp_path: Path) -> None:
    sd1(tmp_path)
    ours, reference = CLIPTokenizer.from_pretrained(tmp_path), theirs(tmp_path)
    for tokenizer in (ours, reference):
        tokenizer.pad_token = "!"
    same(ours("a cat", padding="max_length"), reference("a cat", padding="max_length"))
    for tokenizer in (ours, reference):
        tokenizer.pad_token_id = tokenizer.eos_token_id
        tokenizer.model_max_length = 20
    same(ours("a cat", padding="max_length"), reference("a cat", padding="max_length"))
    assert ours.ids("a cat").shape == (1, 20)
    with pytest.raises(ValueError, match="add_tokens"):
        ours.pad_token = "<pad>"
    with pytest.raises(ValueError, match="fixed"):
        ours.unk_token = "!"


def test_tokens_can_be_added_and_are_saved(tmp_path: Path) -> None:
    sd1(tmp_path)
    ours, reference = CLIPTokenizer.from_pretrained(tmp_path), theirs(tmp_path)
    for given in ("<cat-toy>", ["<A>", "<cat-toy>", "<b>", "<b>"]):
        assert ours.add_tokens(given) == reference.add_tokens(given)
    assert ours.add_tokens(["<s>"], special_tokens=True) == reference.add_tokens(["<s>"], special_tokens=True)
    texts = ["a <cat-toy>", "<a><b>", "<CAT-TOY> <A>", "a<s>b <S>", *ODD]
    assert len(ours) == len(reference)
    for text in texts:
        assert ours.encode(text) == reference.encode(text), text
        ids = ours.encode(text)
        assert ours.decode(ids) == reference.decode(ids)
    ours.save_pretrained(tmp_path / "saved")
    for again in (CLIPTokenizer.from_pretrained(tmp_path / "saved"), theirs(tmp_path / "saved")):
        assert [again.encode(text) for text in texts] == [ours.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ({"padding": "most"}, ValueError, "padding='most' is none of True, 'longest', 'max_length', False"),
        ({"truncation": "only_second"}, ValueError, "truncation='only_second' is none of"),
        ({"padding_side": "top"}, ValueError, "padding_side"),
        ({"return_tensors": "tf"}, ValueError, "return_tensors='tf' is none of 'pt', 'np' and None"),
        ({"stride": 2}, TypeError, "stride is not implemented"),
        ({"is_split_into_words": True}, TypeError, "is_split_into_words is not implemented"),
        ({"return_overflowing_tokens": True}, TypeError, "return_overflowing_tokens is not implemented"),
        ({"text_target": "a"}, TypeError, "text_target is not implemented"),
        ({"maximum": 3}, TypeError, "no argument 'maximum'"),
        ({"text_pair": 77}, TypeError, "max_length="),
        ({"padding": True, "truncation": True, "max_length": 9, "pad_to_multiple_of": 8}, ValueError, "no multiple"),
    ],
)
def test_what_a_call_does_not_take(how: dict[str, Any], error: Any, says: str, both: tuple[Any, Any]) -> None:
    with pytest.raises(error, match=says):
        both[0](["a cat"], **{"padding": True, **how})
    both[0]("a cat", stride=0, is_split_into_words=False, return_overflowing_tokens=False, text_target=None)


# --- what is cut off -------------------------------------------------------------------------------------------------


def test_one_warning_shows_what_was_cut(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    kept = "photo " * 75
    with pytest.warns(UserWarning, match="77 tokens") as caught:
        tokenizer.ids(kept + "OF Cats, café 🙂")
    (warning,) = caught
    assert str(warning.message).endswith("cut from the end of the prompt: 'OF Cats, café 🙂'")
    assert warning.filename == __file__
    with pytest.warns(UserWarning, match=r"2 of 3 prompts: 'red', 'blue heart'$") as caught:
        tokenizer.ids([kept + "red", "a", kept + "blue heart"])
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"x' …$") as caught:
        tokenizer.ids(kept + "x" * 10_000)
    assert len(str(caught[0].message)) < 1000


def test_what_fits_is_not_warned_of(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.ids("photo " * 75)  # warnings are errors here
    assert ids[0, 0] == tokenizer.bos_token_id
    assert ids[0, -1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[0, :-1]


# --- errors ----------------------------------------------------------------------------------------------------------


# --- texts of a stranger ---------------------------------------------------------------------------------------------

LONG: dict[str, str] = {
    "10 MB of words": "a red cat on a table " * 500_000,
    "a word of 10 MB": "catalogue" * 1_100_000,
    "10 MB of one letter": "a" * 10**7,
    "10 MB of signs": "!" * 10**7,
    "10 MB of digits": "7" * 10**7,
    "10 MB without a blank": "中文" * 5_000_000,
    "four bytes a letter": "😀" * 2_500_000,
    "100,000 marks on a letter": "e" + "\u0301" * 100_000,
    "5 million marks on a letter": "e" + "\u0301" * 5_000_000,
    "NUL": "\0" * 10**6,
    "a million end tokens": END * 10**6,
}


@pytest.mark.parametrize("what", LONG)
@pytest.mark.thin(fast=["10 MB of words", "10 MB of signs", "100,000 marks on a letter", "a million end tokens"])
def test_a_text_of_any_length_costs_little(what: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    start = LONG[what][:20_000]
    with limits(), pytest.warns(UserWarning, match="this was cut") as caught:
        ids = tokenizer.ids(LONG[what])
    assert len(str(caught[0].message)) < 5000
    assert torch.equal(ids, quietly(tokenizer, [start]))
    with limits():
        assert tokenizer(LONG[what], truncation=True).input_ids == ids[0].tolist()
    with limits(), pytest.raises(ValueError, match=r"characters, over 262144: give truncation=True"):
        tokenizer(LONG[what] if len(LONG[what]) > 2**18 else LONG[what] * 3)


def test_a_text_with_no_words_in_its_first_quarter_of_a_million_letters_is_an_error(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    with limits(), pytest.raises(ValueError, match="no 75 tokens are in the first of them"):
        tokenizer.ids(" " * 10**7 + "cat")
    assert torch.equal(tokenizer.ids(" " * 200_000 + "cat"), tokenizer.ids("cat"))
    with pytest.raises(ValueError, match="lone surrogates"):
        tokenizer.ids("a cat " * 10**5 + "\ud800")


# The fast test beside it is test_a_call_gives_what_transformers_gives.
@pytest.mark.slow
def test_many_texts(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    with limits():
        ids = tokenizer.ids(["a cat"] * 50_000, 8)
    assert torch.equal(ids, tokenizer.ids("a cat", 8).expand(50_000, -1))
    with limits(), pytest.warns(UserWarning, match="30000 of 30000 prompts") as caught:
        tokenizer.ids(["a cat on a table"] * 30_000, 3)
    assert len(str(caught[0].message)) < 5000


def test_what_is_not_read_changes_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random texts of all that can meet at a cut, read in parts of a few letters and as a whole."""
    write_tokenizer(tmp_path)
    added = [
        AddedToken("two words"),
        AddedToken("<x 1>", lstrip=True, rstrip=True),
        AddedToken("caté", single_word=True),
    ]
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    tokenizer.add_tokens(added)
    pieces = [" ", "\n", "  ", "1", "٣", "cat", "a", "two words", "<x 1>", "caté", "e", "\u0301", "'s", "!", "中", "𝟗"]
    pieces += ["two", " words", "ﬁ", "İ", "\u200d", END, "<|", "|>"]
    draw = random.Random(0)
    texts = ["".join(draw.choices(pieces, k=draw.randint(1, 60))) for _ in range(1500)]
    whole = [[quietly(tokenizer, [text], length) for length in (2, 3, 5, 9)] for text in texts]
    read: list[int] = []
    monkeypatch.setattr("ddim.models.tokenizer._READ", (8, 24, 10**6))
    encode = tokenizer._encode_long
    monkeypatch.setattr(tokenizer, "_encode_long", lambda text, limit: read.append(1) or encode(text, limit))
    parts = [[quietly(tokenizer, [text], length) for length in (2, 3, 5, 9)] for text in texts]
    assert len(read) > 4000
    for text, first, second in zip(texts, whole, parts, strict=True):
        assert all(map(torch.equal, first, second)), repr(text)


def test_what_is_no_text(tmp_path: Path) -> None:
    sd1(tmp_path)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for wrong in (3, [3], [None], ["a", b"b"], [["a"]]):
        with pytest.raises(TypeError, match=r"not iterable|must be a str"):
            tokenizer(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"not iterable|must be a str"):
            tokenizer.ids(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no valid Unicode"):
        tokenizer("a \ud800 b")
    with pytest.raises(ValueError, match="no valid Unicode"):
        tokenizer.ids("a \ud800 b")
    with pytest.raises(ValueError, match="2 or more"):
        tokenizer.ids("a", max_length=1)
    with pytest.raises(ValueError, match="2 or more"):
        tokenizer("a", max_length=1)


def drop(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).unlink()


def put(name: str, content: str | bytes) -> Callable[[Path], Any]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(raw)


def config(**values: Any) -> Callable[[Path], Any]:
    return lambda folder: edit(folder / "tokenizer_config.json", lambda c: c.update(values))


WORDPIECE = json.dumps({"model": {"type": "WordPiece", "vocab": {}}})
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no vocabulary": (drop("vocab.json"), "neither tokenizer.json nor"),
    "no merges": (drop("merges.txt"), "neither tokenizer.json nor"),
    "vocabulary is no JSON": (put("vocab.json", "{"), "vocab.json"),
    "vocabulary is a list": (put("vocab.json", "[]"), "vocab.json"),
    "vocabulary is empty": (put("vocab.json", "{}"), "vocab.json"),
    "an id is a text": (put("vocab.json", json.dumps({END: "x"})), "vocab.json"),
    "an id is negative": (put("vocab.json", json.dumps({END: -1})), "vocab.json"),
    "an id is huge": (put("vocab.json", json.dumps({END: 2**64})), "vocab.json"),
    "an id is true": (put("vocab.json", json.dumps({END: True})), "vocab.json"),
    "vocabulary is huge": (put("vocab.json", "{" + " " * 5_000_000 + "}"), "vocab.json"),
    "a surrogate": (put("vocab.json", json.dumps({END: 0, "\ud800": 1})), "vocab.json"),
    "no end token": (put("vocab.json", json.dumps({"a": 0})), "vocab.json"),
    "merges are no UTF-8": (put("merges.txt", b"\xff\xfe"), "merges.txt"),
    "a merge of three": (put("merges.txt", "#version: 0.2\np h o\n"), "merges.txt"),
    "a merge of one": (put("merges.txt", "#version: 0.2\nph\n"), "merges.txt"),
    "a merge of nothing": (put("merges.txt", "p \n"), "vocab.json"),
    "merges of other tokens": (put("merges.txt", "pq r\n"), "vocab.json"),
    "a merge that makes no token": (put("merges.txt", "q z\n"), "vocab.json"),
    "merges are huge": (put("merges.txt", "p h\n" * 1_500_000), "merges.txt"),
    "merges are a folder": (lambda f: ((f / "merges.txt").unlink(), (f / "merges.txt").mkdir()), "neither"),
    "another kind": (put("tokenizer.json", WORDPIECE), "tokenizer.json"),
    "no model": (put("tokenizer.json", "{}"), "tokenizer.json"),
    "no merges in the model": (put("tokenizer.json", json.dumps({"model": {"vocab": {}}})), "tokenizer.json"),
    "odd merges in the model": (
        put("tokenizer.json", json.dumps({"model": {"vocab": {END: 0}, "merges": [3]}})),
        "tokenizer.json",
    ),
    "config is no JSON": (put("tokenizer_config.json", "nonsense"), "tokenizer_config.json"),
    "a token is a number": (config(pad_token=3), "vocab.json"),
    "a token has no content": (config(eos_token={"__type": "AddedToken"}), "a str, or a dict"),
    "padding on the left": (config(padding_side="left"), "padding_side"),
    "no length": (config(model_max_length=0), "model_max_length"),
    "added tokens are a list": (config(added_tokens_decoder=["x"]), "vocab.json"),
    "an added token without an id": (config(added_tokens_decoder={"x": {"content": "y"}}), "vocab.json"),
    "an added token far away": (config(added_tokens_decoder={"9999": {"content": "<y>"}}), "9999"),
    "an odd map": (put("special_tokens_map.json", '{"bos_token": 3}'), "vocab.json"),
    "added_tokens.json is odd": (put("added_tokens.json", '{"<y>": "z"}'), "vocab.json"),
    "a link that leads out": (
        lambda f: ((f / "vocab.json").rename(f.parent / "v.json"), (f / "vocab.json").symlink_to(f.parent / "v.json")),
        "leads out",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_error_that_names_them(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    write_tokenizer(folder)
    spoil, match = BROKEN[name]
    if name.startswith("a token"):
        (folder / "special_tokens_map.json").unlink()  # which would win
    spoil(folder)
    with pytest.raises(CheckpointError, match=match) as caught:
        CLIPTokenizer.from_pretrained(folder)
    assert str(folder) in str(caught.value)


def test_the_constructor_says_what_is_wrong() -> None:
    vocab, merges = vocabulary()
    with pytest.raises(ConfigError, match="unk_token"):
        CLIPTokenizer(vocab, merges, unk_token="nowhere")
    with pytest.raises(ConfigError, match="merge"):
        CLIPTokenizer(vocab, [("q", "z")])
    with pytest.raises(ConfigError, match="model_max_length"):
        CLIPTokenizer(vocab, merges, model_max_length=1)
    tokenizer = CLIPTokenizer(vocab, [tuple(merge.split()) for merge in merges], extra_special_tokens=["<x>"])
    assert tokenizer.encode("photo<x>")[2] == len(vocab) == len(tokenizer) - 1
    assert CLIPTokenizer(vocab, merges, added_tokens={len(vocab): AddedToken("<y>")}).encode("<Y>")[1] == len(vocab)
