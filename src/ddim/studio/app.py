"""The page: its header, its tabs, how it looks, and how it is put into a server."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # before gradio is imported, which would ask the network

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from starlette.routing import Match, Mount

from ddim._version import __version__
from ddim.studio import between, compare, draw, learn, planning, real, trajectory
from ddim.studio.desk import Studio
from ddim.studio.gate import Gate
from ddim.studio.panel import Panel
from ddim.studio.visits import Visits

__all__ = ["mount"]

_HERE = Path(__file__).parent
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_SWEEP = 20.0  # seconds between two looks for what is not open any more

# Fonts of the visitor's own system: nothing is fetched from elsewhere.
_FONT = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")

_TABS: tuple[tuple[str, Callable[[Studio, Panel], object]], ...] = (
    ("Draw", draw.build),
    ("Compare", compare.build),
    ("Trajectory", trajectory.build),
    ("Between", between.build),
    ("Real pictures", real.build),
    ("Plan", planning.build),
    ("Learn", learn.build),
)


def _theme() -> gr.themes.Base:
    theme = gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="md", spacing_size="md", font=_FONT, font_mono=_MONO
    )
    # Gradio's own are too faint to be read on white.
    return theme.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600")


def page(studio: Studio) -> gr.Blocks:
    """The page with all of its tabs."""
    blocks: gr.Blocks
    with gr.Blocks(title="ddim studio", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)) as blocks:
        with gr.Row(elem_classes="header"):
            gr.HTML(f"<h1>ddim <span>studio</span></h1><p class='version'>{__version__}</p>", elem_classes="title")
            model = gr.Dropdown(
                label="Model", choices=list(studio.names), value=studio.names[0], elem_classes="model", min_width=160
            )
        panel = Panel(studio, model)
        with gr.Tabs(elem_classes="tabs") as tabs:
            panel.tabs = tabs
            for number, (name, build) in enumerate(_TABS):
                with gr.Tab(name, id=name, render_children=number == 0) as tab:
                    panel.selected[name] = tab
                    build(studio, panel)
        panel.wire()

        async def leave(request: gr.Request) -> None:
            studio.sessions.leave(request.session_hash)

        blocks.unload(leave)
    blocks.queue(default_concurrency_limit=None, max_size=256, api_open=False)
    return blocks


def mount(
    app: FastAPI, studio: Studio, auth: Callable[[str, str], bool] | None = None, *, any_host: bool = False
) -> None:
    """Put the studio at the root of a server, behind all routes that the server has.

    Args:
        auth: whether a name and a password may come in; None lets everybody.
        any_host: see `Gate`.
    """
    server = app.state.server
    server.has_page = True
    if server.options.draws:
        app.api_route("/v1/{rest:path}", methods=_METHODS, include_in_schema=False)(_nothing_there)
    cache, uploads = (studio.sessions.root / name for name in ("cache", "uploads"))
    cache.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(cache)
    gr.set_static_paths([studio.sessions.root])
    blocks = page(studio)
    blocks.has_launched = True  # else Gradio takes any path of this machine that a request names for an upload
    gr.mount_gradio_app(
        app,
        blocks,
        path="",
        auth=None if auth is None else _one_at_a_time(auth),
        show_error=False,
        max_file_size=studio.limits.image_bytes,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=(_HERE / "style.css").read_text(encoding="utf-8"),
        head=f"<script>{(_HERE / 'keys.js').read_text(encoding='utf-8')}</script>",
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    visits = Visits(studio.sessions, uploads, cache, studio.limits)
    user = None if auth is None else _user_of(mounted.app)
    mounted.app = Gate(mounted.app, visits, studio.limits, server.room, user, any_host=any_host)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def life(app: Any) -> AsyncIterator[Any]:
        sweeping = asyncio.create_task(_sweep(visits))
        try:
            async with inner(app) as state:
                yield state
        finally:
            sweeping.cancel()
            studio.sessions.close()

    app.router.lifespan_context = life


async def _nothing_there(request: Request) -> None:
    """What is asked of the API and is not there is answered by the API, and not by the page."""
    others = [route.matches(request.scope)[0] for route in request.app.router.routes]
    raise HTTPException(405 if Match.PARTIAL in others else 404)


async def _sweep(visits: Visits) -> None:
    while True:
        await asyncio.sleep(_SWEEP)
        visits.sweep()


def _one_at_a_time(auth: Callable[[str, str], bool]) -> Callable[[str, str], Awaitable[bool]]:
    """Look at passwords in a thread of their own, so that nobody who draws waits for that."""
    thread = ThreadPoolExecutor(1, "ddim-login")

    async def admits(name: str, password: str) -> bool:
        return await asyncio.get_running_loop().run_in_executor(thread, auth, name, password)

    return admits


def _user_of(gradio_app: Any) -> Callable[[dict[str, str]], str | None]:
    """Who has logged in, as Gradio keeps it: a token in a cookie of one of two names."""

    def user(cookies: dict[str, str]) -> str | None:
        names = (f"access-token-{gradio_app.cookie_id}", f"access-token-unsecure-{gradio_app.cookie_id}")
        found = (gradio_app.tokens.get(cookies.get(name, "")) for name in names)
        return next((each for each in found if each is not None), None)

    return user
