"""Pictures for many who ask at once: one engine that puts steps of different runs into one forward pass.

requests     what can be asked for, and what is given back
futures      what is heard of a request on its way
samples      a request that is being drawn: its plan, its place in it, its numbers
models       what the engine asks of a pipeline, of each kind
batches      one step of samples of one shape, each at its own timestep
engine       the queue, the thread that drives the network, and its life

    with Engine(pipe) as engine:
        future = engine.submit(Request(prompt="a red heart", seed=7))
        for event in future.events(): ...
        picture = future.result()
"""

from ddim.serving.engine import Engine, Stats
from ddim.serving.futures import Cancelled, Event, Failed, Finished, Future, Queued, Started, Step
from ddim.serving.requests import Picture, Request

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
