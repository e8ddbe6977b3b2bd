"""New words: the pictures of diffusers' `load_textual_inversion`, every layout of their files, and what is refused."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl
from torch import Tensor

import ddim
from ddim.errors import CheckpointError, WeightsError
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from ddim.pipelines.words import WordList

WIDTH = 32  # of the tiny text encoder
PROMPTS = ["a photo of <cat-toy>", "a <CAT-TOY>, red<cat-toy> on <cat-toy> stars", "a photo of a cat"]


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_reference(path, 1)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> StableDiffusionPipeline:
    pipe: StableDiffusionPipeline = ddim.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(loaded: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """One of which the tokenizer and the text encoder are its own."""
    own = {"tokenizer": copy.deepcopy(loaded.tokenizer), "text_encoder": copy.deepcopy(loaded.text_encoder)}
    made = StableDiffusionPipeline.from_pipe(loaded, **own)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def reference(folder: Path) -> Any:
    import diffusers

    made = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    made.set_progress_bar_config(disable=True)
    return made


def state_of(pipe: Any) -> tuple[int, tuple[int, ...], int, int]:
    table = pipe.text_encoder.get_input_embeddings()
    return len(pipe.tokenizer), tuple(table.weight.shape), table.num_embeddings, pipe.text_encoder.config.vocab_size


# --- as in diffusers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_embeddings_and_pictures_are_those_of_diffusers(pipe: Any, reference: Any, count: int) -> None:
    embedding = {"<cat-toy>": vectors(count)}
    for each in (pipe, reference):
        each.load_textual_inversion(embedding)
        each.load_textual_inversion({"x": vectors(2, seed=1)[0]}, token="sks_dog")
    # diffusers finds no further vectors of a token in capital letters, and finds those of others twice
    prompts = [*PROMPTS, "sks_dog photo"] if count == 1 else [PROMPTS[0], "<cat-toy>cat <cat-toy> sks_dog"]
    ours, negative = pipe.encode_prompt(prompts, negative_prompt="blurry <cat-toy>")
    theirs, also = reference.encode_prompt(prompts, "cpu", 1, True, negative_prompt=["blurry <cat-toy>"] * len(prompts))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(negative, also, atol=1e-5, rtol=0)
    assert not torch.allclose(ours[0], pipe.encode_prompt("a photo of a cat")[0][0], atol=0.1)
    made = [
        each(
            prompts[0],
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(3),
            output_type="np",
            negative_prompt="<cat-toy>",
        ).images
        for each in (pipe, reference)
    ]
    assert abs(made[0] - made[1]).max() < 1e-4


def test_a_pipeline_of_diffusers_teaches_our_text_encoder(folder: Path, reference: Any) -> None:
    from ddim.models import CLIPTextModel

    ours = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    before = ours.get_input_embeddings().weight.clone()
    reference.load_textual_inversion({"<cat-toy>": vectors(2)}, text_encoder=ours)
    table = ours.get_input_embeddings().weight
    assert torch.equal(table[: len(before)], before)
    assert torch.equal(table[reference.tokenizer.convert_tokens_to_ids(["<cat-toy>", "<cat-toy>_1"])], vectors(2))
    assert ours.config.vocab_size == len(table)
    assert ours.resize_token_embeddings(5).num_embeddings == 5


def test_prompts_are_converted_once(pipe: Any, reference: Any) -> None:
    for each in (pipe, reference):
        each.load_textual_inversion([{"<a>": vectors(3)}, {"bb7x": vectors(1)}])
    prompts = ["a photo of <a> and bb7x", "", "<a>, <a>"]
    converted = pipe.maybe_convert_prompt(prompts, pipe.tokenizer)
    assert converted == reference.maybe_convert_prompt(prompts, reference.tokenizer)
    assert converted[0] == "a photo of <a> <a>_1 <a>_2 and bb7x"
    assert pipe.maybe_convert_prompt(converted) == converted
    assert pipe.maybe_convert_prompt("<A> x") == "<A> <a>_1 <a>_2 x"
    assert torch.equal(pipe.encode_prompt(converted[0])[0], pipe.encode_prompt(prompts[0])[0])


def test_words_of_tokenizers_and_encoders_of_transformers(reference: Any, pipe: Any) -> None:
    mixed = StableDiffusionPipeline(**{**reference.components, "image_encoder": None})
    for each in (mixed, pipe):
        each.load_textual_inversion({"<a>": vectors(2)})
    assert mixed.text_encoder.config.vocab_size == pipe.text_encoder.config.vocab_size
    ours, theirs = (each.encode_prompt("a cat <a>")[0] for each in (pipe, mixed))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(TypeError, match="load the pipeline anew"):
        mixed.unload_textual_inversion()


# --- layouts ---------------------------------------------------------------------------------------------------------


def web_ui(count: int, name: str = "ink") -> dict[str, Any]:
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": torch.nn.Parameter(vectors(count))},
        "name": name,
        "step": 1500,
        "sd_checkpoint": "7460a6fa",
        "sd_checkpoint_name": None,
    }


@pytest.mark.parametrize(
    ("name", "stored", "token", "count"),
    [
        ("x.pt", web_ui(2), "ink", 2),
        ("style.pt", {**web_ui(2), "name": ""}, "style", 2),
        ("x.bin", {"<cat-toy>": vectors(1)[0]}, "<cat-toy>", 1),
        ("x.bin", {"<cat-toy>": vectors(2)}, "<cat-toy>", 2),
        ("x.safetensors", {"<cat-toy>": vectors(2)}, "<cat-toy>", 2),
        ("EasyNegative.safetensors", {"emb_params": vectors(2)}, "EasyNegative", 2),
    ],
)
def test_layouts(pipe: Any, tmp_path: Path, name: str, stored: Any, token: str, count: int) -> None:
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(stored, path)
    pipe.load_textual_inversion(path)
    row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids(token)]
    assert torch.equal(row, vectors(count)[0])
    pipe.load_textual_inversion(tmp_path, token="<again>")
    assert "<again>" in pipe.tokenizer.get_added_vocab()


def test_older_pickles(pipe: Any, tmp_path: Path) -> None:
    torch.save(web_ui(2), tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    pipe.load_textual_inversion(str(tmp_path), weight_name="x.pt", subfolder=None)
    assert pipe.tokenizer.get_added_vocab().keys() >= {"ink", "ink_1"}


def test_each_vector_of_a_tensor_may_have_its_token(pipe: Any, reference: Any) -> None:
    for each in (pipe, reference):
        each.load_textual_inversion(vectors(2), token=["<s0>", "<s1>"])
    ours, theirs = pipe.encode_prompt("<s1><s0>")[0], reference.encode_prompt("<s1><s0>", "cpu", 1, False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert pipe.maybe_convert_prompt("<s0>") == "<s0>"


# --- life ------------------------------------------------------------------------------------------------------------


def test_words_are_unloaded_bit_for_bit(pipe: Any) -> None:
    before, plain = state_of(pipe), pipe.encode_prompt(PROMPTS)[0]
    weight = pipe.text_encoder.get_input_embeddings().weight.clone()
    pipe.load_textual_inversion([{"<a>": vectors(2)}, {"<b>": vectors(3, seed=1)}, {"<c>": vectors(1, seed=2)}])
    both = pipe.encode_prompt(["<a> cat", "<b> <c>"])[0]
    pipe.unload_textual_inversion("<a>")
    assert torch.equal(pipe.encode_prompt("<b> <c>")[0][0], both[1])
    assert list(pipe.tokenizer.get_added_vocab())[-4:] == ["<b>", "<b>_1", "<b>_2", "<c>"]
    with pytest.raises(ValueError, match="<b>"):
        pipe.unload_textual_inversion(["<c>", "<a>"])
    assert "<c>" in pipe.tokenizer.get_added_vocab()
    pipe.load_textual_inversion({"<a>": vectors(2)})
    assert torch.equal(pipe.encode_prompt("<a> cat")[0][0], both[0])
    pipe.unload_textual_inversion()
    assert state_of(pipe) == before
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight, weight)
    assert torch.equal(pipe.encode_prompt(PROMPTS)[0], plain)


def test_a_saved_pipeline_keeps_its_words_here_and_in_diffusers(pipe: Any, tmp_path: Path) -> None:
    import diffusers

    pipe.load_textual_inversion([{"<a>": vectors(2)}, {"<b>": vectors(1, seed=1)}])
    pipe.save_pretrained(tmp_path)
    again: Any = ddim.DiffusionPipeline.from_pretrained(tmp_path)
    wanted = pipe.encode_prompt("<a> and <b>")[0]
    assert torch.equal(again.encode_prompt("<a> and <b>")[0], wanted)
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    torch.testing.assert_close(theirs.encode_prompt("<a> and <b>", "cpu", 1, False)[0], wanted, atol=1e-5, rtol=0)
    again.unload_textual_inversion("<a>")
    assert torch.equal(again.encode_prompt("cat <b>")[0], pipe.encode_prompt("cat <b>")[0])


def test_pipelines_that_share_the_text_encoder_share_the_words(pipe: Any) -> None:
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.load_textual_inversion({"<a>": vectors(2)})
    assert torch.equal(pipe.encode_prompt("<a>")[0], other.encode_prompt("<a>")[0])
    assert pipe.maybe_convert_prompt("<a>") == "<a> <a>_1"


def test_words_may_be_loaded_while_others_draw(pipe: Any) -> None:
    wanted, stop, wrong = pipe.encode_prompt("a photo of a red cat")[0], threading.Event(), []

    def draw() -> None:
        while not stop.is_set():
            try:
                if not torch.equal(pipe.encode_prompt("a photo of a red cat")[0], wanted):
                    wrong.append("another result")
                pipe.encode_prompt(["<w3> <w7>"])
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=draw) for _ in range(3)]
    loaders = [
        threading.Thread(target=pipe.load_textual_inversion, args=({f"<w{number}>": vectors(2, number)},))
        for number in range(8)
    ]
    for thread in [*threads, *loaders]:
        thread.start()
    for thread in loaders:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    for number in range(8):
        row = pipe.text_encoder.get_input_embeddings().weight[pipe.tokenizer.convert_tokens_to_ids(f"<w{number}>_1")]
        assert torch.equal(row, vectors(2, number)[1])


# The fast test beside it is test_changed_weights_are_seen of backends/test_backends.py.
@pytest.mark.slow
def test_a_converted_text_encoder_sees_new_words(pipe: Any) -> None:
    pytest.importorskip("openvino")
    pipe.accelerate("openvino", torch.float32)
    before = pipe.encode_prompt("a cat")[0]
    pipe.load_textual_inversion({"<a>": vectors(2)})
    found = pipe.encode_prompt(["a cat", "a <a>"])[0]
    assert "openvino" in pipe.backend.lower()
    torch.testing.assert_close(found[:1], before, atol=1e-3, rtol=0)
    pipe.accelerate("eager")
    torch.testing.assert_close(found, pipe.encode_prompt(["a cat", "a <a>"])[0], atol=1e-3, rtol=0)


def test_learnt_words_are_known(pipe: Any) -> None:
    pipe.words = WordList(frozenset({"photo"}))
    assert pipe.unknown_words("a photo of <cat-toy>") == {"cat": (), "toy": ()}
    pipe.load_textual_inversion({"<cat-toy>": vectors(2)})
    assert pipe.unknown_words(["a photo of <Cat-toy>", "dog"]) == {"dog": ()}


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def unchanged(pipe: Any) -> Iterator[Any]:
    """A pipeline that is looked at afterwards."""
    pipe.load_textual_inversion({"<there>": vectors(2)})
    before, embeds = state_of(pipe), pipe.encode_prompt("a <there> cat")[0]
    yield pipe
    assert state_of(pipe) == before
    assert torch.equal(pipe.encode_prompt("a <there> cat")[0], embeds)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"<a>": vectors(1, width=768)}, "768 numbers, as those for Stable Diffusion 1"),
        ({"<a>": vectors(1, width=1024)}, "1024 numbers, as those for Stable Diffusion 2; this text encoder has 32"),
        ({"clip_l": vectors(1, width=768), "clip_g": vectors(1, width=1280)}, "Stable Diffusion XL"),
        ({"clip_l": vectors(1), "clip_g": vectors(2, width=1280)}, "1 and 2 vectors"),
        ({"clip_l": vectors(1), "clip_g": vectors(1), "t5": vectors(1)}, "more in it"),
        ({"<a>": vectors(76)}, "76 vectors, and a text has 75"),
        ({"<a>": vectors(2).long()}, "int64"),
        ({"<a>": vectors(2) * float("nan")}, "not finite"),
        ({"<a>": vectors(2)[None]}, r"shape \(1, 2, 32\)"),
        ({"<a>": torch.zeros(0, 32)}, "shape"),
        ({"<a>": "x"}, "a str where vectors"),
        ({"<a>": torch.zeros(1, 32).to_sparse()}, "sparse"),
        ({"<a>": vectors(1), "<b>": vectors(1)}, "2 entries"),
        ({1: vectors(1)}, "no word as its token"),
        ({}, "no embedding"),
        ({"string_to_param": vectors(1)}, "string_to_param"),
        ({"string_to_param": {"*": vectors(1)}, "name": 3}, "no word as its name"),
    ],
)
def test_what_is_no_embedding_for_this_text_encoder(unchanged: Any, given: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        unchanged.load_textual_inversion(given, token="<x>" if "clip_l" in given else None)


@pytest.mark.parametrize(
    "token",
    [
        "<there>",
        "<THERE>",
        "<there>_1",
        "<there>_2",
        "cat</w>",
        "c",
        "",
        " <a>",
        "a\nb",
        "a  b",
        "\ud800",
        "x" * 201,
        3,
    ],
)
def test_tokens_that_cannot_be(unchanged: Any, token: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="token"):
        unchanged.load_textual_inversion({"<a>": vectors(1)}, token=token)


def test_of_several_all_are_loaded_or_none(unchanged: Any) -> None:
    for second, token in (({"<b>": vectors(1, width=5)}, None), ({"<b>": vectors(1)}, ["<b>", "<b>"])):
        with pytest.raises(ValueError if token else WeightsError):
            unchanged.load_textual_inversion([{"<a>": vectors(2)}, second], token=token)
    with pytest.raises(ValueError, match="1 tokens were given for 2"):
        unchanged.load_textual_inversion([{"<a>": vectors(2)}, {"<b>": vectors(1)}], token="<a>")
    with pytest.raises(ValueError, match="further vector of '<a>'"):
        unchanged.load_textual_inversion([{"<a>": vectors(1)}, {"<a>_1": vectors(1)}])
    with pytest.raises(ValueError, match="give token="):
        unchanged.load_textual_inversion(vectors(2))
    with pytest.raises(TypeError, match="no argument colour"):
        unchanged.load_textual_inversion(".", colour="red")


def test_half_precision_that_overflows(pipe: Any) -> None:
    pipe.text_encoder.to(torch.float16)
    with pytest.raises(WeightsError, match="not finite in torch"):
        pipe.load_textual_inversion({"<a>": vectors(1) * 1e6})
    pipe.load_textual_inversion({"<a>": vectors(1)})
    assert pipe.text_encoder.get_input_embeddings().weight.dtype == torch.float16


class Evil:
    def __reduce__(self) -> Any:
        return print, ("evil",)


def test_hostile_files(unchanged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nothing here is to ask the hub
    itself: dict[str, Any] = {"string_to_param": {"*": vectors(1)}, "name": "x"}
    itself["more"] = itself
    cases: dict[str, Any] = {
        "evil.pt": {"<a>": Evil()},
        "evil.bin": {"string_to_param": {"*": vectors(1)}, "name": Evil()},
        "expanded.pt": {"<a>": torch.zeros(1, 1).expand(70, 32)},
        "shared.pt": {
            "string_to_param": {"*": vectors(75)},
            "a": {str(i): vectors(75) for i in range(3)},
            "name": Evil(),
        },
    }
    for name, stored in cases.items():
        torch.save(stored, tmp_path / name)
        with pytest.raises((CheckpointError, WeightsError)):
            unchanged.load_textual_inversion(tmp_path / name)
    for name, raw in {"a.safetensors": b"\xff" * 100, "a.pt": b"PK\x03\x04", "a.bin": b"", "a.png": b"x"}.items():
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(CheckpointError, match=name):
            unchanged.load_textual_inversion(tmp_path / name)
    for source, options in (("nowhere", {}), (tmp_path, {}), (tmp_path, {"weight_name": "../x.pt"})):
        with pytest.raises(CheckpointError):
            unchanged.load_textual_inversion(source, **options)
    torch.save(itself, tmp_path / "itself.pt")
    with pytest.raises(ValueError, match="token"):
        unchanged.load_textual_inversion(tmp_path / "itself.pt", token="")


# --- Stable Diffusion XL ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """diffusers' pipeline, and the folder that it is in."""
    folder = tmp_path_factory.mktemp("xl")
    return tiny_xl(folder), folder


BOTH = {"clip_l": vectors(2), "clip_g": vectors(2, seed=1, width=24)}


def opened(folder: Path) -> Any:
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_both_text_encoders_learn_a_word(large: tuple[Any, Path], tmp_path: Path) -> None:
    reference, folder = large
    files = tmp_path / "diffusers"
    files.mkdir()
    save_file({"<toy>": BOTH["clip_l"]}, files / "learned_embeds.safetensors")
    save_file({"<toy>": BOTH["clip_g"]}, files / "learned_embeds_2.safetensors")
    save_file(BOTH, tmp_path / "toy.safetensors")
    for end, name in (("", "clip_l"), ("_2", "clip_g")):
        parts = {"text_encoder": f"text_encoder{end}", "tokenizer": f"tokenizer{end}"}
        given = {name: getattr(reference, part) for name, part in parts.items()}
        reference.load_textual_inversion(BOTH[name], token="<toy>", **given)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "negative_prompt": "<toy>"}
    prompt = "a photo of a <toy> cat"
    wanted = reference(prompt, generator=torch.Generator().manual_seed(1), **options).images
    for source, token in ((tmp_path / "toy.safetensors", "<toy>"), (BOTH, "<toy>"), (files, None)):
        pipe = opened(folder)
        plain = pipe(prompt, generator=torch.Generator().manual_seed(1), **options).images
        pipe.load_textual_inversion(source, token=token)
        found = pipe(prompt, generator=torch.Generator().manual_seed(1), **options).images
        assert abs(found - wanted).max() < 1e-4
        assert abs(plain - wanted).max() > 1e-3
    pipe.load_textual_inversion(tmp_path / "toy.safetensors")
    assert pipe.tokenizer_2.convert_tokens_to_ids("toy_1") == len(pipe.tokenizer_2) - 1
    pipe.save_pretrained(tmp_path / "saved")
    again = opened(tmp_path / "saved")
    assert torch.equal(again.encode_prompt("toy")[0], pipe.encode_prompt("toy")[0])
    pipe.unload_textual_inversion()
    assert abs(pipe(prompt, generator=torch.Generator().manual_seed(1), **options).images - plain).max() < 1e-6


def test_one_of_two_text_encoders(large: tuple[Any, Path]) -> None:
    pipe = opened(large[1])
    before = [len(tokenizer) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    with pytest.raises(WeightsError, match="has vectors of 24 numbers; this text encoder has 32"):
        pipe.load_textual_inversion({"<a>": BOTH["clip_g"]})
    with pytest.raises(WeightsError, match="7 numbers"):
        pipe.load_textual_inversion({"clip_l": vectors(1), "clip_g": vectors(1, width=7)}, token="<a>")
    assert before == [len(tokenizer) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
    with pytest.warns(UserWarning, match="one of the two text encoders"):
        pipe.load_textual_inversion({"<a>": BOTH["clip_l"]})
    assert len(pipe.tokenizer_2) == before[1]
    pipe.load_textual_inversion(BOTH, "<b>", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    assert [len(tokenizer) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)] == [before[0] + 2, before[1] + 2]
    pipe.unload_textual_inversion(["<a>", "<b>"])
    assert before == [len(tokenizer) for tokenizer in (pipe.tokenizer, pipe.tokenizer_2)]
