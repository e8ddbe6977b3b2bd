"""`ddim serve`: pictures over HTTP, by OpenAI's images API."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ddim.cli.checks import is_single_file
from ddim.cli.options import (
    Backend,
    Deadline,
    Device,
    DType,
    Grace,
    LogFormat,
    MaxBatch,
    MaxModels,
    MaxSide,
)
from ddim.errors import ConfigError, check_installed

if TYPE_CHECKING:
    import socket

    from fastapi import FastAPI

    from ddim.pipelines import DiffusionPipeline
    from ddim.serving.api import Options
    from ddim.serving.pool import Pool


@dataclass(frozen=True)
class ServeSettings:
    """Serve models over HTTP, by OpenAI's images API, so that its clients draw with them, many at once.

    What runs at the same time is drawn together, a step of all pictures at a time. Models are loaded when they are
    first asked for. docs/serving.md has the rest.

        ddim serve --model emoji --model digits
        ddim serve --model mine=/models/sd15 --host 0.0.0.0 --api-key-file keys.txt
        ddim serve --model emoji --controlnet emoji-layout
    """

    model: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="[NAME=]MODEL",
            help="A model to serve, as for `ddim sample`, and what clients call it; give it again for further ones. "
            "The first one draws where a client names none. If not given, the bundled emoji model.",
        ),
    ] = ()
    controlnet: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="PATH[=SCALE] ...",
            help="ControlNets that steer the first --model where a request sends control_image, a picture for each of "
            "them: folders, .safetensors files or ids on the hub. The number after the sign = says how strongly one "
            "acts where a request does not say control_scale. If not given, no request is steered.",
        ),
    ] = ()
    host: str = "127.0.0.1"
    """The address to listen at. That of this machine alone needs no key."""
    port: int = 8000
    """The port to listen at; 0 takes a free one, which is said at the start."""
    api_key_file: Annotated[
        str | None,
        tyro.conf.arg(
            help="A file with a key in each line, one of which every client has to send. If not given, none has to."
        ),
    ] = None
    allow_anonymous: bool = False
    """Listen at other addresses than this machine's own without any key."""
    cors_origin: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="ORIGIN",
            help="A site whose pages in browsers may draw here, such as https://example.org; give it again for further "
            "ones. If not given, none but those of this machine.",
        ),
    ] = ()
    public_url: Annotated[
        str | None,
        tyro.conf.arg(
            help="Where clients find this server, such as https://example.org, for the addresses of pictures. If not "
            "given, where each request was sent to."
        ),
    ] = None
    backend: Backend = "auto"
    dtype: DType = None
    device: Device = None
    max_batch: MaxBatch = None
    max_queue: int = 256
    """How many pictures may wait for each model; to further requests the answer is 429."""
    max_models: MaxModels = None
    replicas: Annotated[
        int | None,
        tyro.conf.arg(
            help="How many processes draw, each with all models, which share out the requests and the cores; needs the "
            'extra "scale", which is Ray. If not given, this process draws.'
        ),
    ] = None
    ray_address: Annotated[
        str | None,
        tyro.conf.arg(
            help="The cluster of Ray that the replicas are to run on: its address, or auto. If not given, this machine."
        ),
    ] = None
    max_n: int = 10
    """How many pictures one request may ask for, from 1 to 10."""
    max_side: MaxSide = None
    deadline: Deadline = 600.0
    grace: Grace = 30.0
    store_megabytes: int = 256
    """How much is kept of pictures that are fetched by an address; the oldest leave."""
    store_seconds: float = 3600.0
    """How long such a picture is kept."""
    log_format: LogFormat = "text"
    log_prompts: bool = False
    """Write prompts into the log."""

    studio: bool = False
    """Have the studio, a page that draws, at the root as well; needs the extra "studio"."""
    auth_file: Annotated[
        str | None,
        tyro.conf.arg(
            help="A file of the studio's users, as `ddim studio --add-user` writes it, who have to log in. If not "
            "given, nobody has to."
        ),
    ] = None

    def check_together(self, given: Collection[str]) -> None:
        from ddim.serving.keys import is_loopback

        places = named(self.model or ("emoji",))
        check_models(places)
        if self.controlnet:
            check_steered(places[0][1])
            if self.studio:
                raise ConfigError("the studio draws without ControlNets: leave --controlnet out, or --studio")
        if self.api_key_file is None and not self.allow_anonymous and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} can be reached from other machines: give --api-key-file, or --allow-anonymous if "
                "everybody may draw"
            )
        if self.auth_file is not None and not self.studio:
            raise ConfigError("--auth-file is for the studio's visitors: give --studio, or leave it out")
        if self.ray_address is not None and self.replicas is None:
            raise ConfigError("--ray-address is for replicas: give --replicas, or leave it out")
        if self.replicas is not None:
            if self.studio:
                raise ConfigError("--studio draws in one process: leave --replicas out, or start `ddim studio` too")
            check_installed("ray", "scale")
        if self.studio:
            check_visitors(self.host, self.auth_file, self.allow_anonymous)


def check_models(models: Sequence[tuple[str, str]]) -> None:
    """Refuse models that are not there, and names that are there twice, before anything is loaded.

    Args:
        models: of `named`.

    Raises:
        ConfigError, CheckpointError: say which.
    """
    from ddim.checkpoint.known import known

    names = [name for name, _ in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--model {name} is there twice: give one of them another name, as in other={name}")
    for place in dict(models).values():
        if not is_single_file(place):
            known(place)


def check_steered(place: str) -> None:
    """Refuse ControlNets for a model that is known to take none, before anything is loaded.

    Raises:
        ConfigError: says so.
    """
    from ddim.checkpoint.known import known

    found = None if is_single_file(place) else known(place)
    if found is not None and not found.draws_texts:
        raise ConfigError(
            f"{place} takes no ControlNet, and --controlnet is for the first --model: leave it out, or let a "
            "text-to-image model be the first"
        )


def check_visitors(host: str, auth_file: str | None, allow_anonymous: bool) -> None:
    """Refuse a studio that anybody could reach, unless that is wanted.

    Raises:
        ConfigError: says what to give.
        MissingExtraError: what the studio needs is not installed.
    """
    from ddim.serving.keys import is_loopback

    if auth_file is None and not allow_anonymous and not is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached from other machines: give --auth-file with the users who may come in, or "
            "--allow-anonymous if everybody may draw"
        )
    check_installed("gradio", "studio")


def named(models: Sequence[str]) -> list[tuple[str, str]]:
    """(name, model) of each that is to be served.

    >>> named(["emoji", "mine=/models/sd15", "/models/other/"])
    [('emoji', 'emoji'), ('mine', '/models/sd15'), ('other', '/models/other/')]
    """
    found = []
    for each in models:
        name, equals, place = each.partition("=")
        if not equals:
            is_path = each.startswith(("/", "./", "../")) or os.path.isdir(each)
            name, place = os.path.basename(each.rstrip("/")) if is_path else each, each
        found.append((name, place))
    return found


@dataclass(frozen=True)
class _Opening:
    """What `open_pipeline` is told of a model of a server."""

    model: str
    dtype: Any
    device: str | None
    backend: str
    controlnet: Any = ()


def visitors(auth_file: str) -> Callable[[str, str], bool]:
    """Who may come into the studio: whether a name and a password are of the file.

    Raises:
        ConfigError: the file cannot be read, or has no user.
    """
    from ddim.studio.users import Users

    return Users(auth_file).check


def open_pool(settings: Any, places: Mapping[str, str]) -> Pool:
    """The models of a server, none of which is loaded yet.

    Args:
        settings: with `dtype`, `device`, `backend`, `max_models`, `max_batch` and `max_queue`; and `controlnet`, where
            requests can be steered.
        places: of all models, by their names.
    """
    from ddim.cli.controlling import asked
    from ddim.cli.opening import open_pipeline
    from ddim.serving.memory import keep_little
    from ddim.serving.models import uncontrolled
    from ddim.serving.pool import Pool

    keep_little()
    first, steers = next(iter(places)), hasattr(settings, "controlnet") and not settings.studio
    given = settings.controlnet if steers else ()

    def open_model(name: str) -> DiffusionPipeline:
        controlnet = given if name == first else ()
        pipe = open_pipeline(_Opening(places[name], settings.dtype, settings.device, settings.backend, controlnet))
        return pipe if steers else uncontrolled(pipe)

    return Pool(
        places,
        open_model,
        settings.max_models,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        control_scales={first: [one.scale for one in asked(given)]},
    )


def run_serve(settings: ServeSettings) -> None:
    from ddim.serving.api import Options, create_app
    from ddim.serving.keys import Keys, read_keys
    from ddim.serving.limits import MIB, Limits
    from ddim.serving.logs import log_to
    from ddim.serving.running import listening, serve

    places = dict(named(settings.model or ("emoji",)))
    most = min(settings.max_n, settings.max_queue)
    limits = Limits(side=settings.max_side, n=most, deadline=settings.deadline)
    options = Options(
        limits=limits,
        keys=Keys() if settings.api_key_file is None else read_keys(settings.api_key_file),
        origins=settings.cors_origin,
        store_bytes=settings.store_megabytes * MIB,
        store_seconds=settings.store_seconds,
        address=settings.public_url,
        logs_prompts=settings.log_prompts,
    )
    sock = listening(settings.host, settings.port)
    with log_to(kind=settings.log_format):
        if settings.replicas is not None:
            with sock:
                _serve_replicas(settings, places, options, sock)
            return
        pool = open_pool(settings, places)
        app = create_app(pool, options)
        if settings.studio:
            from ddim.studio.app import mount
            from ddim.studio.desk import Studio

            admits = None if settings.auth_file is None else visitors(settings.auth_file)
            mount(app, Studio(pool, places, limits), admits, any_host=settings.allow_anonymous)
        serve(app, sock, grace=settings.grace)


def _serve_replicas(settings: ServeSettings, places: Mapping[str, str], options: Options, sock: socket.socket) -> None:
    """Serve by several processes, each of which draws.

    Raises:
        ConfigError: they cannot be started.
    """
    from ddim.cli.adapters import listed
    from ddim.cli.controlling import absolute
    from ddim.serving.cluster import check_nodes, joined, threads_each, threads_told
    from ddim.serving.front import create_front, of_replica
    from ddim.serving.replicas import replicated
    from ddim.serving.running import serve

    count = settings.replicas or 1
    own = len(os.sched_getaffinity(0))
    places = {name: os.path.abspath(place) if os.path.exists(place) else place for name, place in places.items()}
    settings = dataclasses.replace(settings, controlnet=(tuple(map(absolute, listed(settings.controlnet))),))
    make_app = functools.partial(_app_of_replica, settings, places, of_replica(options, count))
    with joined(settings.ray_address, max(count, own)) as ray:
        check_nodes(ray, serves=True)
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cores = [own] if settings.ray_address is None else [int(each.get("CPU", 0)) for each in alive]
        threads = threads_told(threads_each(count, cores))
        with replicated(ray, make_app, count, threads, needs_gpu=settings.device != "cpu") as replicas:
            serve(create_front(replicas, tuple(places), options), sock, grace=settings.grace)


def _app_of_replica(settings: ServeSettings, places: Mapping[str, str], options: Options) -> FastAPI:
    from ddim.serving.api import create_app

    return create_app(open_pool(settings, places), options)
