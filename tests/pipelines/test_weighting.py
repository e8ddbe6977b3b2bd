"""Embeddings of weighted prompts: against AUTOMATIC1111's formulas, written out here, and against compel itself."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_sd import tiny_reference
from tiny_xl import tiny_xl
from torch import Tensor

import ddim
from ddim.errors import ConfigError
from ddim.pipelines import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from ddim.pipelines.weighting import length_needed

WORDS = "photo cat dog stars red blue bad".split()  # of one token each


@pytest.fixture(scope="module", params=[1, 2], ids=["SD 1", "SD 2"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """diffusers' pipeline and ours; version 2 fills texts up with another token than the end."""
    folder = tmp_path_factory.mktemp(f"sd{request.param}")
    reference = tiny_reference(folder, request.param)
    for parameter in reference.text_encoder.text_model.final_layer_norm.parameters():
        torch.nn.init.uniform_(parameter)  # of a norm that was never trained, the mean is zero
    reference.save_pretrained(folder)
    pipe: StableDiffusionPipeline = ddim.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return reference, pipe


def rows(reference: Any, words: list[list[str]]) -> Tensor:
    """The ids of chunks of words of one token each."""
    tokenizer, made = reference.tokenizer, []
    for chunk in words:
        ids = [tokenizer.bos_token_id, *tokenizer(" ".join(chunk), add_special_tokens=False).input_ids]
        ids.append(tokenizer.eos_token_id)
        made.append(ids + [tokenizer.pad_token_id] * (77 - len(ids)))
    return torch.tensor(made)


@torch.no_grad()
def by_hand(reference: Any, words: list[list[str]], weights: list[dict[int, float]]) -> Tensor:
    """The web UI's embeddings of chunks, in which the tokens at some places weigh more or less."""
    made = []
    for row, weigh in zip(rows(reference, words), weights, strict=True):
        z = reference.text_encoder(row[None])[0][0]
        factor = torch.ones(77)
        for place, weight in weigh.items():
            factor[place] = weight
        weighted = z * factor[:, None]
        made.append(weighted * (z.mean() / weighted.mean()))
    return torch.cat(made)


def test_the_web_ui_multiplies_and_restores_the_mean(both: Any) -> None:
    reference, pipe = both
    wanted = by_hand(reference, [["red", "cat", "photo"]], [{1: 1.3, 2: 1.1, 3: 1 / 1.1}])
    found, negative = pipe.encode_prompt("(red:1.3) (cat) [photo]", negative_prompt="(blurry:0.5)", weights="a1111")
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(negative[0], by_hand(reference, [["blurry"]], [{1: 0.5}]), atol=1e-5, rtol=1e-5)
    for plain in ("a photo of a cat", r"a photo of a \(cat\)"):
        wanted = pipe.encode_prompt(plain.replace("\\", ""))[0]
        assert torch.equal(pipe.encode_prompt(plain, weights="a1111")[0], wanted)
    assert torch.equal(pipe.encode_prompt("(cat:1.3)")[0], pipe.encode_prompt("( cat : 1.3 )")[0])


def test_long_prompts_have_chunks_and_both_sides_as_many(both: Any) -> None:
    reference, pipe = both
    words = (WORDS * 30)[:160]
    words[150] = "(red:1.5)"
    chunks = [words[:75], words[75:150], ["red", *words[151:]]]
    wanted = by_hand(reference, chunks, [{}, {}, {1: 1.5}])
    found, negative = pipe.encode_prompt(" ".join(words), negative_prompt="bad", weights="a1111")
    assert found.shape == negative.shape == (1, 3 * 77, 32)
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(negative[0], by_hand(reference, [["bad"], [], []], [{}] * 3), atol=1e-5, rtol=1e-5)
    found, negative = pipe.encode_prompt(["cat", "red dog"], negative_prompt=" ".join(words), weights="a1111")
    assert found.shape == negative.shape == (2, 3 * 77, 32)
    torch.testing.assert_close(found[1], by_hand(reference, [["red", "dog"], [], []], [{}] * 3), atol=1e-5, rtol=1e-5)
    drawn = [
        pipe("cat", prompt_embeds=None, negative_prompt=" ".join(words), weights="a1111", seed=1, num_inference_steps=2)
        for _ in range(2)
    ]
    assert drawn[0].images[0].tobytes() == drawn[1].images[0].tobytes()


def test_a_break_and_a_comma_end_a_chunk(both: Any) -> None:
    reference, pipe = both
    wanted = by_hand(reference, [["red", "cat"], ["stars"]], [{}, {1: 1.1}])
    torch.testing.assert_close(
        pipe.encode_prompt("red cat BREAK (stars)", weights="a1111")[0][0], wanted, atol=1e-5, rtol=1e-5
    )
    for behind, moved in ((19, True), (20, False)):  # tokens behind the last comma that fits
        words = ["cat"] * (74 - behind) + [","] + ["dog"] * (behind + 1)
        first = words[: 75 - behind] if moved else words[:75]
        wanted = by_hand(reference, [first, words[len(first) :]], [{}, {}])
        found = pipe.encode_prompt(" ".join(words), weights="a1111")[0]
        torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    assert length_needed("a1111", pipe.tokenizer, ["cat " * 74 + ",", "red"]) == 77
    assert length_needed("a1111", pipe.tokenizer, ["BREAK BREAK"]) == 2 * 77


def test_a_word_of_several_vectors_is_weighed_and_never_divided(both: Any) -> None:
    import copy

    _, pipe = both
    own = {"tokenizer": copy.deepcopy(pipe.tokenizer), "text_encoder": copy.deepcopy(pipe.text_encoder)}
    pipe = StableDiffusionPipeline.from_pipe(pipe, **own)
    vectors = torch.randn(3, 32)
    pipe.load_textual_inversion([{"<a>": vectors}])
    one = pipe.encode_prompt("(<a>:1.2) cat", weights="a1111")[0]
    assert torch.equal(one, pipe.encode_prompt("(<a> <a>_1 <a>_2:1.2) cat", weights="a1111")[0])
    assert not torch.allclose(one, pipe.encode_prompt("<a> cat")[0])
    divided = pipe.encode_prompt("cat " * 73 + "<a>", weights="a1111")[0]
    torch.testing.assert_close(divided[:, :77], pipe.encode_prompt("cat " * 73)[0])
    torch.testing.assert_close(divided[:, 77:], pipe.encode_prompt("<a>")[0])


def test_clip_skip_is_counted_from_another_number(both: Any) -> None:
    """The web UI's "Clip skip: 2" is the layer before the last one, after the final norm."""
    reference, pipe = both
    ids = rows(reference, [["red", "cat"]])
    with torch.no_grad():
        states = reference.text_encoder(ids, output_hidden_states=True).hidden_states[-2]
        z = reference.text_encoder.text_model.final_layer_norm(states)
    z = z * (z.mean() / (z.mean() * 77 / 77))
    found = pipe.encode_prompt("red cat", clip_skip=1, weights="a1111")[0]
    torch.testing.assert_close(found, z, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def compel_by_hand(reference: Any, words: list[str], weights: list[float]) -> Tensor:
    """compel's embeddings of words of one token each, from the formulas of docs/prompts.md."""
    encoder = reference.text_encoder
    ids = rows(reference, [words])
    empty = encoder(rows(reference, [[]]))[0]
    factor = torch.ones(77)
    factor[1 : 1 + len(weights)] = torch.tensor(weights)
    made, shares = [], []
    for hidden in [None, *(place for place, weight in enumerate(weights) if weight < 1)]:
        mask = torch.ones_like(ids)
        if hidden is not None:
            mask[0, 1 + hidden] = 0
        z = encoder(ids, attention_mask=mask)[0]
        made.append(empty + (z - empty) * factor[:, None])
        shares.append(1.0 if hidden is None else math.tan((1 - weights[hidden]) * math.pi / 2))
    return sum(z * share for z, share in zip(made, shares, strict=True)) / sum(shares)  # type: ignore[return-value]


def test_compel_goes_away_from_the_empty_text_and_towards_that_without_a_word(both: Any) -> None:
    reference, pipe = both
    found = pipe.encode_prompt("red++ cat- (photo)0.5 dog", negative_prompt="blurry+", weights="compel")
    wanted = compel_by_hand(reference, ["red", "cat", "photo", "dog"], [1.1**2, 0.9, 0.5, 1])
    torch.testing.assert_close(found[0], wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1], compel_by_hand(reference, ["blurry"], [1.1]), atol=1e-5, rtol=1e-5)
    gone = pipe.encode_prompt("red (cat)0 dog", weights="compel")[0]
    assert gone.isfinite().all()
    assert torch.equal(pipe.encode_prompt("red (cat) dog", weights="compel")[0], pipe.encode_prompt("red cat dog")[0])
    with pytest.warns(UserWarning, match="was cut"):
        assert pipe.encode_prompt("cat+ " * 90, weights="compel")[0].shape == (1, 77, 32)


@pytest.mark.parametrize(
    "prompt",
    [
        "a photo of a red++ cat",
        "a (red cat)1.4 on stars--",
        "a (photo of (red)++ cat)0.6, stars",
        "blue- castle++ (smoke)0.3, (bad)0",
        'a "red cat"+++ photo',
        'a "red photo"- dog-- cat--, (blue).5 (castle).5',
        "",
    ],
)
def test_compel_itself(both: Any, prompt: str) -> None:
    """`pip install --no-deps compel pyparsing` puts it there; 2.5.1 was compared."""
    compel = pytest.importorskip("compel")
    reference, pipe = both
    theirs = compel.Compel(tokenizer=reference.tokenizer, text_encoder=reference.text_encoder)(prompt)
    torch.testing.assert_close(pipe.encode_prompt(prompt, weights="compel")[0], theirs, atol=1e-4, rtol=1e-4)


def test_who_reads_weights(both: Any) -> None:
    """A call, or whatever the pipeline does when it says so; nobody else."""
    _, pipe = both
    plain, weighted = pipe.encode_prompt("(red:1.5) cat")[0], pipe.encode_prompt("(red:1.5) cat", weights="a1111")[0]
    assert not torch.allclose(plain, weighted)
    plan = pipe.scheduler.plan(2)
    denoisers = [pipe.denoiser(plan, 1, prompt="(red:1.5) cat", weights=each) for each in (None, "a1111")]
    assert [torch.equal(found.embeds, each) for found, each in zip(denoisers, (plain, weighted), strict=True)] == [1, 1]
    other = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    other.weights = "a1111"
    assert torch.equal(other.encode_prompt("(red:1.5) cat")[0], weighted)
    assert torch.equal(other.embed(["(red:1.5) cat"]), weighted)
    assert torch.equal(StableDiffusionPipeline.from_pipe(other).embed(["(red:1.5) cat"]), weighted)
    assert pipe.weights is None


def test_what_cannot_be(both: Any) -> None:
    _, pipe = both
    embeds = pipe.encode_prompt("cat")[0]
    for options, says in (
        ({"prompt": "(a:200)", "weights": "a1111"}, "from -100 to 100"),
        ({"prompt": "a", "weights": "webui"}, "none of"),
        ({"prompt": "cat " * 75 * 33, "weights": "a1111"}, "at most 32 chunks"),
        ({"prompt": "cat " * 80, "weights": "a1111", "negative_prompt_embeds": embeds}, "2 chunks"),
        ({"prompt_embeds": embeds, "negative_prompt": "cat " * 80, "weights": "a1111"}, "2 chunks"),
    ):
        with pytest.raises(ConfigError, match=says):
            pipe(num_inference_steps=1, **options)


def test_half_precision_stays_near(both: Any, tmp_path: Path) -> None:
    _, pipe = both
    pipe.save_pretrained(tmp_path)
    half = ddim.DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for weights, prompt in (("a1111", "(red:1.4) cat"), ("compel", "red++ cat--")):
        found = half.encode_prompt(prompt, weights=weights)[0]  # type: ignore[attr-defined]
        wanted = pipe.encode_prompt(prompt, weights=weights)[0]
        assert found.dtype == torch.bfloat16
        assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


# --- Stable Diffusion XL ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("xl")
    reference = tiny_xl(folder)
    pipe = ddim.DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return reference, pipe


@torch.no_grad()
def xl_by_hand(reference: Any, chunks: list[tuple[str, dict[int, float]]]) -> tuple[Tensor, Tensor]:
    """What the web UI makes of chunks: each encoder's layer before the last, weighted; and the first chunk's vector."""
    sides, pooled = [], None
    for tokenizer, encoder in (
        (reference.tokenizer, reference.text_encoder),
        (reference.tokenizer_2, reference.text_encoder_2),
    ):
        made = []
        for number, (text, weigh) in enumerate(chunks):
            ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
            given = encoder(ids, output_hidden_states=True)
            factor = torch.ones(77)
            for place, weight in weigh.items():
                factor[place] = weight
            z = given.hidden_states[-2]
            weighted = z * factor[:, None]
            made.append(weighted * (z.mean() / weighted.mean()))
            pooled = given[0] if not number else pooled
        sides.append(torch.cat(made, dim=1))
    assert pooled is not None
    return torch.cat(sides, dim=2), pooled


def test_both_text_encoders_are_weighted_and_the_vector_is_not(large: tuple[Any, Any]) -> None:
    reference, pipe = large
    found = pipe.encode_prompt("(red:1.4) cat BREAK [dog]", negative_prompt="(bad:0.5)", weights="a1111")
    embeds, pooled = xl_by_hand(reference, [("red cat", {1: 1.4}), ("dog", {1: 1 / 1.1})])
    negative, negative_pooled = xl_by_hand(reference, [("bad", {1: 0.5}), ("", {})])
    for mine, wanted in zip(found, (embeds, negative, pooled, negative_pooled), strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)
    options: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np", "seed": 1, "negative_prompt": "bad"}
    given = dict(
        zip(
            ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
            found,
            strict=True,
        )
    )
    plain = pipe("(red:1.4) cat", **options).images
    weighted = pipe("(red:1.4) cat BREAK [dog]", **{**options, "negative_prompt": "(bad:0.5)"}, weights="a1111").images
    del options["negative_prompt"]
    assert abs(weighted - pipe(**given, **options).images).max() < 1e-5
    assert abs(weighted - plain).max() > 1e-3


def test_compel_itself_on_both_text_encoders(large: tuple[Any, Any]) -> None:
    compel = pytest.importorskip("compel")
    reference, pipe = large
    prompt = "a (red)++ cat-- and (a dog)0.4"
    theirs = compel.CompelForSDXL(reference)(prompt)
    found = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, weights="compel")
    torch.testing.assert_close(found[0], theirs.embeds, atol=1e-4, rtol=1e-4)
    plain = pipe.encode_prompt("a red cat and a dog", do_classifier_free_guidance=False)
    torch.testing.assert_close(found[2], plain[2], atol=1e-5, rtol=1e-5)
