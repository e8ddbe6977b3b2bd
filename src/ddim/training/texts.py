"""What a U-Net is told of captions in training: by one text encoder, or by the two of Stable Diffusion XL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ddim.models.tokenizer import CLIPTokenizer
from ddim.pipelines.prompts import Encoded

# Where the tokens of each text encoder are in a batch.
IDS = {"text_encoder": "ids", "text_encoder_2": "ids_2"}
SAID = "said"  # in a batch, 1 for a caption and 0 for none, in whose place zeros are told


class Texts:
    """The tokenizers of a pipeline, by the names of their text encoders, and which layer of these is looked at.

    Stable Diffusion 1 and 2 look at the last layer of their encoder. Stable Diffusion XL looks at the last layer but
    one of both, before the final norm, and is told the second encoder's vector of the text.

    Args:
        tokenizers: of each text encoder.
        zeros_for_none: the empty text stands for none, of which a model of SDXL is told zeros.
    """

    def __init__(self, tokenizers: Mapping[str, CLIPTokenizer], zeros_for_none: bool = False) -> None:
        self.tokenizers = dict(tokenizers)
        self.zeros_for_none = zeros_for_none

    @property
    def is_xl(self) -> bool:
        """Whether there are two text encoders."""
        return "text_encoder_2" in self.tokenizers

    def tokens(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The tokens of b captions for each encoder, (b s), by their names in a batch."""
        found = {IDS[name]: each.ids([*captions], warn=False) for name, each in self.tokenizers.items()}
        if self.zeros_for_none:
            found[SAID] = torch.tensor([float(caption != "") for caption in captions])
        return found

    def encode(self, encoders: Mapping[str, nn.Module], batch: Mapping[str, Tensor]) -> Encoded:
        """What the encoders, by their names, make of the tokens in a batch; only of SDXL with the texts' vectors."""
        if not self.is_xl:
            return Encoded(encoders["text_encoder"](batch["ids"])[0], None)
        states: list[Tensor] = []
        given: Any = None
        for name in self.tokenizers:
            given = encoders[name](batch[IDS[name]], output_hidden_states=True)
            states.append(given.hidden_states[-2])
        embeds, pooled = torch.cat(states, dim=2), given.text_embeds
        if self.zeros_for_none:
            said = batch[SAID].to(embeds)
            embeds, pooled = embeds * said[:, None, None], pooled * said[:, None].to(pooled)
        return Encoded(embeds, pooled)
