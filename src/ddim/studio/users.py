"""Who may log in at the studio: a file of users and of what their passwords hash to.

A line is `name:scrypt:N:r:p:salt:hash`, in hexadecimal from the salt on. Only somebody who guesses a password finds it
from that, and every guess takes a fifth of a second and 32 MiB (scrypt, RFC 7914).
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import secrets
import sys
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ddim.checkpoint.files import atomic_write
from ddim.errors import ConfigError

__all__ = ["Users", "ask_and_add"]

_COST = (2**15, 8, 3)  # N, r and p of scrypt
_MEMORY = 256 * 2**20  # bytes that checking a password may take, whatever a file says
_LEAST, _MOST = 8, 1024  # letters of a password
_NAME = 64  # letters of a name, at most
_TRIES, _MINUTE = 10, 60.0  # wrong passwords of a name, and the seconds in which there may be so many
_NAMES = 10_000  # whose wrong passwords are counted


@dataclass(frozen=True)
class _Hash:
    """What a password hashes to.

    Attributes:
        cost: N, r and p of scrypt.
        salt, value: of the hash.
    """

    cost: tuple[int, int, int]
    salt: bytes
    value: bytes

    @classmethod
    def of(cls, password: str) -> _Hash:
        salt = secrets.token_bytes(16)
        return cls(_COST, salt, _scrypt(password, salt, _COST))

    @classmethod
    def read(cls, text: str) -> _Hash:
        """Of the part of a line that follows the name.

        Raises:
            ValueError: it is none, or takes too much to check.
        """
        kind, *numbers, salt, value = text.split(":")
        n, r, p = (int(number) for number in numbers)
        read = cls((n, r, p), bytes.fromhex(salt), bytes.fromhex(value))
        is_fair = n > 1 and n & (n - 1) == 0 and r > 0 and 0 < p <= 16 and 128 * n * r <= _MEMORY
        if kind != "scrypt" or not is_fair or len(read.salt) < 8 or len(read.value) != 32:
            raise ValueError(text)
        return read

    def __str__(self) -> str:
        return ":".join(("scrypt", *map(str, self.cost), self.salt.hex(), self.value.hex()))

    def fits(self, password: str) -> bool:
        """Whether it is of this password."""
        return hmac.compare_digest(self.value, _scrypt(password, self.salt, self.cost))


def _scrypt(password: str, salt: bytes, cost: tuple[int, int, int]) -> bytes:
    n, r, p = cost
    letters = unicodedata.normalize("NFC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(letters, salt=salt, n=n, r=r, p=p, maxmem=_MEMORY + 2**22, dklen=32)


class Users:
    """The users of a file, as it was when this was made.

    Args:
        path: of the file.
        clock: seconds that only grow.

    Raises:
        ConfigError: it cannot be read, has no user, or a line is not as `--add-user` writes it.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._hashes = _read(path)
        if not self._hashes:
            raise ConfigError(
                f"--auth-file {path} has no user: ddim studio --auth-file {path} --add-user NAME adds one"
            )
        self._nobody = _Hash.of(secrets.token_hex())
        self._clock = clock
        self._wrong: OrderedDict[str, list[float]] = OrderedDict()  # when each name's wrong passwords came
        self._lock = threading.Lock()

    def check(self, name: str, password: str) -> bool:
        """Whether this name and password may come in.

        A name that there is not takes as long as one that there is. After ten wrong passwords in a minute, a name's
        further ones are refused without a look, right or wrong. One is looked at at a time.
        """
        name = _folded(name)
        with self._lock:
            if len(name) > _NAME or len(password) > _MOST or self._is_tired_of(name):
                return False
            known = self._hashes.get(name)
            fits = (known or self._nobody).fits(password) and known is not None
            if not fits:
                self._wrong.setdefault(name, []).append(self._clock())
                self._wrong.move_to_end(name)
                if len(self._wrong) > _NAMES:
                    self._wrong.popitem(last=False)
            return fits

    def _is_tired_of(self, name: str) -> bool:
        """Whether this name had too many wrong passwords."""
        since = self._clock() - _MINUTE
        lately = [each for each in self._wrong.pop(name, ()) if each > since]
        if lately:
            self._wrong[name] = lately
        return len(lately) >= _TRIES


def ask_and_add(path: str, name: str) -> str:
    """Ask for a password, write a user and its hash into a file, and return what to say of that.

    A user who is there gets the new password. What else the file has stays. Nobody but its owner may read it.

    Raises:
        ConfigError: the name or the password will not do, the two passwords differ, or the file is no such file.
        CheckpointError: it cannot be written.
    """
    name = _folded(name)
    if not name or len(name) > _NAME or name.startswith("#") or not name.isprintable() or ":" in name:
        raise ConfigError(f"--add-user {name} is no name: up to {_NAME} letters without : and no # at the beginning")
    users = _read(path) if os.path.lexists(path) else {}
    users[name], verb = _Hash.of(_asked(name)), "has a new password" if name in users else "was added"
    before = Path(path).read_text(encoding="utf-8").splitlines() if os.path.lexists(path) else []
    kept = [line for line in before if line.strip().startswith("#") or _folded(line.partition(":")[0]) != name]
    real = os.path.realpath(path)
    old = os.umask(0o077)
    try:
        with atomic_write(real) as temporary:
            temporary.write_text("\n".join([*kept, f"{name}:{users[name]}"]) + "\n", encoding="utf-8")
    finally:
        os.umask(old)
    return f"{name} {verb}: {path} has {len(users)} user{'s' * (len(users) != 1)}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _asked(name: str) -> str:
    """A new password, of the terminal twice; of a pipe, its first line.

    Raises:
        ConfigError: none came, the two differ, or it will not do.
    """
    try:
        if sys.stdin.isatty():
            password = getpass.getpass(f"Password of {name}: ")
            again = getpass.getpass("The same again: ")
        else:
            password = again = sys.stdin.readline().rstrip("\r\n")
    except (EOFError, UnicodeDecodeError) as error:
        raise ConfigError(f"--add-user {name}: no password came") from error
    if password != again:
        raise ConfigError(f"--add-user {name}: the two passwords differ; nothing was changed")
    if not _LEAST <= len(password) <= _MOST:
        raise ConfigError(f"--add-user {name}: a password has from {_LEAST} to {_MOST} letters; nothing was changed")
    return password


def _read(path: str) -> dict[str, _Hash]:
    """The users of a file; empty lines and those that begin with # are none.

    Raises:
        ConfigError: it cannot be read, or a line is not as `--add-user` writes it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"--auth-file {path} cannot be read: {why}; ddim studio --auth-file {path} --add-user NAME makes one"
        ) from error
    users: dict[str, _Hash] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        name, _, rest = line.partition(":")
        name = _folded(name)
        try:
            read = _Hash.read(rest.strip())
        except ValueError as error:
            raise ConfigError(
                f"--auth-file {path}: line {number} is no user as --add-user writes one, name:scrypt:N:r:p:salt:hash"
            ) from error
        if not name or name in users:
            raise ConfigError(
                f"--auth-file {path}: line {number} has {'a second' if name else 'no'} user {name}".rstrip()
            )
        users[name] = read
    return users
