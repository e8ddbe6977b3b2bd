"""Training a new word (textual inversion, Gal et al. 2022): its vectors alone, in a model that stays as it is.

The text encoder looks the word's tokens up in a table of their own, which is all that is trained. So the optimizer's
memory is that of some vectors, and no other token can change. Texts are made of templates, since pictures of one thing
need no captions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ddim.checkpoint import Savable, Saving
from ddim.checkpoint.files import save_tensors
from ddim.checkpoint.textual_inversion import EMBEDS, EMBEDS_2, LearnedWord
from ddim.errors import ConfigError
from ddim.pipelines.added_tokens import with_all_vectors
from ddim.pipelines.textual_inversion import Encoder, learn
from ddim.training.autoencoder import pictures
from ddim.training.parts import pretrained_parts
from ddim.training.settings import TextualInversionSettings
from ddim.training.text_to_image import TextToImage

# What is said of a picture with the word in the place of {}.
TEMPLATES = {
    "object": (
        "{}",
        "a {}",
        "the {}",
        "one {}",
        "this is a {}",
        "a photo of a {}",
        "a picture of the {}",
        "a close view of a {}",
        "a {} seen from near by",
        "a {} in the middle",
        "a bright photo of the {}",
        "a dark photo of the {}",
        "a good picture of a {}",
        "a small picture of a {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a drawing in the style of {}",
        "a painting by {}",
        "something drawn by {}",
        "a work in the manner of {}",
        "art that looks like {}",
        "a detail in the style of {}",
        "a large picture in the style of {}",
        "a bright picture in the style of {}",
        "a dark picture in the style of {}",
    ),
}
MOST_TEMPLATES = 10_000


class Vectors(nn.Module):
    """The vectors of the new word, (n d): all that is trained."""

    def __init__(self, vectors: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(vectors.detach().clone().float())


class Joined(nn.Embedding):
    """The table of a text encoder, of which the rows of the new word are elsewhere.

    Args:
        table: the vectors of all tokens, (v d).
        first: the id of the word's first token; the others follow.
        vectors: those of the word. They are no part of this module, and so of no network that stays as it is.
    """

    def __init__(self, table: nn.Embedding, first: int, vectors: Vectors) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = table.num_embeddings, table.embedding_dim
        self.weight, self.first, self.elsewhere = table.weight, first, (vectors,)

    def forward(self, input: Tensor) -> Tensor:
        known = nn.functional.embedding(input, self.weight)
        (vectors,) = self.elsewhere
        place = input - self.first
        count = len(vectors.weight)
        new = nn.functional.embedding(place.clamp(0, count - 1), vectors.weight.to(known.dtype))
        return torch.where(((place >= 0) & (place < count))[..., None], new, known)


class Word(Savable):
    """What a run saves: the word, for each text encoder. `pipe` makes a pipeline that knows it, for pictures."""

    def __init__(self, pipe: Callable[[], Any], token: str, vectors: Sequence[Tensor]) -> None:
        self.pipe, self.token, self.vectors = pipe, token, vectors

    def write(self, folder: Path, saving: Saving) -> None:
        for name, vectors in zip((EMBEDS, EMBEDS_2), self.vectors, strict=False):
            save_tensors(folder / name, {self.token: vectors})


class TextualInversion(TextToImage):
    """The loss of text to image, of a new word's vectors."""

    settings: TextualInversionSettings

    def __init__(self, settings: TextualInversionSettings) -> None:
        parts = pretrained_parts(settings)
        token = settings.placeholder_token
        encoders = {name: Encoder(parts.tokenizers[name], network) for name, network in parts.encoders.items()}
        begun = {name: initial_vectors(settings, encoder) for name, encoder in encoders.items()}
        word = LearnedWord(token, dict(enumerate(begun.values())), len(begun) > 1, "placeholder_token")
        try:
            learn([word], [*encoders.values()])
        except ValueError as error:
            said = str(error).replace("give another token=", "give another placeholder_token")
            raise ConfigError(said.replace("give token=", "give another placeholder_token")) from error
        said = with_all_vectors(token, parts.tokenizer)
        texts = tuple(template.replace("{}", said) for template in templates(settings))
        source = pictures(settings)
        source = dataclasses.replace(source, captions=[texts] * source.count)
        parts.unet.requires_grad_(False)
        super().__init__(settings, source, parts, trains_text=False)
        self.words = parts.words  # the captions are ours, and teach no other word
        vectors = {name: Vectors(rows) for name, rows in begun.items()}
        self.networks["word"] = nn.ModuleDict(vectors)
        self.first = {name: int(each.tokenizer.convert_tokens_to_ids(token)) for name, each in encoders.items()}
        for name, encoder in encoders.items():
            joined = Joined(encoder.table, self.first[name], vectors[name])
            encoder.network.text_model.embeddings.token_embedding = joined

    @property
    def learns_texts(self) -> bool:
        return True

    def finished(self, networks: nn.ModuleDict) -> Word:
        learnt: Any = networks["word"]
        vectors = [each.weight.detach() for each in learnt.values()]
        return Word(lambda: self.pipeline(networks), self.settings.placeholder_token, vectors)

    def pipeline(self, networks: nn.ModuleDict) -> Any:
        pipe = super().pipeline(nn.ModuleDict({"unet": networks["unet"]}))
        learnt: Any = networks["word"]
        for name, each in learnt.items():
            know(getattr(pipe, name), self.first[name], each.weight.detach())
        return pipe

    def preview(self, finished: Any, most: int | None = None) -> Image.Image:
        return super().preview(finished.pipe(), most)

    def prompts(self) -> list[str]:
        if self.settings.validation_prompts:
            return super().prompts()
        assert self.source.captions is not None
        return list(self.source.captions[0][:4])

    def next_command(self, folder: str) -> list[str]:
        base = str(self.settings.pretrained_model_name_or_path)
        prompt = templates(self.settings)[0].replace("{}", self.settings.placeholder_token)
        given = ["--model", base, "--textual-inversion", folder, "--out", f"{folder}/try.png"]
        return ["ddim", "sample", prompt, *given]


def templates(settings: TextualInversionSettings) -> tuple[str, ...]:
    """What is said of the pictures, with {} for the word.

    Raises:
        ConfigError: the file of templates has none, one without {}, or too many.
    """
    if settings.templates_file is None:
        return TEMPLATES[settings.learnable_property]
    try:
        lines = Path(settings.templates_file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"templates_file={settings.templates_file} cannot be read as text: {error}") from error
    found = tuple(line.strip() for line in lines if line.strip())
    wrong = [line for line in found if "{}" not in line]
    if not found or wrong or len(found) > MOST_TEMPLATES:
        why = f"{wrong[0]!r:.100} has none" if wrong else f"it has {len(found)} lines"
        raise ConfigError(
            f"templates_file={settings.templates_file} must have from 1 to {MOST_TEMPLATES:,} lines, each with "
            f"{{}} where the word is to stand, and {why}"
        )
    return found


def initial_vectors(settings: TextualInversionSettings, encoder: Encoder) -> Tensor:
    """What the word's vectors are at first: those of the tokens that the run is to begin with, in turn, (n d).

    Raises:
        ConfigError: there are more tokens than vectors, or none.
    """
    ids = encoder.tokenizer(settings.initializer_token, add_special_tokens=False).input_ids
    if not 1 <= len(ids) <= max(1, settings.num_vectors):
        raise ConfigError(
            f"initializer_token={settings.initializer_token!r:.50} is {len(ids)} tokens of this model, and must be "
            f"from 1 to num_vectors={settings.num_vectors}: give a simpler word, or more vectors"
        )
    table = encoder.table.weight.detach()
    return table[[ids[number % len(ids)] for number in range(settings.num_vectors)]].float()


def know(encoder: Any, first: int, vectors: Tensor) -> None:
    """Give a text encoder these rows in its table of tokens, from the first on, whether it has some there or not."""
    table = encoder.get_input_embeddings().weight.detach()
    table = torch.cat([table[:first], vectors.to(table), table[first + len(vectors) :]])
    rows = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    encoder.set_input_embeddings(rows.requires_grad_(False))
