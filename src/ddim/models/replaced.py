"""Whether someone has replaced a part of a network: by a hook, another `forward`, an attention processor or a module.

Samplers compute what does not change between steps once, and backends run a converted copy of a network. Neither would
call what was put in place of a part, or would call it once instead of at each step. So both ask here first.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules import module as torch_module

from ddim.models.attention import Attention, AttnProcessor

# Modules of these packages compute the same from the same inputs and weights. peft's layers do not: how strong their
# adapters are, and whether they have an effect, are plain values that somebody may set at any time.
_KNOWN = ("ddim", "torch")


def is_replaced(network: nn.Module) -> bool:
    """Whether a part of the network, or the network itself, was replaced; see `parts`."""
    return parts(network) is None


def parts(*networks: nn.Module) -> list[nn.Module] | None:
    """All modules of networks, themselves among them; None if one of them was replaced.

    Found are forward hooks, also those for all modules; a `forward` that was set on an object; an attention processor
    other than `AttnProcessor`; and modules whose class is neither this package's nor PyTorch's.

    This runs at every step, so it is written to be fast.
    """
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return None
    modules = [getattr(network, "_orig_mod", network) for network in networks]  # not what torch.compile wraps them in
    for module in modules:  # to which its children are added on the way
        own = module.__dict__
        if "forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"]:
            return None
        kind = type(module)
        if kind not in _KNOWN_CLASSES and not _is_known(kind):
            return None
        if kind is Attention and type(own.get("processor")) is not AttnProcessor:
            return None
        children = own["_modules"]
        if children:
            modules += [child for child in children.values() if child is not None]
    return modules


_KNOWN_CLASSES: set[type[nn.Module]] = set()


def _is_known(kind: type[nn.Module]) -> bool:
    """Whether a class is of one of the `_KNOWN` packages; if so, it is noted among `_KNOWN_CLASSES`."""
    if kind.__module__.partition(".")[0] not in _KNOWN:
        return False
    _KNOWN_CLASSES.add(kind)
    return True
