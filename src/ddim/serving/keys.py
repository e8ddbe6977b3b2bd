"""Who may draw: keys, and pages of browsers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ddim.errors import ConfigError
from ddim.serving.refusal import Refusal

__all__ = ["Keys", "check_origin", "is_loopback", "read_keys"]

_LEAST = 16  # letters of a key; shorter ones can be found by trying


class Keys:
    """The keys of which every request needs one; without any, nobody needs one.

    What a client sends is compared with each of them, over hashes and in constant time, so that how long it takes tells
    nothing of the keys.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._hashes = [_hash(key) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def check(self, authorization: str | None) -> None:
        """Raise a `Refusal` with status 401 unless the header Authorization has one of the keys."""
        if not self._hashes:
            return
        scheme, _, key = (authorization or "").partition(" ")
        given = _hash(key.strip() if scheme.lower() == "bearer" else "")
        found = [hmac.compare_digest(given, known) for known in self._hashes]
        if not any(found):
            raise Refusal(
                "this server needs a key, and this is none of its keys: send one as Authorization: Bearer KEY, which "
                "is api_key= of the openai client",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: str) -> Keys:
    """The keys of a file, which has one in a line; empty lines and those that begin with # are none.

    Raises:
        ConfigError: there is no such file, it has no key, or one is so short that it can be guessed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--api-key-file {path} cannot be read: {why}") from error
    keys = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"--api-key-file {path} has no key: write one in a line, such as of `openssl rand -hex 32`")
    for number, key in enumerate(keys, 1):
        if len(key) < _LEAST or not key.isascii() or " " in key:
            raise ConfigError(
                f"--api-key-file {path}: key {number} must be {_LEAST} or more letters of ASCII without spaces, such "
                "as those of `openssl rand -hex 32`"
            )
    return Keys(keys)


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is that of this machine alone.

    >>> [is_loopback(host) for host in ("127.0.0.1", "localhost", "::1", "[::1]", "0.0.0.0", "example.org")]
    [True, True, True, True, False, False]
    """
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_origin(origin: str | None, allowed: Collection[str]) -> None:
    """Refuse a page of another site: any page in a browser on this machine can send forms to it.

    Args:
        origin: the header Origin, which browsers send and programs do not.
        allowed: the origins whose pages may draw; "*" allows all. Those of this machine always may.

    Raises:
        Refusal: with status 403.
    """
    if origin is None or origin in allowed or "*" in allowed:
        return
    try:
        host = urlsplit(origin).hostname or ""
    except ValueError:
        host = ""
    if not is_loopback(host):
        raise Refusal(
            f"a page of {origin[:100]} may not draw here: start the server with --cors-origin {origin[:100]} to let it",
            status=403,
            code="origin_not_allowed",
        )
