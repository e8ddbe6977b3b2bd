"""`ddim studio`: a page in the browser that shows what a sampler does while it draws."""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

import tyro

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
from ddim.cli.serve import check_models, check_visitors, named, open_pool, visitors
from ddim.errors import ConfigError

# What the page begins with: those that draw in a few steps first.
_USUAL = ("emoji-fast", "emoji", "digits-fast", "digits")


@dataclass(frozen=True)
class StudioSettings:
    """Open the studio: a page in the browser that draws, and shows what a sampler does while it draws.

    Nothing is fetched from elsewhere, and nothing is kept when the page is closed. Models are loaded when they first
    draw. docs/studio.md has the rest.

        ddim studio
        ddim studio --model mine=/models/sd15
        ddim studio --auth-file users.txt --add-user ada
        ddim studio --host 0.0.0.0 --auth-file users.txt --no-browser
    """

    model: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="[NAME=]MODEL",
            help="A model to draw with, as for `ddim sample`, and what the page calls it; give it again for further "
            "ones. If not given, the bundled models.",
        ),
    ] = ()
    host: str = "127.0.0.1"
    """The address to listen at. That of this machine alone needs no login."""
    port: int = 7860
    """The port to listen at; 0 takes a free one, which is said at the start."""
    browser: bool = True
    """Open the page in a browser once it is there."""
    auth_file: Annotated[
        str | None,
        tyro.conf.arg(
            help="A file with a user in each line, as --add-user writes it: who has to log in. If not given, nobody "
            "has to."
        ),
    ] = None
    add_user: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="NAME",
            help="Ask for a password, write this user into --auth-file, or a new password of a user who is there, and "
            "end. If not given, the studio opens.",
        ),
    ] = None
    allow_anonymous: bool = False
    """Listen at other addresses than this machine's own without any login."""
    backend: Backend = "auto"
    dtype: DType = None
    device: Device = None
    max_batch: MaxBatch = None
    max_queue: int = 256
    """How many pictures may wait for each model."""
    max_models: MaxModels = None
    max_side: MaxSide = None
    deadline: Deadline = 600.0
    grace: Grace = 5.0
    log_format: LogFormat = "text"

    def check_together(self, given: Collection[str]) -> None:
        if self.add_user is not None:
            if self.auth_file is None:
                raise ConfigError("--add-user writes into a file: give --auth-file as well")
            return
        check_models(named(self.model or _USUAL))
        check_visitors(self.host, self.auth_file, self.allow_anonymous)


def run_studio(settings: StudioSettings) -> str | None:
    if settings.add_user is not None:
        from ddim.studio.users import ask_and_add

        return ask_and_add(str(settings.auth_file), settings.add_user)

    from ddim.serving.api import Options, create_app
    from ddim.serving.limits import Limits
    from ddim.serving.logs import log_to
    from ddim.serving.running import listening, serve
    from ddim.studio.app import mount
    from ddim.studio.desk import Studio
    from ddim.studio.panel import MOST

    places = dict(named(settings.model or _USUAL))
    admits = None if settings.auth_file is None else visitors(settings.auth_file)
    limits = Limits(side=settings.max_side, n=MOST, deadline=settings.deadline)
    pool = open_pool(settings, places)
    sock = listening(settings.host, settings.port)
    with log_to(kind=settings.log_format):
        app = create_app(pool, Options(limits=limits, draws=False))
        mount(app, Studio(pool, places, limits), admits, any_host=settings.allow_anonymous)
        serve(app, sock, grace=settings.grace, opened=_open if settings.browser else None)
    return None


def _open(address: str) -> None:
    """Show the page in a browser, where there is one."""
    import webbrowser

    print(f"ddim: the studio is at {address}", file=sys.stderr)
    webbrowser.open(address)
