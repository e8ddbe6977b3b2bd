"""Our schedulers inside every pipeline of diffusers that samples with DDIM: what they give is what diffusers' give.

`walk` finds the pipelines that name DDIMScheduler, or that take it as one of the usual ones. Each is in one of three
tables: COMPARED, with tiny random parts; FAILS, where it fails with diffusers' own DDIMScheduler too, which is tested;
or APART, with a reason why there is nothing to compare.

Outputs are compared in float32, and agree to within rounding: theirs has its coefficients in float32, ours in float64,
so that each step differs in the last digit, by 1e-7 of the sample. Networks as tiny as these amplify that little:
pictures in [0, 1] differ by 1e-6, and `ATOL` is a hundred times that. Those of Kandinsky, whose random U-Nets and
decoders saturate, amplify it more: diffusers' own output moves by 2e-4 if each of its steps is multiplied by 1 + 1e-7·u
with a random u in [-1, 1].
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import io
import json
import logging
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import diffusers
import numpy as np
import pytest
import tiny_pipelines as tiny
import torch
from PIL import Image
from tiny_pipelines import SIZE, WIDTH, Part, embeddings, mask, picture

import ddim

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers', of its own future
ATOL, ATOL_OF_KANDINSKY = 1e-4, 2e-3


class Row(NamedTuple):
    """How a pipeline is made and called."""

    parts: Mapping[str, Part]
    call: Mapping[str, Any] = {}  # what differs from `CALL`; an Ellipsis leaves an argument out
    config: Mapping[str, Any] = tiny.LATENTS
    before: Callable[[Any], dict[str, Any]] | None = None  # is called with the pipeline, and gives further arguments
    atol: float = ATOL


# What is asked of each pipeline, as far as it takes it.
CALL = {
    "prompt": "a red cat",
    "negative_prompt": "blurry",
    "num_inference_steps": 4,
    "height": SIZE,
    "width": SIZE,
    "image": picture(),
    "mask_image": mask(),
    "control_image": picture(seed=1),
    "strength": 0.75,
    "num_frames": 2,
    "use_resolution_binning": False,
    "clean_caption": False,
    "output_type": "np",
}
FRAMES = [picture(), picture(seed=1)]
NINE_FRAMES = [picture(seed=seed) for seed in range(9)]
MARIGOLD = {
    "prediction_type": "v_prediction",
    "clip_sample": False,
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    **tiny.SCHEDULE,
}
PIXELS = {"beta_schedule": "squaredcos_cap_v2", "thresholding": True, "dynamic_thresholding_ratio": 0.95}
OF_PICTURES = {  # Kandinsky's embeddings of a picture
    "height": 64,
    "width": 64,
    "image": picture(64),
    "mask_image": np.asarray(mask(64), dtype=np.float32) / 255,
    "image_embeds": embeddings(1, WIDTH),
    "negative_image_embeds": embeddings(1, WIDTH, seed=1),
    "hint": embeddings(1, 3, 64, 64),
    "prior_num_inference_steps": 2,
}
SOUND = {
    "height": ...,
    "width": ...,
    "audio_length_in_s": 0.01,
    "prompt_embeds": embeddings(1, 8),
    "negative_prompt_embeds": embeddings(1, 8, seed=1),
    "prompt": ...,
    "negative_prompt": ...,
}
SOUND_2 = {
    **SOUND,
    "prompt_embeds": embeddings(1, 5, 16),
    "negative_prompt_embeds": embeddings(1, 5, 16, seed=1),
    "generated_prompt_embeds": embeddings(1, 5, 16, seed=2),
    "negative_generated_prompt_embeds": embeddings(1, 5, 16, seed=3),
    "attention_mask": torch.ones(1, 5),
    "negative_attention_mask": torch.ones(1, 5),
}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# --- what has to be done before the call -----------------------------------------------------------------------------


def invert(pipe: Any) -> dict[str, Any]:
    pipe.invert(image=picture(32), num_inversion_steps=6, skip=0.2, source_prompt="a red cat", generator=generator())
    return {"editing_prompt": ["a blue dog"], "edit_guidance_scale": 5.0, "edit_threshold": 0.5}


def invert_for_diffedit(pipe: Any) -> dict[str, Any]:
    options = {"image": picture(), "num_inference_steps": 6, "generator": generator()}
    found = pipe.generate_mask(source_prompt="a red cat", target_prompt="a blue dog", num_maps_per_mask=2, **options)
    latents = pipe.invert(prompt="a red cat", inpaint_strength=0.7, **options).latents
    return {"mask_image": found, "image_latents": latents, "inpaint_strength": 0.7, "num_inference_steps": 6}


def invert_for_zero(pipe: Any) -> dict[str, Any]:
    latents = pipe.invert(prompt="a red cat", image=picture(), num_inference_steps=4, generator=generator()).latents
    texts = {name: embeddings(2, 77, WIDTH, seed=seed) for seed, name in enumerate(("source_embeds", "target_embeds"))}
    return {"latents": latents, **texts}


class Mel:
    """Spectrograms and sounds of diffusers' AudioDiffusionPipeline, whose own asks for librosa."""

    x_res, hop_length = 8, 1

    def load_audio(self, file: Any, samples: Any) -> None:
        self.audio = samples

    def audio_slice_to_image(self, part: int) -> Image.Image:
        return picture(8).convert("L")

    def get_sample_rate(self) -> int:
        return 8

    def image_to_audio(self, image: Image.Image) -> Any:
        return np.asarray(image, dtype=np.float32).reshape(-1) / 255


def of_pixels(**changes: Any) -> Part:
    return lambda: diffusers.UNet2DModel(**{**tiny.pixels().config, **changes})


def inverse() -> Any:
    """The inverse scheduler of the library whose turn it is; see `run`."""
    return LIBRARY[-1].DDIMInverseScheduler.from_config(tiny.LATENTS)


LIBRARY: list[Any] = []

# --- the tables ------------------------------------------------------------------------------------------------------

PICTURES, LATENT = {"in_channels": 8}, {"in_channels": 9}
COMPARED: dict[str, Row] = {
    # Stable Diffusion
    "StableDiffusionPipeline": Row(tiny.SD),
    "StableDiffusionImg2ImgPipeline": Row(tiny.SD),
    "StableDiffusionInpaintPipeline": Row(tiny.SD),
    "StableDiffusionInpaintPipeline of nine channels": Row({**tiny.SD, "unet": tiny.unet(**LATENT)}),
    "StableDiffusionInpaintPipelineLegacy": Row(tiny.SD),
    "StableDiffusionInstructPix2PixPipeline": Row({**tiny.SD, "unet": tiny.unet(**PICTURES)}),
    "StableDiffusionDepth2ImgPipeline": Row(
        {**tiny.SD, "unet": tiny.unet(in_channels=5)}, {"depth_map": embeddings(1, SIZE, SIZE)}
    ),
    "StableDiffusionUpscalePipeline": Row(
        {
            **tiny.SD,
            "unet": tiny.unet(in_channels=7, num_class_embeds=100),
            "low_res_scheduler": diffusers.DDPMScheduler,
        },
        {"noise_level": 20, "height": ..., "width": ...},
    ),
    "StableDiffusionImageVariationPipeline": Row(tiny.SD),
    "StableDiffusionSAGPipeline": Row(tiny.SD),
    "StableDiffusionPanoramaPipeline": Row(tiny.SD),
    "StableDiffusionLDM3DPipeline": Row(tiny.SD),
    "StableDiffusionModelEditingPipeline": Row(tiny.SD),
    "SemanticStableDiffusionPipeline": Row(tiny.SD, {"editing_prompt": ["a dog"], "edit_warmup_steps": 1}),
    "StableDiffusionPipelineSafe": Row(tiny.SD),
    "StableDiffusionAttendAndExcitePipeline": Row(
        tiny.SD, {"token_indices": [2], "max_iter_to_alter": 2, "attn_res": (8, 8)}
    ),
    "AltDiffusionPipeline": Row(tiny.SD),
    "AltDiffusionImg2ImgPipeline": Row(tiny.SD),
    "CycleDiffusionPipeline": Row(tiny.SD, {"source_prompt": "a blue dog"}),
    "StableDiffusionDiffEditPipeline": Row({**tiny.SD, "inverse_scheduler": inverse}, before=invert_for_diffedit),
    "StableDiffusionPix2PixZeroPipeline": Row({**tiny.SD, "inverse_scheduler": inverse}, before=invert_for_zero),
    "StableDiffusionGLIGENPipeline": Row(
        {**tiny.SD, "unet": tiny.unet(attention_type="gated")},
        {"gligen_phrases": ["a cat"], "gligen_boxes": [[0.2, 0.3, 0.6, 0.8]]},
    ),
    "StableDiffusionGLIGENTextImagePipeline": Row(
        {
            **tiny.SD,
            "unet": tiny.unet(attention_type="gated-text-image"),
            "processor": lambda: tiny.transformers.CLIPProcessor(tiny.image_processor(), tiny.tokenizer()()),
            "image_project": lambda: diffusers.pipelines.stable_diffusion.CLIPImageProjection(hidden_size=WIDTH),
        },
        {"gligen_phrases": ["a cat"], "gligen_images": [picture(32)], "gligen_boxes": [[0.2, 0.3, 0.6, 0.8]]},
    ),
    "PaintByExamplePipeline": Row(
        {
            **tiny.SD,
            "unet": tiny.unet(**LATENT),
            "image_encoder": lambda: (
                diffusers.pipelines.deprecated.paint_by_example.image_encoder.PaintByExampleImageEncoder(
                    tiny.vision(), proj_size=WIDTH
                )
            ),
        },
        {"example_image": picture(32)},
    ),
    "StableUnCLIPPipeline": Row(tiny.UNCLIP, {"prior_num_inference_steps": 2}),
    "StableUnCLIPImg2ImgPipeline": Row(tiny.UNCLIP),
    # ControlNet, T2I-Adapter
    "StableDiffusionControlNetPipeline": Row(tiny.SD),
    "StableDiffusionControlNetImg2ImgPipeline": Row(tiny.SD),
    "StableDiffusionControlNetInpaintPipeline": Row(tiny.SD),
    "StableDiffusionControlNetXSPipeline": Row({**tiny.SD, **tiny.xs()}),
    "StableDiffusionAdapterPipeline": Row(tiny.SD),
    # SDXL
    "StableDiffusionXLPipeline": Row(tiny.SDXL),
    "StableDiffusionXLImg2ImgPipeline": Row(tiny.SDXL),
    "StableDiffusionXLInpaintPipeline": Row(tiny.SDXL),
    "StableDiffusionXLInstructPix2PixPipeline": Row({**tiny.SDXL, "unet": tiny.unet(**tiny.XL, **PICTURES)}),
    "StableDiffusionXLControlNetPipeline": Row(tiny.SDXL),
    "StableDiffusionXLControlNetImg2ImgPipeline": Row(tiny.SDXL),
    "StableDiffusionXLControlNetInpaintPipeline": Row(tiny.SDXL),
    "StableDiffusionXLControlNetUnionPipeline": Row({**tiny.SDXL, "controlnet": tiny.UNION}, {"control_mode": 0}),
    "StableDiffusionXLControlNetUnionImg2ImgPipeline": Row(
        {**tiny.SDXL, "controlnet": tiny.UNION}, {"control_mode": 0}
    ),
    "StableDiffusionXLControlNetUnionInpaintPipeline": Row(
        {**tiny.SDXL, "controlnet": tiny.UNION}, {"control_mode": 0}
    ),
    "StableDiffusionXLControlNetXSPipeline": Row({**tiny.SDXL, **tiny.xs(**tiny.XL)}),
    "StableDiffusionXLAdapterPipeline": Row(tiny.SDXL),
    "LEditsPPPipelineStableDiffusionXL": Row(tiny.SDXL, before=invert),
    "KolorsPipeline": Row(tiny.KOLORS, {"max_sequence_length": 16}),
    "KolorsImg2ImgPipeline": Row(tiny.KOLORS, {"max_sequence_length": 16}),
    # perturbed attention
    "StableDiffusionPAGPipeline": Row(tiny.SD),
    "StableDiffusionPAGImg2ImgPipeline": Row(tiny.SD),
    "StableDiffusionPAGInpaintPipeline": Row(tiny.SD),
    "StableDiffusionControlNetPAGPipeline": Row(tiny.SD),
    "StableDiffusionControlNetPAGInpaintPipeline": Row(tiny.SD),
    "StableDiffusionXLPAGPipeline": Row(tiny.SDXL),
    "StableDiffusionXLPAGImg2ImgPipeline": Row(tiny.SDXL),
    "StableDiffusionXLPAGInpaintPipeline": Row(tiny.SDXL),
    "StableDiffusionXLControlNetPAGPipeline": Row(tiny.SDXL),
    "StableDiffusionXLControlNetPAGImg2ImgPipeline": Row(tiny.SDXL),
    "KolorsPAGPipeline": Row(tiny.KOLORS, {"max_sequence_length": 16}),
    "AnimateDiffPAGPipeline": Row(tiny.SD),
    "PixArtSigmaPAGPipeline": Row(tiny.of_t5("PixArtTransformer2DModel", **tiny.PIXART)),
    "HunyuanDiTPAGPipeline": Row(tiny.HUNYUANDIT),
    # video
    "AnimateDiffPipeline": Row(tiny.SD),
    "AnimateDiffSDXLPipeline": Row(tiny.SDXL),
    "AnimateDiffControlNetPipeline": Row(tiny.SD, {"conditioning_frames": FRAMES}),
    "AnimateDiffSparseControlNetPipeline": Row(
        {**tiny.SD, "controlnet": tiny.SPARSE}, {"conditioning_frames": [picture()], "controlnet_frame_indices": [0]}
    ),
    "AnimateDiffVideoToVideoPipeline": Row(tiny.SD, {"video": FRAMES}),
    "AnimateDiffVideoToVideoControlNetPipeline": Row(tiny.SD, {"video": FRAMES, "conditioning_frames": FRAMES}),
    "PIAPipeline": Row({**tiny.SD, "motion_adapter": tiny.motion_adapter(conv_in_channels=9)}),
    "I2VGenXLPipeline": Row(tiny.I2VGEN),
    "TextToVideoSDPipeline": Row(tiny.VIDEO),
    "VideoToVideoSDPipeline": Row(tiny.VIDEO, {"video": FRAMES}),
    "TextToVideoZeroPipeline": Row(tiny.SD, {"num_inference_steps": 8, "t0": 2, "t1": 4, "video_length": 2}),
    "TextToVideoZeroSDXLPipeline": Row(tiny.SDXL, {"num_inference_steps": 8, "t0": 2, "t1": 4, "video_length": 2}),
    "CogVideoXPipeline": Row(tiny.COGVIDEO, {"num_frames": 9, "max_sequence_length": 16}),
    "CogVideoXVideoToVideoPipeline": Row(tiny.COGVIDEO, {"video": NINE_FRAMES, "max_sequence_length": 16}),
    "CogVideoXImageToVideoPipeline": Row(tiny.COGVIDEO_OF_PICTURES, {"num_frames": 9, "max_sequence_length": 16}),
    "CogVideoXFunControlPipeline": Row(
        tiny.COGVIDEO_OF_PICTURES, {"control_video": NINE_FRAMES, "max_sequence_length": 16}
    ),
    "ConsisIDPipeline": Row(
        tiny.CONSISID,
        {
            "num_frames": 9,
            "max_sequence_length": 16,
            "id_vit_hidden": [embeddings(1, 3, 8, seed=seed) for seed in range(2)],
            "id_cond": embeddings(1, 8),
        },
    ),
    "LattePipeline": Row(
        tiny.of_t5("LatteTransformer3DModel", **tiny.PIXART, video_length=2), {"video_length": 2, "output_type": "pt"}
    ),
    "AllegroPipeline": Row(tiny.ALLEGRO, {"num_frames": 8, "max_sequence_length": 16, "output_type": "latent"}),
    # transformers
    "DiTPipeline": Row(
        tiny.of_t5("DiTTransformer2DModel", **tiny.ADA_NORM, norm_type="ada_norm_zero"), {"class_labels": [1]}
    ),
    "PixArtAlphaPipeline": Row(tiny.of_t5("PixArtTransformer2DModel", **tiny.PIXART)),
    "PixArtSigmaPipeline": Row(tiny.of_t5("PixArtTransformer2DModel", **tiny.PIXART)),
    "HunyuanDiTPipeline": Row(tiny.HUNYUANDIT),
    "BriaPipeline": Row(tiny.BRIA, {"max_sequence_length": 16}),  # its published network predicts a flow
    "HunyuanDiTControlNetPipeline": Row(tiny.HUNYUANDIT),
    "CogView3PlusPipeline": Row(tiny.COGVIEW, {"max_sequence_length": 16}),
    "UniDiffuserPipeline": Row(tiny.UNIDIFFUSER, {"image": ...}),
    # Marigold
    "MarigoldDepthPipeline": Row({**tiny.SD, "unet": tiny.unet(**PICTURES)}, {"processing_resolution": 0}, MARIGOLD),
    "MarigoldNormalsPipeline": Row({**tiny.SD, "unet": tiny.unet(**PICTURES)}, {"processing_resolution": 0}, MARIGOLD),
    "MarigoldIntrinsicsPipeline": Row(
        {**tiny.SD, "unet": tiny.unet(in_channels=12, out_channels=8)}, {"processing_resolution": 0}, MARIGOLD
    ),
    # pixels, latent diffusion
    "DDIMPipeline": Row({"unet": tiny.pixels}, config={}),
    "DDPMPipeline": Row({"unet": tiny.pixels}, config={}),
    "LDMPipeline": Row({"unet": of_pixels(in_channels=4, out_channels=4), "vqvae": tiny.vq()}),
    "LDMTextToImagePipeline": Row(tiny.LDM),
    "LDMSuperResolutionPipeline": Row(
        {"unet": of_pixels(in_channels=6), "vqvae": tiny.vq(latent_channels=3, vq_embed_dim=3)}, {"image": picture(32)}
    ),
    # Kandinsky
    "KandinskyPipeline": Row(tiny.kandinsky("2.1"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyImg2ImgPipeline": Row(tiny.kandinsky("2.1"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyInpaintPipeline": Row(tiny.kandinsky("2.1", **LATENT), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyCombinedPipeline": Row(tiny.kandinsky("2.1"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyImg2ImgCombinedPipeline": Row(tiny.kandinsky("2.1"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyInpaintCombinedPipeline": Row(tiny.kandinsky("2.1", **LATENT), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22Pipeline": Row(tiny.kandinsky("2.2"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22Img2ImgPipeline": Row(tiny.kandinsky("2.2"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22InpaintPipeline": Row(tiny.kandinsky("2.2", **LATENT), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22ControlnetPipeline": Row(tiny.KANDINSKY_OF_HINTS, OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22ControlnetImg2ImgPipeline": Row(tiny.KANDINSKY_OF_HINTS, OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22CombinedPipeline": Row(tiny.kandinsky("2.2"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22Img2ImgCombinedPipeline": Row(tiny.kandinsky("2.2"), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "KandinskyV22InpaintCombinedPipeline": Row(tiny.kandinsky("2.2", **LATENT), OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    "Kandinsky3Img2ImgPipeline": Row(tiny.KANDINSKY_3, OF_PICTURES, atol=ATOL_OF_KANDINSKY),
    # DeepFloyd IF, whose networks also predict a variance: the pipeline leaves it out
    "IFPipeline": Row(tiny.deepfloyd(), config={**PIXELS, "variance_type": "fixed_small"}),
    "IFImg2ImgPipeline": Row(tiny.deepfloyd(), config={**PIXELS, "variance_type": "fixed_small"}),
    "IFInpaintingPipeline": Row(tiny.deepfloyd(), config={**PIXELS, "variance_type": "fixed_small"}),
    **{
        name: Row(
            tiny.deepfloyd(in_channels=6, class_embed_type="timestep"),
            {"original_image": picture()},
            {**PIXELS, "variance_type": "fixed_small"},
        )
        for name in (
            "IFSuperResolutionPipeline",
            "IFImg2ImgSuperResolutionPipeline",
            "IFInpaintingSuperResolutionPipeline",
        )
    },
    # sound
    "AudioLDMPipeline": Row(tiny.AUDIO, SOUND),
    "MusicLDMPipeline": Row(tiny.MUSIC, SOUND),
    "AudioLDM2Pipeline": Row(tiny.AUDIO_2, SOUND_2),
    "AudioDiffusionPipeline": Row(
        {"unet": of_pixels(in_channels=1, out_channels=1), "mel": Mel},
        {"steps": 4, "raw_audio": np.zeros(8), "start_step": 1, "mask_start_secs": 2, "mask_end_secs": 2},
        {},
    ),
    # Versatile Diffusion
    "VersatileDiffusionTextToImagePipeline": Row(tiny.VERSATILE),
    "VersatileDiffusionImageVariationPipeline": Row(tiny.VERSATILE, {"image": picture(32), "negative_prompt": ...}),
}
# Those that are run without `--slow`: one of each family, and those that use more of a scheduler than its step.
FAST = """
StableDiffusionPipeline StableDiffusionInpaintPipeline StableDiffusionInstructPix2PixPipeline CycleDiffusionPipeline
StableDiffusionDiffEditPipeline StableDiffusionPix2PixZeroPipeline StableUnCLIPImg2ImgPipeline
StableDiffusionControlNetPipeline StableDiffusionAdapterPipeline StableDiffusionXLImg2ImgPipeline
StableDiffusionXLControlNetUnionPipeline LEditsPPPipelineStableDiffusionXL KolorsPipeline StableDiffusionPAGPipeline
AnimateDiffVideoToVideoPipeline PIAPipeline I2VGenXLPipeline VideoToVideoSDPipeline TextToVideoZeroPipeline
CogVideoXPipeline LattePipeline DiTPipeline PixArtSigmaPipeline HunyuanDiTPipeline UniDiffuserPipeline
MarigoldDepthPipeline DDIMPipeline DDPMPipeline LDMTextToImagePipeline KandinskyPipeline KandinskyV22Img2ImgPipeline
Kandinsky3Img2ImgPipeline IFImg2ImgSuperResolutionPipeline AudioLDM2Pipeline AudioDiffusionPipeline
""".split()

# What fails with diffusers' own DDIMScheduler too, and the error.
FAILS: dict[str, tuple[Row, str]] = {
    "StableDiffusionParadigmsPipeline": (Row(tiny.SD), "_get_variance"),  # it asks for another scheduler's variance
    "LatentConsistencyModelPipeline": (Row(tiny.SD), "original_inference_steps"),
    "LatentConsistencyModelImg2ImgPipeline": (Row(tiny.SD), "original_inference_steps"),
    "VersatileDiffusionDualGuidedPipeline": (Row(tiny.VERSATILE, {"image": picture(32)}), "encoder_attention_mask"),
    # It gives `add_noise` timesteps that are no integers.
    "LEditsPPPipelineStableDiffusion": (Row(tiny.SD, before=invert), "indices must be|must be integers"),
}
_FLOW = "its network predicts the velocity of a flow, for which DDIM is no sampler; only comments or types name DDIM"
_ONNX = "its networks are run by onnxruntime, which is not installed here"
APART: dict[str, str] = {
    **dict.fromkeys(
        """
        BriaFiboPipeline BriaFiboEditPipeline ChromaInpaintPipeline EasyAnimatePipeline
        EasyAnimateControlPipeline EasyAnimateInpaintPipeline LuminaPipeline Lumina2Pipeline SanaPipeline
        SanaPAGPipeline SanaControlNetPipeline SanaSprintPipeline SanaSprintImg2ImgPipeline SanaVideoPipeline
        SanaImageToVideoPipeline
        """.split(),
        _FLOW,
    ),
    "StableAudioPipeline": "its network is trained on the noise of EDM, of sigmas; DDIM is named in a copied comment",
    "DiffusionGemmaPipeline": "it samples tokens, by schedulers of discrete diffusion",
    "VersatileDiffusionPipeline": "it makes one of the other three pipelines of Versatile Diffusion, and calls that",
    **dict.fromkeys(
        """
        OnnxStableDiffusionPipeline StableDiffusionOnnxPipeline OnnxStableDiffusionImg2ImgPipeline
        OnnxStableDiffusionInpaintPipeline OnnxStableDiffusionUpscalePipeline OnnxStableDiffusionInpaintPipelineLegacy
        """.split(),
        _ONNX,
    ),
}


def walk() -> dict[str, type]:
    """The pipelines of the installed diffusers that name DDIMScheduler, or take it among the usual schedulers."""
    for found in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        with contextlib.suppress(ImportError):  # one of a library that is not installed
            importlib.import_module(found.name)
    return {kind.__name__: kind for kind in _below(diffusers.DiffusionPipeline) if _takes_ddim(kind)}


def _below(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from _below(each)


def _takes_ddim(kind: type) -> bool:
    if not kind.__module__.startswith("diffusers.pipelines."):
        return False
    source = inspect.getsource(kind)
    return "DDIMScheduler" in source or "KarrasDiffusionSchedulers" in source


@pytest.fixture(scope="module")
def kinds() -> Iterator[dict[str, type]]:
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield walk()
    logger.setLevel(level)


# --- the comparison --------------------------------------------------------------------------------------------------


def scheduler_of(library: Any, row: Row) -> Any:
    return library.DDIMScheduler.from_config(dict(row.config))


def pipeline(kind: type, library: Any, row: Row) -> Any:
    """The pipeline with that library's scheduler: by its constructor, as far as that leaves it in its place."""
    LIBRARY.append(library)
    pipe = kind(**tiny.made(kind, row.parts), scheduler=scheduler_of(library, row))
    if kind is diffusers.DDIMPipeline:  # it makes a scheduler of its own of any
        pipe.scheduler = scheduler_of(library, row)
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler) is library.DDIMScheduler
    return pipe


def run(pipe: Any, row: Row, **options: Any) -> list[np.ndarray]:
    """What a pipeline gives, as arrays."""
    parameters = inspect.signature(pipe.__call__).parameters
    arguments = {name: value for name, value in {**CALL, **row.call, **options}.items() if name in parameters}
    torch.manual_seed(0)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars that cannot be turned off
        arguments |= row.before(pipe) if row.before else {}
        given = copy.deepcopy({name: value for name, value in arguments.items() if value is not ...})
        if "generator" in parameters:
            given["generator"] = generator()
        found = [array for array in arrays(pipe(**given)) if array.size]
    assert found
    return found


def arrays(output: Any) -> Iterator[np.ndarray]:
    if isinstance(output, (torch.Tensor, np.ndarray, Image.Image)):
        yield np.asarray(output, dtype=np.float64)
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from arrays(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from arrays(value)
    elif hasattr(output, "__dict__"):
        yield from arrays(vars(output))


def agree(ours: list[np.ndarray], theirs: list[np.ndarray], atol: float = ATOL) -> bool:
    """Whether they are equal, but for a difference of `atol` times the largest value."""
    return len(ours) == len(theirs) and all(
        first.shape == second.shape and bool(abs(first - second).max() <= atol * abs(second).max())
        for first, second in zip(ours, theirs, strict=True)
    )


def rows(names: Mapping[str, Any]) -> list[Any]:
    """The others repeat on other networks what those in FAST show."""
    return [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in names]


def kind_of(name: str, kinds: dict[str, type]) -> type:
    return kinds[name.partition(" ")[0]]


# The fast test beside it is test_a_pipeline_gives_the_same.
@pytest.mark.slow
def test_every_pipeline_is_in_a_table(kinds: dict[str, type]) -> None:
    known = [name for name in COMPARED if " " not in name] + [*FAILS, *APART]
    assert len(known) == len(set(known))
    assert set(known) == set(kinds)
    assert set(FAST) < set(COMPARED)


@pytest.mark.parametrize("name", rows(COMPARED))
@pytest.mark.thin(every=3)
def test_a_pipeline_gives_the_same(name: str, kinds: dict[str, type]) -> None:
    row, kind = COMPARED[name], kind_of(name, kinds)
    expected = run(pipeline(kind, diffusers, row), row)
    pipe = pipeline(kind, ddim, row)
    with mock.patch.object(ddim.SamplingPlan, "step", autospec=True, side_effect=ddim.SamplingPlan.step) as steps:
        found = run(pipe, row)
    assert steps.call_count >= 2
    assert all(np.isfinite(array).all() for array in expected)
    assert max(array.std() / abs(array).max() for array in expected) > 0.01
    assert agree(found, expected, row.atol)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_a_pipeline_gives_the_same_with_noise(name: str, kinds: dict[str, type]) -> None:
    """With eta, where the call takes it: the same noise is drawn from the same generator."""
    row, kind = COMPARED[name], kind_of(name, kinds)
    if "eta" not in inspect.signature(kind.__call__).parameters:
        pytest.skip("its call has no eta")
    expected = run(pipeline(kind, diffusers, row), row, eta=0.6)
    assert agree(run(pipeline(kind, ddim, row), row, eta=0.6), expected, row.atol)


@pytest.mark.parametrize("name", ["StableDiffusionXLImg2ImgPipeline", "PIAPipeline", "AudioLDM2Pipeline"])
def test_another_schedule_would_be_seen(name: str, kinds: dict[str, type]) -> None:
    row, kind = COMPARED[name], kind_of(name, kinds)
    changed = row._replace(config={**row.config, "beta_end": 0.013})
    assert not agree(
        run(pipeline(kind, ddim, changed), row), run(pipeline(kind, diffusers, row), row), ATOL_OF_KANDINSKY
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_a_pipeline_is_saved_loaded_and_made_of_another(
    name: str, kinds: dict[str, type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where diffusers can save and load the pipeline at all, with a scheduler of its own."""
    row, kind = COMPARED[name], kind_of(name, kinds)
    theirs = pipeline(kind, diffusers, row)
    expected = run(theirs, row)
    monkeypatch.setattr(diffusers, kind.__name__, kind, raising=False)
    try:
        theirs.save_pretrained(tmp_path / "theirs")
        run(kind.from_pretrained(tmp_path / "theirs"), row)
    except Exception as error:
        pytest.skip(f"diffusers cannot: {type(error).__name__}: {error}"[:200])
    pipe = pipeline(kind, ddim, row)
    pipe.save_pretrained(tmp_path / "ours")
    index = json.loads((tmp_path / "ours/model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert index == json.loads((tmp_path / "theirs/model_index.json").read_text())
    loaded = kind.from_pretrained(tmp_path / "ours")
    assert type(loaded.scheduler) is diffusers.DDIMScheduler
    own = {"scheduler": ddim.DDIMScheduler.from_pretrained(tmp_path / "theirs", subfolder="scheduler")}
    if "inverse_scheduler" in index:
        LIBRARY.append(ddim)
        own["inverse_scheduler"] = inverse()
    loaded = kind.from_pretrained(tmp_path / "theirs", **own)
    if kind is diffusers.DDIMPipeline:
        loaded.scheduler = own["scheduler"]
    made = kind.from_pipe(loaded) if kind is not diffusers.DDIMPipeline else loaded
    for each in (loaded, made):
        each.set_progress_bar_config(disable=True)
        assert type(each.scheduler) is ddim.DDIMScheduler
    assert agree(run(made, row), expected, row.atol)


@pytest.mark.slow  # which is diffusers' concern
@pytest.mark.parametrize("name", FAILS)
def test_what_fails_with_either(name: str, kinds: dict[str, type]) -> None:
    row, error = FAILS[name]
    for library in (diffusers, ddim):
        with pytest.raises((TypeError, IndexError), match=error):
            run(pipeline(kinds[name], library, row), row)
