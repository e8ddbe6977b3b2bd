"""Networks with a core: a function of tensors alone, which a backend may run in another way."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ddim.models.replaced import parts
from ddim.models.snapshot import Snapshot

T = TypeVar("T")

Runner = Callable[..., Any]

SHARE = 0.01  # of the time, at most, goes into looking for changes that nobody in this thread can have made


class _Weak(weakref.ref[Any]):
    """A weak reference that is neither copied nor pickled with the network that has it: None takes its place."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


class HasCore(nn.Module):
    """A network whose work is done by `core`, or in its place by a `runner`, if a backend has set one.

    In training mode, and where the inputs want a gradient, `core` itself runs, as a runner has no backward pass. So it
    does where a part of the network was replaced, as a runner knows nothing of that.
    """

    runner: Runner | None = None
    _known_to: _Weak | None = None  # a runner
    _known_parts: Sequence[nn.Module] = ()  # what that runner has seen
    _last_seen: _Weak | None = None  # the last snapshot, if anybody still has it

    def core(self, *inputs: Tensor) -> Any:
        """The network's work as a function of tensors alone, whose first dimension is the batch or 1.

        A subclass says what it returns: a tensor, or a tuple of them.
        """
        raise NotImplementedError

    def is_altered(self) -> bool:
        """Whether the network is set to compute something that a runner knows nothing of; a subclass says so."""
        return False

    def active_runner(self) -> Runner | None:
        """The runner, if there is one that may run the network as it is now."""
        if torch.compiler.is_compiling():
            return None
        held = _held_here().get(self)
        runner = self.runner if held is None else held.runner
        if runner is None or self.training or self.is_altered():
            return None
        if held is not None and held.is_known():
            return runner
        found = parts(*self.children())
        if found is None:
            return None
        if self._known_to is None or self._known_to() is not runner:  # it is new, and will see these parts
            self._known_parts, self._known_to = found, _Weak(runner)
        elif found != self._known_parts:
            return None
        if held is not None:
            held.begin()
            held.note()
        return runner

    def run_core(self, *inputs: Tensor) -> Any:
        """What `core` returns, computed by the runner where there is one that may."""
        return self.run_by(self.active_runner(), *inputs)

    def run_by(self, runner: Runner | None, *inputs: Tensor) -> Any:
        """What `core` returns, computed by `runner` unless that is None or an input wants a gradient."""
        if runner is None or any(x.requires_grad for x in inputs):
            return self.core(*inputs)
        return runner(*inputs)

    def look(self) -> Snapshot:
        """The weights as they are now: the object that the last look gave, unless something has changed since.

        In the middle of a run that this thread makes, a look that was just taken is not taken again.
        """
        held = _held_here().get(self)
        if held is not None and held.is_fresh and held.seen is not None:
            held.is_fresh = False
            return held.seen
        seen = self._last()
        if seen is not None and seen.is_current():
            return seen
        with _ONE_LOOK:
            seen = self._last()
            if seen is None or not seen.is_current():
                seen = Snapshot(self)
                self._last_seen = _Weak(seen)
            return seen

    def _last(self) -> Snapshot | None:
        return None if self._last_seen is None else self._last_seen()

    def weights_changed(self) -> None:
        """Say that weights were written to in a way that PyTorch does not count, such as by `p.data[0] = 1`.

        It takes effect at the next step. Without it such writes are noticed at the beginning of the next run, and
        mostly before; see docs/backends.md.
        """
        self._last_seen = None


_ONE_LOOK = threading.Lock()


# --- for the time of a run -------------------------------------------------------------------------------------------


class Held:
    """A network as one run uses it: with the runner that it has when the run begins, whatever `accelerate` does then.

    Args:
        network: any; of one without a core there is nothing to hold.
    """

    def __init__(self, network: Any) -> None:
        own = getattr(network, "_orig_mod", network)  # the network itself, if torch.compile has wrapped it
        self.network: HasCore | None = own if isinstance(own, HasCore) else None
        outer = None if self.network is None else _held_here().get(self.network)
        self.runner: Runner | None = outer.runner if outer is not None else getattr(self.network, "runner", None)
        self.seen: Snapshot | None = None
        self.is_fresh = False  # whether `seen` is of this step, and nobody has asked for it yet
        self.is_whole = False  # whether somebody found at this step that no part is replaced
        self.is_alone = False  # whether no callback runs between the steps: only other threads can change weights
        self.has_looked = False  # whether the last `look` did look
        self._last: _Weak | None = None  # what it gave
        self._next_look, self._cost = 0.0, float("inf")  # by the clock of `time.perf_counter`, in seconds
        self._noted: _Weak | None = None  # see `note`
        self._has_begun = False
        self._before: list[Held | None] = []  # what this thread held before, outside of each context

    def begin(self) -> None:
        """Tell the runner that a run begins, once."""
        if not self._has_begun:
            self._has_begun = True
            begin: Callable[[], None] | None = getattr(self.runner, "begin", None)
            if begin is not None:
                begin()

    def note(self) -> None:
        """Note that the runner may run the network with these weights, which stand for its modules too."""
        self._noted = None if self.seen is None else _Weak(self.seen)

    def is_known(self) -> bool:
        """Whether the network is as it was when this was noted, so that its parts need not be looked at again."""
        return self.is_whole and self.seen is not None and self._noted is not None and self._noted() is self.seen

    def look(self) -> Snapshot | None:
        """The weights as they are at this step; see `HasCore.look`. None for a network without a core.

        A run that is alone does not look at each step, as what other threads do may as well come a moment later.
        """
        if self.network is None:
            return None
        self.begin()
        start = time.perf_counter()
        last = None if self._last is None else self._last()
        self.has_looked = not self.is_alone or last is None or start >= self._next_look
        if last is None or self.has_looked:
            self.is_fresh = False
            seen, end = self.network.look(), time.perf_counter()
            if seen is last:
                self._cost = min(self._cost, end - start)
                self._next_look = end + self._cost / SHARE
            else:
                self._last, self._next_look, last = _Weak(seen), 0.0, seen
        self.seen, self.is_fresh = last, True
        return last

    def __enter__(self) -> None:
        """Within this context, this thread uses the network so."""
        if self.network is not None:
            here = _held_here()
            self._before.append(here.get(self.network))
            here[self.network] = self

    def __exit__(self, *_: object) -> None:
        self.is_fresh, self.is_whole, self.seen = False, False, None
        if self.network is not None:
            here, before = _held_here(), self._before.pop()
            if before is None:
                here.pop(self.network, None)
            else:
                here[self.network] = before


_HERE = threading.local()


def _held_here() -> dict[nn.Module, Held]:
    """What this thread holds."""
    held: dict[nn.Module, Held] | None = getattr(_HERE, "held", None)
    if held is None:
        held = _HERE.held = {}
    return held


def hold(network: Any) -> Held:
    """A network for a run of this thread: as the call holds it that the thread makes, if it makes one."""
    held = Held(network)
    return held if held.network is None else _held_here().get(held.network, held)


@contextmanager
def holding(networks: Iterable[Any]) -> Iterator[None]:
    """A context in which this thread uses all networks with the runners that they have at its beginning.

    Within another such context, that one's beginning counts.
    """
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(Held(network))
        yield


@contextmanager
def in_pytorch(networks: Iterable[Any]) -> Iterator[None]:
    """A context in which PyTorch runs all networks for this thread, in the type of their weights.

    Whatever backend they have runs them for other threads. One that computes in bfloat16 is too coarse for what is to
    come back exactly.
    """
    with ExitStack() as stack:
        for network in networks:
            held = Held(network)
            held.runner = None
            stack.enter_context(held)
        yield


def in_turn(given: Tensor | Iterator[T] | None) -> Tensor | T | None:
    """What the next of several layers is given: the same tensor as each of them, or what was made for it beforehand.

    Args:
        given: a tensor or None, which all layers share; or one value for each layer, in the order in which they run.
    """
    return given if given is None or isinstance(given, Tensor) else next(given)
