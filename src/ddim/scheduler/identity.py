"""How diffusers takes our schedulers for its own, without our importing it.

diffusers asks of a scheduler what it is: `isinstance(scheduler, SchedulerMixin)` when a pipeline is loaded with one or
saved, `isinstance(scheduler, DDIMScheduler)` in pipelines that are for this sampler alone, and `scheduler.__module__`
for the library that `model_index.json` names. A scheduler that is none of these is refused, left out of what is saved,
or silently replaced by another sampler. To be a subclass of diffusers' class would mean importing it, which takes
seconds, and nobody needs it who has no diffusers.

Python lets an object say what it is: `isinstance` also looks at `object.__class__`. So once somebody has imported
diffusers, our schedulers answer with a class that inherits from both, ours first: every method is ours, and to
diffusers it is one of its own. `type(scheduler)` stays our class. Without diffusers nothing differs.

    scheduler.__class__          ours, or (ours, diffusers') once diffusers has been imported
    scheduler.__module__         "ddim.scheduler", or diffusers' own module, so that what is saved loads in a diffusers
                                 that has never heard of this package
    scheduler.__class__(…), .from_config(…)    make one of ours, an object of `type(scheduler)`
    scheduler.compatibles        ours, and diffusers' once diffusers has been imported
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

_kin: dict[tuple[type, type], type] = {}  # (our class, diffusers' class) -> the class that is both


class Home(str):
    """The name of a class's module, as a class attribute `__module__`; its instances may say another one.

    Args:
        name: the module that the class is in.
    """

    def __get__(self, instance: Any, owner: type) -> str:
        theirs = None if instance is None else _theirs(owner)
        return str(self) if theirs is None else theirs.__module__

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """As plain text, which is what a pickle of the class needs its module's name to be."""
        return str, (str(self),)


class KnownToDiffusers:
    """Gives a class whose instances diffusers is to take for its own.

    Attributes:
        diffusers_class: the name of the class, in diffusers, that an instance counts as.
    """

    diffusers_class: ClassVar[str]

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        """What `isinstance` and diffusers see; `type(…)` is the class itself."""
        own = type(self)
        theirs = _theirs(own)
        if theirs is None or issubclass(own, theirs):
            return own
        if (own, theirs) not in _kin:
            is_plain = isinstance(own.__dict__.get("__module__"), Home)  # one of ours, and not a user's subclass of it
            module = theirs.__module__ if is_plain else own.__module__
            body = {
                "__module__": module,
                "__qualname__": own.__qualname__,
                "__doc__": own.__doc__,
                "__new__": _made_of(own),
            }
            _kin[own, theirs] = type(own.__name__, (own, theirs), body)
        return _kin[own, theirs]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled and copied as an instance of `type(self)`: pickle would trip over a `__class__` that is another."""
        return _empty, (type(self),), self.__dict__


def _made_of(own: type[Any]) -> Any:
    """`__new__` of a class that is both: it makes an object of our class, which can be pickled by that class's name.

    A class that somebody derives from it is made as any other.
    """

    def new(cls: type[Any], *args: Any, **kwargs: Any) -> Any:
        return own(*args, **kwargs) if cls in _kin.values() else object.__new__(cls)

    return new


def classes_of_diffusers(names: list[str]) -> list[type]:
    """Those classes of diffusers that have these names; none while diffusers has not been imported.

    Left out are those that stand in the place of a class whose library is not installed, and only raise an error.
    """
    module = sys.modules.get("diffusers")
    found = [] if module is None else [getattr(module, name, None) for name in names]
    return [cls for cls in found if isinstance(cls, type) and type(cls).__name__ != "DummyObject"]


def _empty(own: type[object]) -> object:
    return object.__new__(own)


def _theirs(own: type) -> type | None:
    """The class of diffusers that one of ours counts as; None while diffusers has not been imported."""
    name, module = getattr(own, "diffusers_class", None), sys.modules.get("diffusers")
    if name is None or module is None:
        return None
    try:
        found = getattr(module, name, None)  # diffusers imports its parts when they are first asked for
    except Exception:  # its own import is under way, or fails: then there is nothing yet to be taken for
        return None
    return found if isinstance(found, type) else None
