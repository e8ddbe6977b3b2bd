"""Tiny random parts for all of diffusers' pipelines that sample with DDIM, each made by a function of its own.

A pipeline's constructor names its parts, and most pipelines name the same ones; so a family is a table of what makes
which part (`FAMILIES`), and `made` picks those that a pipeline asks for. Texts have 32 channels, latents 8x8 for
pictures of 16x16, and every network two resolutions.
"""

from __future__ import annotations

import functools
import inspect
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from PIL import Image
from tiny_clip import vocabulary, write_tokenizer

torch.set_num_threads(1)  # networks this small only lose time with more

Part = Callable[[], Any]
WIDTH, SIZE = 32, 16  # channels of texts, and the height and width of pictures
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LATENTS = {**SCHEDULE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def picture(size: int = SIZE, seed: int = 0) -> Image.Image:
    """One of coarse random blocks."""
    blocks = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize((size, size), Image.Resampling.NEAREST)


def mask(size: int = SIZE) -> Image.Image:
    """White, which is what is to be painted anew, in the left half."""
    values = np.zeros((size, size), dtype=np.uint8)
    values[:, : size // 2] = 255
    return Image.fromarray(values)


def embeddings(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- networks --------------------------------------------------------------------------------------------------------

DOWN_UP = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": WIDTH,
}
SIMPLE = {
    "block_out_channels": (32, 64),
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "resnet_time_scale_shift": "scale_shift",
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    "cross_attention_dim": 2 * WIDTH,
}


def unet(**changes: Any) -> Part:
    return lambda: diffusers.UNet2DConditionModel(sample_size=8, **{**DOWN_UP, "attention_head_dim": 4, **changes})


def simple_unet(**changes: Any) -> Part:
    return lambda: diffusers.UNet2DConditionModel(sample_size=8, **{**SIMPLE, **changes})


def pixels() -> Any:
    return diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )


def vae(**changes: Any) -> Part:
    settings = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
        "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
        "norm_num_groups": 8,
        "sample_size": SIZE,
    }
    return lambda: diffusers.AutoencoderKL(**{**settings, **changes})


def vq(**changes: Any) -> Part:
    settings = {
        "block_out_channels": (32, 64),
        "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        "up_block_types": ("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        "latent_channels": 4,
        "norm_num_groups": 8,
        "num_vq_embeddings": 12,
        "vq_embed_dim": 4,
    }
    return lambda: diffusers.VQModel(**{**settings, **changes})


def controlnet(kind: str = "ControlNetModel", **changes: Any) -> Part:
    settings = {**DOWN_UP, "attention_head_dim": 4, "conditioning_embedding_out_channels": (16, 32), **changes}
    kept = {key: value for key, value in settings.items() if "up_block" not in key}
    return lambda: _stirred(getattr(diffusers, kind)(**kept))


def _stirred(network: Any) -> Any:
    """Layers that begin at zero would leave the rest of a network without effect."""
    for parameter in network.parameters():
        if not parameter.abs().sum():
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def motion_adapter(**changes: Any) -> Part:
    settings = {
        "block_out_channels": (32, 64),
        "motion_layers_per_block": 1,
        "motion_mid_block_layers_per_block": 1,
        "motion_norm_num_groups": 8,
        "motion_num_attention_heads": 2,
    }
    return lambda: _stirred(diffusers.MotionAdapter(**{**settings, **changes}))


def adapter(**changes: Any) -> Part:
    settings = {"in_channels": 3, "channels": [32, 64], "num_res_blocks": 1, "downscale_factor": 2}
    return lambda: diffusers.T2IAdapter(**{**settings, **changes})


TALL = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2, "latent_channels": 4}


def video_vae(kind: str, down: str, up: str, **changes: Any) -> Part:
    """One of those that make less of the frames too: 8 times less of the height and the width."""
    blocks = {"down_block_types": (down,) * 4, "up_block_types": (up,) * 4}
    return lambda: getattr(diffusers, kind)(**{**TALL, **blocks, **changes})


def transformer(kind: str, **settings: Any) -> Part:
    return lambda: _stirred(getattr(diffusers, kind)(**settings))


# --- encoders of texts and pictures ----------------------------------------------------------------------------------


@functools.cache
def _tokenizer_files() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    write_tokenizer(Path(folder.name))
    return folder


def tokenizer(**settings: Any) -> Part:
    return lambda: transformers.CLIPTokenizer.from_pretrained(_tokenizer_files().name, **settings)


def _clip_text(**changes: Any) -> Any:
    size = len(vocabulary()[0])
    settings = {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return transformers.CLIPTextConfig(**{**settings, **sizes, "projection_dim": WIDTH, **changes})


def text_encoder(kind: str = "CLIPTextModel", **changes: Any) -> Part:
    return lambda: _spread(getattr(transformers, kind)(_clip_text(**changes)))


def t5(**changes: Any) -> Part:
    settings = {"vocab_size": len(vocabulary()[0]), "d_model": WIDTH, "d_ff": 64, "d_kv": 8, "num_heads": 4}
    return lambda: _spread(
        transformers.T5EncoderModel(transformers.T5Config(**{**settings, "num_layers": 1, **changes}))
    )


def vision(**changes: Any) -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"image_size": 32, "patch_size": 8, "projection_dim": WIDTH}
    return transformers.CLIPVisionConfig(**{**sizes, **changes})


def image_encoder() -> Any:
    return transformers.CLIPVisionModelWithProjection(vision())


def image_processor() -> Any:
    return transformers.CLIPImageProcessor(crop_size=32, size=32)


def _spread(encoder: Any) -> Any:
    """Random embeddings as large as trained ones, so that texts differ."""
    for name, parameter in encoder.named_parameters():
        if "embedding" in name or "shared" in name:
            torch.nn.init.normal_(parameter)
    if not hasattr(encoder, "text_model"):  # transformers 5 has no such part, and diffusers' clip_skip needs it
        object.__setattr__(encoder, "text_model", encoder)
    return encoder


# --- families --------------------------------------------------------------------------------------------------------

SD: dict[str, Part] = {
    "vae": vae(),
    "text_encoder": text_encoder(),
    "tokenizer": tokenizer(),
    "unet": unet(),
    "controlnet": controlnet(),
    "motion_adapter": motion_adapter(),
    "adapter": adapter(),
    "image_encoder": image_encoder,
    "feature_extractor": image_processor,
}
SDXL: dict[str, Part] = {
    **SD,
    "text_encoder_2": text_encoder("CLIPTextModelWithProjection"),
    "tokenizer_2": tokenizer(),
    "unet": unet(**XL),
    "controlnet": controlnet(**XL),
    "adapter": adapter(adapter_type="full_adapter_xl", downscale_factor=4),
}
UNION = controlnet("ControlNetUnionModel", num_trans_channel=32, num_trans_head=4, num_proj_channel=32, **XL)
SPARSE = controlnet(
    "SparseControlNetModel",
    conditioning_channels=3,
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
    motion_num_attention_heads=4,
    use_simplified_condition_embedding=False,
)
# ControlNet-XS is made of a U-Net that has attention in its last blocks.
OF_XS = {
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "use_linear_projection": True,
}


def xs(**changes: Any) -> dict[str, Part]:
    """The U-Net and the ControlNet-XS that is made for it."""
    base = unet(**{**changes, **OF_XS})
    options = {"size_ratio": 1, "learn_time_embedding": True, "conditioning_embedding_out_channels": (16, 32)}
    return {"unet": base, "controlnet": lambda: diffusers.ControlNetXSAdapter.from_unet(base(), **options)}


FRAMES = {
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
}
VIDEO: dict[str, Part] = {
    **SD,
    "unet": lambda: _stirred(
        diffusers.UNet3DConditionModel(sample_size=8, **{**DOWN_UP, **FRAMES}, attention_head_dim=4)
    ),
}
I2VGEN: dict[str, Part] = {
    **SD,
    "unet": lambda: diffusers.I2VGenXLUNet(
        sample_size=8, **{**DOWN_UP, **FRAMES}, attention_head_dim=4, num_attention_heads=None
    ),
}
KOLORS: dict[str, Part] = {
    **SD,
    "text_encoder": lambda: _chatglm(),
    "tokenizer": lambda: _WithPositions.from_pretrained(_tokenizer_files().name),
    "unet": unet(**{**XL, "cross_attention_dim": WIDTH}),
}
UNCLIP: dict[str, Part] = {
    **SD,
    "unet": unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * WIDTH),
    "image_normalizer": lambda: diffusers.pipelines.stable_diffusion.StableUnCLIPImageNormalizer(embedding_dim=WIDTH),
    "image_noising_scheduler": lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    "prior": lambda: _prior(),
    "prior_tokenizer": tokenizer(),
    "prior_text_encoder": text_encoder("CLIPTextModelWithProjection"),
    "prior_scheduler": lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
}
LDM: dict[str, Part] = {**SD, "vqvae": vae(), "bert": text_encoder()}

TRANSFORMER = {"sample_size": 8, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 2, "in_channels": 4}
ADA_NORM = {
    **TRANSFORMER,
    "num_layers": 2,
    "out_channels": 8,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_elementwise_affine": False,
}
PIXART = {
    **ADA_NORM,
    "caption_channels": WIDTH,
    "cross_attention_dim": 16,
    "norm_type": "ada_norm_single",
    "norm_eps": 1e-6,
}
HUNYUAN = {
    **TRANSFORMER,
    "cross_attention_dim": WIDTH,
    "cross_attention_dim_t5": WIDTH,
    "pooled_projection_dim": 16,
    "hidden_size": 16,
    "activation_fn": "gelu-approximate",
}
COG = {
    "num_attention_heads": 4,
    "attention_head_dim": 8,
    "time_embed_dim": 8,
    "text_embed_dim": WIDTH,
    "num_layers": 1,
    "sample_width": 2,
    "sample_height": 2,
    "sample_frames": 9,
    "max_text_seq_length": 16,
    "in_channels": 4,
    "out_channels": 4,
}


def of_t5(kind: str, **settings: Any) -> dict[str, Part]:
    """A transformer with the text encoder T5."""
    return {"vae": vae(), "text_encoder": t5(), "tokenizer": tokenizer(), "transformer": transformer(kind, **settings)}


HUNYUANDIT: dict[str, Part] = {
    **of_t5("HunyuanDiT2DModel", num_layers=4, **HUNYUAN),
    "text_encoder": lambda: _bert(),
    "text_encoder_2": t5(),
    "tokenizer_2": tokenizer(),
    "controlnet": transformer("HunyuanDiT2DControlNetModel", transformer_num_layers=4, **HUNYUAN),
}
COGVIDEO: dict[str, Part] = {
    **of_t5("CogVideoXTransformer3DModel", **COG),
    "vae": video_vae("AutoencoderKLCogVideoX", "CogVideoXDownBlock3D", "CogVideoXUpBlock3D"),
}
COGVIDEO_OF_PICTURES = {
    **COGVIDEO,
    "transformer": transformer("CogVideoXTransformer3DModel", **{**COG, "in_channels": 8}),
}
CONSISID = {
    **COGVIDEO,
    "transformer": transformer(
        "ConsisIDTransformer3DModel",
        **{**COG, "in_channels": 8, "attention_head_dim": 16},
        is_train_face=True,
        use_rotary_positional_embeddings=True,
        cross_attn_interval=1,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=8,  # LFE is the encoder of faces
        LFE_vit_dim=8,
        LFE_depth=2,
        LFE_dim_head=4,
        LFE_num_heads=2,
        LFE_num_id_token=1,
        LFE_num_querie=2,
        LFE_output_dim=42,  # two thirds of the width of the transformer
        LFE_ff_mult=1,
        LFE_num_scale=2,
    ),
}
BRIA = of_t5(
    "BriaTransformer2DModel",
    patch_size=1,
    in_channels=16,
    num_layers=1,
    num_single_layers=1,
    attention_head_dim=8,
    num_attention_heads=2,
    joint_attention_dim=WIDTH,
    axes_dims_rope=[0, 4, 4],
)
COGVIEW = of_t5(
    "CogView3PlusTransformer2DModel",
    **{**TRANSFORMER, "attention_head_dim": 4},
    num_layers=1,
    out_channels=4,
    text_embed_dim=WIDTH,
    time_embed_dim=8,
    condition_dim=2,
    pos_embed_max_size=8,
)
ALLEGRO: dict[str, Part] = {
    **of_t5(
        "AllegroTransformer3DModel",
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=WIDTH,
    ),
    "vae": lambda: _tiled(video_vae("AutoencoderKLAllegro", "AllegroDownBlock3D", "AllegroUpBlock3D")()),
}
KANDINSKY: dict[str, Part] = {
    "movq": vq(norm_type="spatial"),
    "tokenizer": tokenizer(),
    "text_encoder": lambda: _mclip(),
    "prior_prior": lambda: _prior(),
    "prior_image_encoder": image_encoder,
    "prior_text_encoder": text_encoder("CLIPTextModelWithProjection"),
    "prior_tokenizer": tokenizer(),
    "prior_scheduler": lambda: diffusers.UnCLIPScheduler(prediction_type="sample", clip_sample_range=10.0),
    "prior_image_processor": image_processor,
}


def kandinsky(version: str, **changes: Any) -> dict[str, Part]:
    """The parts of Kandinsky 2.1 or 2.2; a U-Net of 2.1 is conditioned on a text too."""
    conditions = {
        "2.1": {"addition_embed_type": "text_image", "encoder_hid_dim_type": "text_image_proj"},
        "2.2": {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"},
    }
    network = simple_unet(out_channels=8, encoder_hid_dim=WIDTH, **{**conditions[version], **changes})
    return {**KANDINSKY, "unet": network}


KANDINSKY_OF_HINTS: dict[str, Part] = {
    **kandinsky("2.2", in_channels=8, addition_embed_type="image_hint"),
    "movq": vq(
        norm_type="spatial",
        block_out_channels=(32, 32, 32, 32),
        down_block_types=(*["DownEncoderBlock2D"] * 3, "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", *["UpDecoderBlock2D"] * 3),
    ),
}
KANDINSKY_3: dict[str, Part] = {
    "movq": vq(norm_type="spatial"),
    "text_encoder": t5(),
    "tokenizer": tokenizer(),
    "unet": lambda: diffusers.Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(32, 64),
        cross_attention_dim=4,
        encoder_hid_dim=WIDTH,
    ),
}


def deepfloyd(**changes: Any) -> dict[str, Part]:
    settings = {
        "in_channels": 3,
        "out_channels": 6,
        "encoder_hid_dim": WIDTH,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 2,
        "cross_attention_norm": "group_norm",
        "act_fn": "gelu",
    }
    return {
        "text_encoder": t5(),
        "tokenizer": tokenizer(),
        "unet": simple_unet(**{**settings, **changes}),
        "image_noising_scheduler": lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }


OF_SOUND = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "cross_attention_dim": (8, 16),
}
CLAP_TEXT = {
    "vocab_size": len(vocabulary()[0]),
    "hidden_size": 8,
    "intermediate_size": 32,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "projection_dim": 8,
    "pad_token_id": 1,
    "max_position_embeddings": 100,
}
AUDIO: dict[str, Part] = {
    "vae": vae(in_channels=1, out_channels=1, block_out_channels=(8, 16)),
    "tokenizer": tokenizer(),
    "text_encoder": lambda: transformers.ClapTextModelWithProjection(transformers.ClapTextConfig(**CLAP_TEXT)),
    "vocoder": lambda: transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )
    ),
    "unet": unet(
        **OF_SOUND,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=8,
        class_embeddings_concat=True,
    ),
}
CLAP_AUDIO = {
    "spec_size": 8,
    "window_size": 4,
    "num_mel_bins": 8,
    "intermediate_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [1, 1],
    "num_hidden_layers": 1,
    "hidden_size": 192,
    "projection_dim": 8,
    "patch_size": 2,
    "patch_stride": 2,
    "patch_embed_input_channels": 4,
}
MUSIC: dict[str, Part] = {
    **AUDIO,
    "text_encoder": lambda: transformers.ClapModel(
        transformers.ClapConfig(text_config=CLAP_TEXT, audio_config=CLAP_AUDIO, projection_dim=8)
    ),
    "feature_extractor": lambda: transformers.ClapFeatureExtractor(feature_size=8, hop_length=7900),
}
AUDIO_2: dict[str, Part] = {
    **MUSIC,
    "text_encoder_2": t5(),
    "tokenizer_2": tokenizer(),
    "language_model": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=16, n_head=1, n_layer=1, n_positions=99, vocab_size=len(vocabulary()[0]))
    ),
    "projection_model": lambda: diffusers.AudioLDM2ProjectionModel(
        text_encoder_dim=8, text_encoder_1_dim=WIDTH, langauge_model_dim=16
    ),
    "unet": lambda: diffusers.AudioLDM2UNet2DConditionModel(sample_size=8, **OF_SOUND),
}
UNIDIFFUSER: dict[str, Part] = {
    **SD,
    "clip_image_processor": image_processor,
    "clip_tokenizer": tokenizer(),
    "text_tokenizer": tokenizer(),
    "text_decoder": lambda: diffusers.pipelines.deprecated.unidiffuser.UniDiffuserTextDecoder(
        prefix_length=77,
        prefix_inner_dim=WIDTH,
        prefix_hidden_dim=WIDTH,
        vocab_size=len(vocabulary()[0]),
        n_positions=200,
        n_embd=WIDTH,
        n_layer=1,
        n_head=4,
    ),
    "unet": lambda: diffusers.pipelines.deprecated.unidiffuser.UniDiffuserModel(
        text_dim=WIDTH,
        clip_img_dim=WIDTH,
        num_text_tokens=77,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        norm_num_groups=8,
        activation_fn="gelu",
        use_data_type_embedding=True,
    ),
}
VERSATILE: dict[str, Part] = {
    "vae": vae(),
    "image_unet": unet(),
    "text_unet": lambda: _flat(),
    "text_encoder": text_encoder("CLIPTextModelWithProjection"),
    "tokenizer": tokenizer(),
    "image_encoder": image_encoder,
    "image_feature_extractor": image_processor,
}


class _WithPositions(transformers.CLIPTokenizer):  # type: ignore[misc]
    """Says each token's position, as Kolors' tokenizer does, for which sentencepiece would be needed."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        found = super().__call__(*args, **options)
        found["position_ids"] = torch.arange(found["input_ids"].shape[1])[None]
        return found


def _chatglm() -> Any:
    from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel

    sizes = {"hidden_size": WIDTH, "ffn_hidden_size": 64, "kv_channels": 8, "num_attention_heads": 4, "num_layers": 2}
    config = ChatGLMConfig(padded_vocab_size=len(vocabulary()[0]), seq_length=300, original_rope=True, **sizes)
    network = ChatGLMModel(config)
    for name, parameter in network.named_parameters():  # it leaves them as the memory was
        torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.05)
    return _spread(network)


def _bert() -> Any:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    return transformers.BertModel(transformers.BertConfig(vocab_size=len(vocabulary()[0]), **sizes))


def _prior() -> Any:
    prior = diffusers.PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=WIDTH, num_layers=1)
    torch.nn.init.ones_(prior.clip_std)  # it begins at zero, and all would be zero
    return prior


def _mclip() -> Any:
    from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP

    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = MCLIPConfig(numDims=WIDTH, transformerDimensions=WIDTH, vocab_size=len(vocabulary()[0]), **sizes)
    return _spread(MultilingualCLIP(config))


def _flat() -> Any:
    from diffusers.pipelines.deprecated.versatile_diffusion.modeling_text_unet import UNetFlatConditionModel

    blocks = {
        "down_block_types": ("CrossAttnDownBlockFlat", "DownBlockFlat"),
        "up_block_types": ("UpBlockFlat", "CrossAttnUpBlockFlat"),
    }
    channels = {"in_channels": (4, 1, 1), "out_channels": (4, 1, 1)}
    return UNetFlatConditionModel(sample_size=8, **{**DOWN_UP, **blocks}, **channels, attention_head_dim=4)


def _tiled(network: Any) -> Any:
    network.enable_tiling()
    return network


def made(kind: type, parts: Mapping[str, Part]) -> dict[str, Any]:
    """The parts that a pipeline's constructor asks for, by their names.

    None is what it gets for those that may be left out, and for those that there is no function for.
    """
    parameters = inspect.signature(kind).parameters
    result: dict[str, Any] = {}
    for name, parameter in parameters.items():
        torch.manual_seed(0)
        if name in parts and (parameter.default is parameter.empty or name.startswith(("text", "token", "motion"))):
            part = parts[name]()
            result[name] = part.eval() if isinstance(part, torch.nn.Module) else part
        elif name != "scheduler" and parameter.default is parameter.empty:
            result[name] = None
    if "requires_safety_checker" in parameters:
        result["requires_safety_checker"] = False
    return result
