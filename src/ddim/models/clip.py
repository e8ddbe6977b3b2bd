"""CLIP's text encoder: token ids to the vectors that Stable Diffusion's U-Net looks at."""

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
from ddim.models.recompute import Recomputing, set_gradient_checkpointing
from ddim.step import Output

_OLD_EOS = 2  # what configs said before transformers 4.31, whatever the tokenizer's id was


@dataclass(eq=False)
class CLIPTextOutput(Output):
    """What the encoder returns."""

    last_hidden_state: Tensor  # (b s d), after the final norm
    pooler_output: Tensor  # (b d), its vector at the end of the text
    hidden_states: tuple[Tensor, ...] | None = None  # the embeddings and every layer's output, before the final norm


class CLIPAttention(nn.Module):
    """Self-attention to the tokens before: (b s d) -> (b s d)."""

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
        out: Tensor = self.out_proj(heads.transpose(1, 2).flatten(2))
        return out


class CLIPMLP(nn.Module):
    def __init__(self, dim: int, inner: int, act_fn: str) -> None:
        super().__init__()
        self.activation_fn = activation(act_fn)
        self.fc1 = nn.Linear(dim, inner)
        self.fc2 = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.activation_fn(self.fc1(x)))
        return out


class CLIPEncoderLayer(nn.Module):
    """Attention and a feed-forward layer, each added to its input."""

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
            raise ValueError(f"{length} tokens are more than the text encoder's {positions} positions")
        try:
            tokens: Tensor = self.token_embedding(input_ids)
        except IndexError as error:
            raise ValueError(f"token ids must be in 0..{self.token_embedding.num_embeddings - 1}") from error
        return tokens + self.position_embedding.weight[:length]


class CLIPEncoder(Recomputing):
    """The layers, one after another."""

    def __init__(self, layers: list[CLIPEncoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """The input and every layer's output."""
        states = [x]
        for layer in self.layers:
            states.append(self.run(layer, states[-1], mask))
        return states


class CLIPTextTransformer(nn.Module):
    """The parts under the names that weight files give them."""

    def __init__(self, embeddings: CLIPTextEmbeddings, encoder: CLIPEncoder, dim: int, eps: float) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.encoder = encoder
        self.final_layer_norm = nn.LayerNorm(dim, eps)


class CLIPTextModel(HasCore, PretrainedModel):
    """CLIP's text encoder in transformers' layout (both of its key layouts, with and without `text_model.`).

    Args:
        vocab_size, hidden_size, intermediate_size, num_hidden_layers, num_attention_heads: the network's dimensions.
        max_position_embeddings: the longest text, in tokens.
        hidden_act: "quick_gelu" (OpenAI's weights) or "gelu" (OpenCLIP's), or any of `ACTIVATIONS`.
        attention_dropout: share of attention weights that are dropped in training.
        eos_token_id: which token ends a text; 2 stands for "the one with the highest id", as old configs say 2 wrongly.
        projection_dim, initializer_range, initializer_factor, pad_token_id, bos_token_id: carried along
            (`initializer_factor` scales the initial weights).

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
        self._initialise(hidden_size, num_hidden_layers, initializer_factor)

    @torch.no_grad()
    def _initialise(self, dim: int, layers: int, factor: float) -> None:
        """CLIP's initial weights: deviations that keep the sum of all layers at the scale of one."""
        into_residual = factor * dim**-0.5 * (2 * layers) ** -0.5
        deviations = {
            "embedding.weight": factor * 0.02,
            "q_proj.weight": into_residual,
            "k_proj.weight": into_residual,
            "v_proj.weight": into_residual,
            "out_proj.weight": factor * dim**-0.5,
            "fc1.weight": factor * (2 * dim) ** -0.5,
            "fc2.weight": into_residual,
        }
        for name, parameter in self.named_parameters():
            deviation = next((value for suffix, value in deviations.items() if name.endswith(suffix)), None)
            if deviation is not None:
                parameter.normal_(std=deviation)
            elif "norm" not in name:
                parameter.zero_()  # biases

    @classmethod
    def convert_key(cls, key: str) -> str | None:
        key = key if key.startswith("text_model.") else f"text_model.{key}"
        return None if key == "text_model.embeddings.position_ids" else key  # 0, 1, 2, ... in old files

    def to_json_string(self) -> str:
        """The config as transformers writes it."""
        values = {key: value for key, value in self.config.items() if not key.startswith("_") and key != "torch_dtype"}
        # "float32": transformers 5 would otherwise load half-precision weights as such, beside a float32 U-Net.
        values |= {"architectures": ["CLIPTextModel"], "dtype": "float32", "model_type": "clip_text_model"}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def enable_gradient_checkpointing(self, on: bool = True) -> None:
        """Save memory in training by computing activations a second time in the backward pass."""
        set_gradient_checkpointing(self, on)

    def disable_gradient_checkpointing(self) -> None:
        set_gradient_checkpointing(self, False)

    def core(self, *inputs: Tensor) -> Tensor:
        """The last hidden state (b s d) of tokens (b s), after the final norm."""
        (input_ids,) = inputs
        return self._encode(input_ids, None)[1]

    def _encode(self, input_ids: Tensor, attention_mask: Tensor | None) -> tuple[list[Tensor], Tensor]:
        """All hidden states, and the last one after the final norm."""
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
            attention_mask: (b s), 1 where a token may be looked at; the first must be.
            output_hidden_states: also return the embeddings and every layer's output. For a picture made of an earlier
                layer, `text_model.final_layer_norm` is applied to `hidden_states[-1 - layers_skipped]`.
            return_dict: without effect: the result is a tuple with names either way.

        Raises:
            ValueError: another shape, more tokens than positions, or unknown ids.
        """
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must have shape (b, s), not {tuple(input_ids.shape)}")
        states: list[Tensor] | None
        if attention_mask is None and not output_hidden_states:
            last, states = self.run_core(input_ids), None
        else:
            states, last = self._encode(input_ids, attention_mask)
        ends = input_ids if self.eos_token_id == _OLD_EOS else (input_ids == self.eos_token_id).int()
        end = ends.argmax(dim=-1)  # the first of the highest: (b)
        pooled = last[torch.arange(last.shape[0], device=last.device), end]
        return CLIPTextOutput(last, pooled, tuple(states) if output_hidden_states and states else None)
