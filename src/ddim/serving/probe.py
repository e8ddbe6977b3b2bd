"""How a machine has to run a model so that a picture's bits do not depend on what is drawn beside it.

    found = probe(pipe, threads=2)
    torch.set_num_threads(found.threads)  # before the engine is made, which keeps to it
    engine = Engine(pipe, slots=found.slots, decoded=found.decoded)

The engine gives the network batches of one size (see `serving.exact`). Whether a sample's bits are then the same at any
place and beside any others, and with any number of threads, is up to the libraries that multiply matrices. So it is
tried out, with the network itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddim.errors import ConfigError
from ddim.models.vae import most_likely_latents
from ddim.noise import gaussian_noise, seeded_generators
from ddim.pipelines import DiffusionPipeline
from ddim.pipelines.control import Control
from ddim.serving.engine import LARGEST_BATCH, POSITIONS, usual_shape
from ddim.serving.models import Model, TextModel, model_of
from ddim.serving.network import using_threads
from ddim.serving.samples import Controlled, Moment, Shown, Text

__all__ = ["Exact", "probe", "usual_slots"]

_DECODED = 4  # pictures at a time, at most
TEXTS = ("", "a", "a picture of two of them")


@dataclass(frozen=True)
class Exact:
    """How to run a model for pictures that are the same to the bit whatever is drawn beside them.

    Attributes:
        slots, decoded: of the engine, see `Engine`.
        threads: of PyTorch, see `torch.set_num_threads`.
        digest: of the bits that the model's networks gave for fixed inputs: 16 hexadecimal digits. Machines where it is
            the same may share a job. It does not depend on the number of threads, as only such a number is chosen with
            which the bits are those of one thread.
    """

    slots: int
    threads: int
    digest: str
    decoded: int = 1


def probe(pipe: DiffusionPipeline, threads: int = 1, slots: int | None = None) -> Exact:
    """Find out how to run a model, as it is accelerated now, by running its networks on fixed inputs.

    The U-Net is given the same evaluations at several places, beside others. If the bits of one depend on these, each
    is to have a forward pass of its own: slots=1. If they depend on the number of threads, there is to be one thread.
    Pictures of the model's own size are tried, and no others. For a model of large pictures this takes about as long
    as a dozen steps.

    Args:
        pipe: what is to be drawn with.
        threads: how many threads there are to be, at most.
        slots: how many evaluations a forward pass is to have; `usual_slots` unless told.

    Raises:
        ConfigError: a number that is none, or a pipeline of another kind; or a network gives other bits each time.
    """
    for name, number in (("threads", threads), ("slots", slots)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise ConfigError(f"{name} must be a positive int, not {number!r:.50}")
    model_of(pipe)
    for size in dict.fromkeys((usual_slots(pipe) if slots is None else slots, 1)):
        alone = _evaluated(pipe, size, 1)
        if alone is not None:
            is_same = threads == 1 or _evaluated(pipe, size, threads) == alone
            decoded, pictures = _decoding(pipe)
            sizes = [each.to_bytes(4, "big") for each in (size, decoded)]
            hashed = hashlib.sha256(b"".join([*sizes, *alone, *pictures, *_around(pipe)]))
            return Exact(size, threads if is_same else 1, hashed.hexdigest()[:16], decoded)
    raise ConfigError("the U-Net gives other numbers each time it is given the same: no picture can be drawn twice")


def usual_slots(pipe: DiffusionPipeline) -> int:
    """How many evaluations a forward pass has unless told, by the model and the kind of device alone.

    On a processor 16, or as many fewer as have more than 2¹⁴ positions together (4 at Stable Diffusion's 64x64); on an
    accelerator four times as many. At least 2.
    """
    height, width = usual_shape(pipe)
    more = 4 if pipe.device.type == "cuda" else 1
    return max(2, more * min(LARGEST_BATCH, POSITIONS // (height * width)))


@torch.no_grad()
def _evaluated(pipe: Any, slots: int, threads: int) -> list[bytes] | None:
    """The bits of the U-Net's evaluations of fixed inputs.

    None if they depend on what else is in the batch, or differ from one time to the next.
    """
    half = slots // 2
    count = slots + half
    unet = pipe.components["unet"]
    x = _noise(pipe, count, unet.config.in_channels)
    moments = [_moment(pipe, place, count) for place in range(count)]
    with using_threads(1):
        told = [pipe.conditions([words]) for words in TEXTS] if pipe.draws_texts else []
        texts = [Text(each.embeds, each.added) for each in told]
    model = model_of(pipe)
    model.is_exact = True
    network = model.network(slots, threads)
    controls = _controls(model, count)

    @using_threads(1)
    def predicted(places: Sequence[int]) -> dict[int, bytes]:
        beside = [texts[place % len(texts)] for place in places if texts]
        network.look()
        steered = [controls[place] for place in places if controls]
        out = network(x[list(places)], [moments[place] for place in places], beside, [], steered)
        return {place: _raw(row) for place, row in zip(places, out, strict=True)}

    expected: dict[int, bytes] = {}
    # Three forward passes: the second has half of the first at other places beside others, the third all in reverse.
    for places in (range(slots), range(half, count), range(slots)[::-1]):
        for place, bits in predicted(places).items():
            if expected.setdefault(place, bits) != bits:
                return None
    return [*expected.values()]


@torch.no_grad()
@using_threads(1)
def _decoding(pipe: Any) -> tuple[int, list[bytes]]:
    """How many pictures the decoder is to be given at a time, and the bits that it gives for fixed latents.

    Four small ones take less time together than one after the other. It is one where its bits depend on the others.
    """
    if not pipe.draws_texts:
        return 1, []
    height, width = usual_shape(pipe)
    size = max(1, min(_DECODED, POSITIONS // (16 * height * width)))
    x = _noise(pipe, size + size // 2, pipe.vae.config.latent_channels)
    found: dict[int, bytes] = {}
    is_same = True
    for places in (range(size), range(size // 2, len(x)), range(size)[::-1]):
        for place, row in zip(places, pipe.decode(x[list(places)], "pt"), strict=False):
            is_same = is_same and found.setdefault(place, _raw(row)) == _raw(row)
    return (size, [*found.values()]) if is_same else (1, [_raw(pipe.decode(x[:1], "pt"))])


@torch.no_grad()
@using_threads(1)
def _around(pipe: Any) -> list[bytes]:
    """The bits of what the other networks give for fixed inputs: a text, and the latents of a picture."""
    if not pipe.draws_texts:
        return []
    picture = pipe.decode(_noise(pipe, 1, pipe.vae.config.latent_channels), "pt")
    vae = pipe.wide_enough(pipe.vae, encodes=True)
    encoded = vae.encode((2 * picture - 1).to(vae.device, vae.dtype))
    told = pipe.conditions([TEXTS[-1]]).tensors()
    return [_raw(given) for given in (*told, picture, most_likely_latents(encoded))]


def _controls(model: Model, count: int) -> list[Controlled]:
    """How ControlNets act on each of so many evaluations, if there are any: all show some of the same few pictures."""
    if not isinstance(model, TextModel) or not model.controlnets:
        return []
    _, height, width = model.pipe.picture_shape()
    shown = []
    for number in range(len(TEXTS)):
        each = []
        for net in model.controlnets:
            parameter = next(net.parameters())
            shape = (1, int(net.config.get("conditioning_channels") or 3), height, width)
            picture = gaussian_noise(shape, seeded_generators(number, 1), parameter.device, parameter.dtype)
            each.append(Shown(Control(net, picture)))
        shown.append(Controlled(each, [1.0 / (1 + number)] * len(each)))
    return [shown[place % len(shown)] for place in range(count)]


def _noise(pipe: Any, count: int, channels: int) -> Tensor:
    shape = (count, channels, *usual_shape(pipe))
    return gaussian_noise(shape, seeded_generators(0, count), pipe.device, pipe.dtype)


def _moment(pipe: Any, place: int, count: int) -> Moment:
    """A timestep for one of so many evaluations, and what the network is told beside it."""
    config = pipe.components["unet"].config
    timestep = place * pipe.scheduler.config.num_train_timesteps // count
    classes = None if pipe.draws_texts else config.get("num_class_embeds")
    if classes is not None:
        return timestep, place % classes
    return timestep, 1.0 + place if config.get("time_cond_proj_dim") is not None else None


def _raw(tensor: Tensor) -> bytes:
    """The bits of a tensor."""
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
