"""Constructor arguments as a config, and objects from a config, as diffusers' `ConfigMixin` does it.

A class decorates its `__init__` with `register_to_config`. From then on `obj.config` holds every argument, and
`cls.from_config(obj.config)` builds another object like it. Settings that the class does not know, such as a PNDM
scheduler's `skip_prk_steps`, are kept and saved again, so that nothing is lost on the way through this package.
"""

from __future__ import annotations

import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar, overload

from ddim.errors import ConfigError

# The version of diffusers that saved files name as theirs: the oldest that was checked to read them.
DIFFUSERS_VERSION = "0.30.0"


class Config(dict[str, Any]):
    """A read-only dict whose keys are attributes too. Lists in it become tuples, and dicts in it become `Config`s.

    >>> config = Config(steps_offset=1, block_out_channels=[32, 64])
    >>> config.steps_offset, config["block_out_channels"]
    (1, (32, 64))
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__({key: _freeze(value) for key, value in dict(*args, **kwargs).items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no {name!r}; it has {', '.join(sorted(self))}") from None

    def _read_only(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a config is read-only: build a new object with from_config(config, name=value)")

    __setitem__ = __delitem__ = __setattr__ = __delattr__ = __ior__ = _read_only
    clear = pop = popitem = setdefault = update = _read_only

    def __reduce__(self) -> tuple[type[Config], tuple[dict[str, Any]]]:
        return Config, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> Config:
        return self


class LiveConfig(Config):
    """A config of which attributes can be assigned, as some pipelines do: `scheduler.config.steps_offset = 1`.

    It is for objects that read their config each time they need it. Items stay read-only, and so is what there is
    nothing to read again for.

    Args:
        fixed: the names that cannot be assigned, each with what to do instead.
    """

    def __init__(self, *args: Any, fixed: Mapping[str, str] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        object.__setattr__(self, "_fixed", fixed or {})
        object.__setattr__(self, "writes", 0)  # how often something was assigned

    def __setattr__(self, name: str, value: Any) -> None:  # type: ignore[override]
        if name in self._fixed:
            raise AttributeError(f"{name} has had its effect when the object was made: {self._fixed[name]}")
        if name not in self:
            raise AttributeError(f"the config has no {name!r}; it has {', '.join(sorted(self))}")
        dict.update(self, {**_still_defaults(self, [name]), name: _freeze(value)})
        object.__setattr__(self, "writes", self.writes + 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> LiveConfig:
        return LiveConfig(self, fixed=self._fixed)

    def __reduce__(self) -> tuple[Any, ...]:
        return _live_config, (dict(self), dict(self._fixed))


def _still_defaults(config: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """The entry `_use_default_values` of a config, if it has one, without what is given now."""
    left = config.get("_use_default_values")
    return {} if left is None else {"_use_default_values": tuple(name for name in left if name not in given)}


def _live_config(values: dict[str, Any], fixed: dict[str, str]) -> LiveConfig:
    return LiveConfig(values, fixed=fixed)


def _freeze(value: Any) -> Any:
    """A value as a config holds it: of Python's own types, and so that it cannot be changed."""
    if isinstance(value, Mapping) and not isinstance(value, Config):
        return Config(value)
    if hasattr(value, "tolist"):  # numpy's and PyTorch's arrays and single numbers
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return tuple(_freeze(item) for item in value)
    return value


def _named(init: Callable[..., None]) -> list[str]:
    """The names of a constructor's arguments, without `self` and without `*args` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, parameter in inspect.signature(init).parameters.items() if parameter.kind not in kinds][1:]


def level_of_caller() -> int:
    """The `stacklevel` by which a warning of the function that asks points at whoever called this package.

    PyTorch is passed over, too, whose decorators lie around our functions.
    """
    inside = (__name__.partition(".")[0], "torch")
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in inside:
        frame, level = frame.f_back, level + 1
    return level


Init = TypeVar("Init", bound=Callable[..., None])


def register_to_config(init: Init) -> Init:
    """Decorate an `__init__` so that `self.config` holds every argument, whether it was given or is a default.

    The names of arguments that were not given are kept under `_use_default_values`, in memory but not on disk: another
    class that is built from this config uses its own defaults for them.
    """
    parameters = inspect.signature(init).parameters
    names = _named(init)
    defaults = {
        name: parameter.default for name, parameter in parameters.items() if parameter.default is not parameter.empty
    }

    @functools.wraps(init)
    def wrapper(self: ConfigMixin, *args: Any, **kwargs: Any) -> None:
        private = {name: kwargs.pop(name) for name in list(kwargs) if name.startswith("_")}
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        arguments = {name: value for name, value in {**defaults, **given}.items() if name in names}
        left = [name for name in names if name not in given]
        self.register_to_config(**private, **arguments, **({"_use_default_values": left} if left else {}))
        init(self, *args, **kwargs)

    return wrapper  # type: ignore[return-value]


class ConfigMixin:
    """Gives a class `config`, `from_config` and the config as JSON.

    Attributes:
        config_name: the name of the file that holds the config.
        foreign_keys: settings of other classes whose configs this class accepts; they are kept without a warning.
        own_keys: arguments that diffusers does not know; they are written only where they differ from their default.
    """

    config_name: ClassVar[str] = "config.json"
    foreign_keys: ClassVar[frozenset[str]] = frozenset()
    own_keys: ClassVar[frozenset[str]] = frozenset()

    _internal_dict: Config

    @property
    def config(self) -> Config:
        """The constructor's arguments, and what else was in the config that this object was built from."""
        return self._internal_dict

    def register_to_config(self, **values: Any) -> None:
        """Put settings into `self.config`, in the place of those that have the same names."""
        before = getattr(self, "_internal_dict", {})
        merged = {**before, **_still_defaults(before, values), **values}
        object.__setattr__(self, "_internal_dict", self.make_config(merged))

    @classmethod
    def make_config(cls, values: Mapping[str, Any]) -> Config:
        """The kind of config that objects of this class have."""
        return Config(values)

    @classmethod
    def check_config(cls, config: Mapping[str, Any]) -> None:
        """Raise a ConfigError if no object of this class should be built from a config, whatever its values are."""

    @overload
    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: Literal[False] = ..., **overrides: Any
    ) -> Self: ...

    @overload
    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool, **overrides: Any
    ) -> Self | tuple[Self, dict[str, Any]]: ...

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **overrides: Any
    ) -> Self | tuple[Self, dict[str, Any]]:
        """Build an object from a config of this class or of a compatible one.

        Args:
            config: a dict, for example another object's `.config`. For keys that its `_use_default_values` lists, this
                class's defaults are used.
            return_unused_kwargs: also return the settings that the constructor did not take, as a dict.
            overrides: settings that replace those in the config.

        Raises:
            TypeError: `config` is no mapping.
            ConfigError: the constructor refuses a value.

        Warns:
            UserWarning: neither this class nor a compatible one knows some of the settings.
        """
        if not isinstance(config, Mapping):
            raise TypeError(
                f"{cls.__name__}.from_config takes a dict, not {type(config).__name__}; "
                f"for a path or a hub id use {cls.__name__}.from_pretrained"
            )
        class_name = config.get("_class_name", cls.__name__)
        if not isinstance(class_name, (str, list, tuple)):
            raise ConfigError(f"_class_name in the config must be a string, not {class_name!r:.100}")
        cls.check_config({**config, **overrides})
        arguments, overrides, rest = cls._sort_settings(config, overrides)
        unused = rest if return_unused_kwargs else {**rest, **overrides}
        unknown = sorted(k for k in unused if not k.startswith("_") and k not in cls.foreign_keys)
        if unknown:
            warnings.warn(
                f"{cls.__name__} does not know these settings and ignores them: {', '.join(unknown)}",
                stacklevel=level_of_caller(),
            )
        try:
            built = cls(**arguments)
        except TypeError as error:
            raise ConfigError(f"the config does not fit {cls.__name__}: {error}") from error
        if "_class_name" in rest:
            rest["_class_name"] = cls.__name__
        built.register_to_config(**rest)
        return (built, {**overrides, **rest}) if return_unused_kwargs else built

    @classmethod
    def _sort_settings(
        cls, config: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The constructor's arguments, the overrides that are none, and what is none in the config."""
        left = set(config.get("_use_default_values", ()))
        original = {key: value for key, value in config.items() if key not in left and key != "_use_default_values"}
        merged = {**original, **overrides}
        arguments = {name: merged[name] for name in _named(cls.__init__) if name in merged}
        return (
            arguments,
            {key: value for key, value in overrides.items() if key not in arguments},
            {key: value for key, value in original.items() if key not in arguments},
        )

    @classmethod
    def extract_init_dict(
        cls, config_dict: Mapping[str, Any], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """What `from_config` makes of a config, without building anything.

        Args:
            config_dict: the config.
            kwargs: settings that replace those in it.

        Returns:
            The constructor's arguments; settings that nobody knows; and what is kept in the config besides.
        """
        arguments, overrides, rest = cls._sort_settings(config_dict, kwargs)
        unknown = {key: value for key, value in rest.items() if key not in cls.foreign_keys and not key.startswith("_")}
        return arguments, {**unknown, **overrides}, rest

    def to_json_string(self) -> str:
        """The config as it is written to disk: JSON with sorted keys, indented by two, with a line feed at the end."""
        values = {
            key: value
            for key, value in self.config.items()
            if key != "_use_default_values" and not (key in self.own_keys and value in (None, self._default(key)))
        }
        values["_class_name"] = type(self).__name__
        values["_diffusers_version"] = DIFFUSERS_VERSION
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _default(cls, name: str) -> Any:
        """The default of one of the constructor's arguments, which a subclass may have left to ours."""
        signatures = (inspect.signature(vars(base)["__init__"]) for base in cls.__mro__ if "__init__" in vars(base))
        found = (signature.parameters[name].default for signature in signatures if name in signature.parameters)
        return next(found, inspect.Parameter.empty)
