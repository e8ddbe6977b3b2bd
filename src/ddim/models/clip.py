"""CLIP's text encoder (Radford et al. 2021): from token ids to the vectors that Stable Diffusion's U-Net looks at.

With its projection, it also gives each text as one vector, in the space that CLIP's pictures share.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ddim.checkpoint import PretrainedModel
from ddim.checkpoint.config import register_to_config
from ddim.errors import ConfigError
from ddim.models.activations import activation
from ddim.models.attention import attention
from ddim.models.core import HasCore
from ddim.models.recompute import CanRecompute, Recomputing
from ddim.step import Output

_OLD_EOS = 2  # what configs say for `eos_token_id` if transformers before 4.31 wrote them, whatever the true id is


@dataclass(eq=False)
class CLIPTextOutput(Output):
    """What the encoder returns.

    Attributes:
        last_hidden_state: the last layer's output after the final norm, (b s d).
        pooler_output: its vector at each text's end token, (b d).
        hidden_states: the embeddings and then every layer's output before the final norm, each (b s d); None unless
            they were asked for.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class CLIPTextProjectionOutput(Output):
    """What the encoder with a projection returns.

    Attributes:
        text_embeds: each text as one vector: the projection of the final norm's output at its end token, (b p).
        last_hidden_state, hidden_states: see `CLIPTextOutput`.
    """

    text_embeds: Tensor
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None


class CLIPAttention(nn.Module):
    """Self-attention of each token to itself and to those before it: (b s d) -> (b s d)."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        def split(projected: Tensor) -> Tensor:
            return projected.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (b heads s d/heads)

        heads = attention(
            split(self.q_proj(x)),
            split(self.k_proj(x)),
            split(self.v_proj(x)),
            mask,
            dropout=self.dropout,
            is_causal=mask is None,
            training=self.training,
        )
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))  # (b heads s d/heads) -> (b s d)
        return out


class CLIPMLP(nn.Module):
    """Two linear layers with an activation in between: (b s d) -> (b s d)."""

    def __init__(self, dim: int, inner: int, act_fn: str) -> None:
        super().__init__()
        self.activation_fn = activation(act_fn)
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation_fn(self.fc1(x)))
        return out


class CLIPEncoderLayer(nn.Module):
    """Attention and a feed-forward layer, each added to its input: (b s d) -> (b s d)."""

    def __init__(self, dim: int, heads: int, inner: int, act_fn: str, eps: float, dropout: float) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(dim, eps)
        self.self_attn = CLIPAttention(dim, heads, dropout)
        self.layer_norm2 = nn.LayerNorm(dim, eps)
        self.mlp = CLIPMLP(dim, inner, act_fn)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x), mask)
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class CLIPTextEmbeddings(nn.Module):
    """A vector for each token and one for each position: (b s) -> (b s d)."""

    def __init__(self, vocabulary: int, dim: int, positions: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, dim)
        self.position_embedding = nn.Embedding(positions, dim)

    def forward(self, input_ids: Tensor) -> Tensor:
        length, positions = input_ids.shape[1], self.position_embedding.num_embeddings
        if length > positions:
            raise ValueError(
                f"{length} tokens are more than the text encoder's {positions} positions: cut the text to {positions}"
            )
        try:
            tokens: Tensor = self.token_embedding(input_ids)
        except IndexError as error:
            raise ValueError(f"token ids must be in 0..{self.token_embedding.num_embeddings - 1}") from error
        return tokens + self.position_embedding.weight[:length]


class CLIPEncoder(Recomputing):
    """All layers, one after another."""

    def __init__(self, layers: list[CLIPEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The input and then every layer's output, each (b s d)."""
        states = [x]
        for layer in self.layers:
            states.append(self.run(layer, states[-1], mask))
        return states


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers and final norm, under the names that they have in weight files."""

    def __init__(self, embeddings: CLIPTextEmbeddings, encoder: CLIPEncoder, dim: int, eps: float) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.final_layer_norm = nn.LayerNorm(dim, eps)


class CLIPTextModel(HasCore, CanRecompute, PretrainedModel):
    """CLIP's text encoder in transformers' layout; weights may be named with or without `text_model.` in front.

    Args:
        vocab_size: the number of tokens.
        hidden_size: channels of a token's vector.
        intermediate_size: channels between the two feed-forward layers.
        num_hidden_layers: the number of layers.
        num_attention_heads: the number of heads, which divide `hidden_size` among them.
        max_position_embeddings: the longest text, in tokens.
        hidden_act: "quick_gelu" (OpenAI's weights), "gelu" (OpenCLIP's) or any other of `ACTIVATIONS`.
        layer_norm_eps: added to the norms' variance.
        attention_dropout: the share of attention weights that is dropped in training.
        initializer_factor: scales the initial weights.
        eos_token_id: the token that ends a text. 2 means "the token with the highest id", because old configs say 2
            although the end token has another id.
        projection_dim, initializer_range, pad_token_id, bos_token_id: without effect here; kept in the config.

    Raises:
        ConfigError: the heads do not divide `hidden_size`, or the activation is unknown.
    """

    weights_name = "model.safetensors"
    foreign_keys = frozenset({"architectures", "dropout", "dtype", "model_type", "torch_dtype", "transformers_version"})

    @register_to_config
    def __init__(
        self,
        vocab_size: int = 49408,
        hidden_size: int = 512,
        intermediate_size: int = 2048,
        projection_dim: int | None = 512,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 8,
        max_position_embeddings: int = 77,
        hidden_act: str = "quick_gelu",
        layer_norm_eps: float = 1e-5,
        attention_dropout: float = 0.0,
        initializer_range: float = 0.02,
        initializer_factor: float = 1.0,
        pad_token_id: int | None = 1,
        bos_token_id: int | None = 49406,
        eos_token_id: int = 49407,
    ) -> None:
        super().__init__()
        if hidden_size % num_attention_heads:
            raise ConfigError(f"hidden_size={hidden_size} is no multiple of num_attention_heads={num_attention_heads}")
        self.eos_token_id = eos_token_id
        layer = (hidden_size, num_attention_heads, intermediate_size, hidden_act, layer_norm_eps, attention_dropout)
        self.text_model = CLIPTextTransformer(
            CLIPTextEmbeddings(vocab_size, hidden_size, max_position_embeddings),
            CLIPEncoder([CLIPEncoderLayer(*layer) for _ in range(num_hidden_layers)]),
            hidden_size,
            layer_norm_eps,
        )
        self.build_head(hidden_size, projection_dim)
        self._initialise(hidden_size, num_hidden_layers, initializer_factor)

    def build_head(self, hidden_size: int, projection_dim: int | None) -> None:
        """Make what comes after the final norm, which is nothing here."""

    @torch.no_grad()
    def _initialise(self, dim: int, layers: int, factor: float) -> None:
        """CLIP's initial weights: their deviations are such that the sum of all layers has about the scale of one."""
        into_residual = factor * dim**-0.5 * (2 * layers) ** -0.5
        deviations = {
            "embedding.weight": factor * 0.02,
            "q_proj.weight": into_residual,
            "k_proj.weight": into_residual,
            "v_proj.weight": into_residual,
            "out_proj.weight": factor * dim**-0.5,
            "fc1.weight": factor * (2 * dim) ** -0.5,
            "fc2.weight": into_residual,
            "text_projection.weight": factor * dim**-0.5,
        }
        for name, parameter in self.named_parameters():
            deviation = next((value for suffix, value in deviations.items() if name.endswith(suffix)), None)
            if deviation is not None:
                parameter.normal_(std=deviation)
            elif "norm" not in name:
                parameter.zero_()  # biases

    def get_input_embeddings(self) -> nn.Embedding:
        """The vectors of all tokens."""
        return self.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Take other vectors of all tokens, (v d)."""
        self.text_model.embeddings.token_embedding = value
        self.register_to_config(vocab_size=value.num_embeddings)

    @torch.no_grad()
    def resize_token_embeddings(self, new_num_tokens: int) -> nn.Embedding:
        """Have vectors for so many tokens: the last ones are cut off, or new ones are added that are random."""
        old = self.get_input_embeddings()
        new = nn.Embedding(new_num_tokens, old.embedding_dim, device=old.weight.device, dtype=old.weight.dtype)
        new.weight.normal_(std=0.02 * self.config.initializer_factor)
        kept = min(new_num_tokens, old.num_embeddings)
        new.weight[:kept] = old.weight[:kept]
        self.set_input_embeddings(new.requires_grad_(old.weight.requires_grad))
        return new

    @classmethod
    def convert_key(cls, key: str) -> str | None:
        key = key if key.startswith("text_model.") else f"text_model.{key}"
        # Old files hold the positions 0, 1, 2, … as a tensor, which no network needs.
        return None if key == "text_model.embeddings.position_ids" else key

    def to_json_string(self) -> str:
        """The config as transformers writes it."""
        values = {key: value for key, value in self.config.items() if not key.startswith("_") and key != "torch_dtype"}
        # Without "float32", transformers 5 would load half-precision weights in half precision, beside a float32 U-Net.
        values |= {"architectures": [type(self).__name__], "dtype": "float32", "model_type": "clip_text_model"}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def core(self, *inputs: Tensor) -> Tensor:
        """The last hidden state (b s d) of tokens (b s), after the final norm."""
        (input_ids,) = inputs
        return self._encode(input_ids, None)[1]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """The embeddings and every layer's output, and the last of them after the final norm; each (b s d)."""
        mask = None
        if attention_mask is not None:
            length = input_ids.shape[1]
            causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
            mask = causal & attention_mask.bool()[:, None, None, :]  # (b 1 s s)
        states: list[Tensor] = self.text_model.encoder(self.text_model.embeddings(input_ids), mask)
        return states, self.text_model.final_layer_norm(states[-1])

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> CLIPTextOutput:
        """Encode texts.

        Args:
            input_ids: tokens (b s), each text ended by the end token.
            attention_mask: (b s), 1 where a token may be looked at and 0 elsewhere; the first token needs a 1.
            output_hidden_states: also return the embeddings and every layer's output. To condition on an earlier layer
                ("clip skip"), apply `text_model.final_layer_norm` to `hidden_states[-1 - layers_skipped]`.
            return_dict: without effect: the result is a tuple with names either way.

        Raises:
            ValueError: the ids have another shape, are out of range, or are more than there are positions.
        """
        return CLIPTextOutput(*self._run(input_ids, attention_mask, output_hidden_states))

    def _run(
        self, input_ids: Tensor, attention_mask: Tensor | None, output_hidden_states: bool
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...] | None]:
        """The fields of `CLIPTextOutput`; arguments and errors as `forward`."""
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (b, s), not {tuple(input_ids.shape)}")
        states: list[Tensor] | None
        if attention_mask is None and not output_hidden_states:
            last, states = self.run_core(input_ids), None
        else:
            states, last = self._encode(input_ids, attention_mask)
        ends = input_ids if self.eos_token_id == _OLD_EOS else (input_ids == self.eos_token_id).int()
        end = ends.argmax(dim=-1)  # (b), the first place of each text's end token
        pooled = last[torch.arange(last.shape[0], device=last.device), end]  # (b d)
        return last, pooled, tuple(states) if output_hidden_states and states else None


class CLIPTextModelWithProjection(CLIPTextModel):
    """CLIP's text encoder with the layer that makes one vector of a text, in transformers' layout.

    Its arguments are those of `CLIPTextModel`; `projection_dim` is the length p of the vector.

    Raises:
        ConfigError: the heads do not divide `hidden_size`, the activation is unknown, or there is no `projection_dim`.
    """

    text_projection: nn.Linear

    def build_head(self, hidden_size: int, projection_dim: int | None) -> None:
        if projection_dim is None:
            raise ConfigError("projection_dim is needed: the length of the vector that a text becomes")
        self.text_projection = nn.Linear(hidden_size, projection_dim, bias=False)

    @classmethod
    def convert_key(cls, key: str) -> str | None:
        return key if key.startswith("text_projection.") else super().convert_key(key)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> CLIPTextProjectionOutput:
        """Encode texts; arguments and errors as those of `CLIPTextModel.forward`."""
        last, pooled, states = self._run(input_ids, attention_mask, output_hidden_states)
        return CLIPTextProjectionOutput(self.text_projection(pooled), last, states)
