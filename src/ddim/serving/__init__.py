"""Pictures for many who ask at once: one engine that puts steps of different runs into one forward pass.

requests     what can be asked for, and what is given back
futures      what is heard of a request on its way
samples      a request that is being drawn: its plan, its place in it, its numbers
models       what the engine asks of a pipeline, of each kind
network      the U-Net, with what is computed once; steering, the same with ControlNets
batches      one step of samples of one shape, each at its own timestep
exact        the same, where bits are not to depend on who else is drawn; probe, what that takes on a machine
engine       the queue, the thread that drives the network, and its life

The server over HTTP is what `ddim serve` starts, and needs the extra "serve":

api          its routes, and what happens to every request
parameters   what a client may ask for; document, what OpenAPI says of that
bodies       JSON and forms, read within `limits`; connections, that end when a client is too slow
keys         who may draw
wishes       from what a client asks for to what the engine draws
runs         the pictures of a request on their way; variations, what is drawn beside the engine
answers      what goes back; refusal, if it is an error; pictures and recipes, the files
pool, store  the models; the pictures that wait at an address
metrics, logs, running  what is counted, what is told, and the process

By several processes, for which Ray is needed, the extra "scale":

front        where requests come in; totals, what all have counted
replica      what draws in each process; replicas, these on Ray Serve; cluster, Ray itself

    with Engine(pipe) as engine:
        future = engine.submit(Request(prompt="a red heart", seed=7))
        for event in future.events(): ...
        picture = future.result()

The names below are loaded when they are first used: what `keys` says of an address can be asked without PyTorch, which
the commands do before they begin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Cancelled",
    "Engine",
    "Event",
    "Failed",
    "Finished",
    "Future",
    "Picture",
    "Queued",
    "Request",
    "Started",
    "Stats",
    "Step",
]

_HOMES = {
    "Cancelled": "futures",
    "Engine": "engine",
    "Event": "futures",
    "Failed": "futures",
    "Finished": "futures",
    "Future": "futures",
    "Picture": "requests",
    "Queued": "futures",
    "Request": "requests",
    "Started": "futures",
    "Stats": "engine",
    "Step": "futures",
}

if TYPE_CHECKING:
    from ddim.serving.engine import Engine, Stats
    from ddim.serving.futures import Cancelled, Event, Failed, Finished, Future, Queued, Started, Step
    from ddim.serving.requests import Picture, Request
else:  # a type checker that saw this function would take every name for one of ours, misspelt ones too

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
