"""Pictures for many who ask at once: one engine that puts steps of different runs into one forward pass.

requests     what can be asked for, and what is given back
futures      what is heard of a request on its way
samples      a request that is being drawn: its plan, its place in it, its numbers
models       what the engine asks of a pipeline, of each kind
network      the U-Net, with what is computed once
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
