"""Who may log in: the file of users, what it costs to guess, and what is said of a broken one."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from ddim.cli import main
from ddim.errors import ConfigError
from ddim.studio import users
from ddim.studio.users import Users, ask_and_add

PASSWORD = "correct horse"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that take no fifth of a second."""
    monkeypatch.setattr(users, "_COST", (2**4, 8, 1))


def piped(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    path = str(tmp_path / "users.txt")
    piped(monkeypatch, PASSWORD + "\n")
    assert ask_and_add(path, "ada") == f"ada was added: {path} has 1 user"
    return path


def test_a_user_who_was_added_may_come_in_and_nobody_else(file: str) -> None:
    found = Users(file)
    assert found.check("ada", PASSWORD)
    assert found.check(" ada ", PASSWORD)
    for name, password in (
        ("ada", "wrong horse"), ("ada", ""), ("ada", PASSWORD + " "), ("Ada", PASSWORD), ("", PASSWORD), ("", ""),
        ("eve", PASSWORD), ("ada:", PASSWORD), ("ada", "x" * 10**6), ("a" * 10**6, PASSWORD), ("ada", "\ud800" * 9),
    ):  # fmt: skip
        assert not found.check(name, password), (name, password)


def test_the_file_has_no_password_and_nobody_else_may_read_it(file: str) -> None:
    text = Path(file).read_text()
    assert PASSWORD not in text
    name, kind, n, r, p, salt, value = text.strip().split(":")
    assert (name, kind) == ("ada", "scrypt")
    made = hashlib.scrypt(PASSWORD.encode(), salt=bytes.fromhex(salt), n=int(n), r=int(r), p=int(p), dklen=32)
    assert made.hex() == value
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_what_a_password_costs_is_what_is_recommended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    n, r, p = users._COST
    assert (n * r * p, 128 * n * r) >= (2**15 * 8 * 3, 32 * 2**20)


def test_the_same_password_hashes_otherwise_each_time(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Path(file).read_text()
    piped(monkeypatch, PASSWORD + "\n")
    ask_and_add(file, "bob")
    ada, bob = (line.split(":")[-1] for line in Path(file).read_text().splitlines())
    assert ada != bob
    assert first in Path(file).read_text()


def test_a_new_password_takes_the_place_of_the_old_one_and_comments_stay(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(file).write_text("# ours\n\n" + Path(file).read_text())
    os.chmod(file, 0o644)
    piped(monkeypatch, "another one\n")
    assert ask_and_add(file, "ada") == f"ada has a new password: {file} has 1 user"
    found = Users(file)
    assert found.check("ada", "another one")
    assert not found.check("ada", PASSWORD)
    assert Path(file).read_text().startswith("# ours\n\nada:scrypt:")
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600


def test_a_link_to_the_file_stays_a_link(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    link.symlink_to(file)
    piped(monkeypatch, "another one\n")
    ask_and_add(str(link), "bob")
    assert link.is_symlink()
    assert Users(file).check("bob", "another one")


def test_a_terminal_is_asked_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([PASSWORD, PASSWORD, PASSWORD, "something else"])
    monkeypatch.setattr(sys, "stdin", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    path = str(tmp_path / "users.txt")
    ask_and_add(path, "ada")
    assert Users(path).check("ada", PASSWORD)
    before = Path(path).read_text()
    with pytest.raises(ConfigError, match="--add-user bob: the two passwords differ; nothing was changed"):
        ask_and_add(path, "bob")
    assert Path(path).read_text() == before


@pytest.mark.parametrize(
    ("name", "typed", "said"),
    [
        ("ada", "short\n", "from 8 to 1024 letters"),
        ("ada", "", "from 8 to 1024 letters"),
        ("ada", "x" * 1025 + "\n", "from 8 to 1024 letters"),
        ("a:b", "long enough\n", "--add-user a:b is no name"),
        ("", "long enough\n", "is no name"),
        ("#ada", "long enough\n", "is no name"),
        ("a\nb", "long enough\n", "is no name"),
        ("a" * 65, "long enough\n", "is no name"),
    ],
)
def test_what_will_not_do_is_said_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, typed: str, said: str
) -> None:
    piped(monkeypatch, typed)
    with pytest.raises(ConfigError, match=said):
        ask_and_add(str(tmp_path / "users.txt"), name)
    assert list(tmp_path.iterdir()) == []


LINE = f"ada:scrypt:16:8:1:{'00' * 16}:{'00' * 32}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no user: ddim studio --auth-file"),
        ("# nobody\n\n", "has no user"),
        ("ada:secret\n", "line 1 is no user as --add-user writes one"),
        ("ada\n", "line 1 is no user"),
        (LINE + "\n\n" + LINE.replace("ada", " ada "), "line 3 has a second user ada"),
        (LINE.removeprefix("ada"), "line 1 has no user"),
        (LINE.replace("scrypt", "md5"), "line 1 is no user"),
        (LINE.replace(":16:", ":1073741824:"), "line 1 is no user"),  # it would take terabytes
        (LINE.replace(":8:1:", ":8:1000000:"), "line 1 is no user"),  # it would take hours
        (LINE.replace(":16:", ":17:"), "line 1 is no user"),
        (LINE.replace(":16:", ":-16:"), "line 1 is no user"),
        (LINE.replace("00" * 32, ""), "line 1 is no user"),
        (LINE.replace("00" * 32, "zz"), "line 1 is no user"),
        (LINE + ":1", "line 1 is no user"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "users.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        Users(str(path))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*--add-user NAME makes one"):
        Users(str(tmp_path / "users.txt"))
    with pytest.raises(ConfigError, match="Is a directory"):
        Users(str(tmp_path))
    (tmp_path / "picture").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="it is no text"):
        Users(str(tmp_path / "picture"))


def test_guessing_is_bounded_by_the_minute_and_for_each_name(file: str) -> None:
    now = 0.0
    found = Users(file, lambda: now)
    for number in range(10):
        now = float(number)
        assert not found.check("ada", "wrong")
        assert not found.check("eve", "wrong")
    assert not found.check("ada", PASSWORD)  # right, but not looked at
    now = 60.0
    assert found.check("ada", PASSWORD)  # the first of ten is a minute ago
    assert not found.check("ada", "wrong")
    assert not found.check("ada", PASSWORD)
    now = 200.0
    assert found.check("ada", PASSWORD)


def test_names_that_there_are_not_fill_no_memory(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(users, "_NAMES", 5)
    found = Users(file)
    for number in range(50):
        found.check(f"eve{number}", "wrong")
    assert len(found._wrong) == 5


def test_a_name_that_there_is_not_costs_the_same(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, hashed = Users(file), []
    scrypt = hashlib.scrypt
    monkeypatch.setattr(hashlib, "scrypt", lambda *args, **more: hashed.append(more["n"]) or scrypt(*args, **more))
    found.check("eve", PASSWORD)
    found.check("ada", "wrong")
    found.check("ada", PASSWORD)
    assert hashed == [16, 16, 16]


def test_one_password_is_looked_at_at_a_time(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, running, most = Users(file), [], []
    scrypt = hashlib.scrypt

    def counted(*args: object, **more: int) -> bytes:
        running.append(1)
        most.append(len(running))
        made = scrypt(*args, **more)  # type: ignore[arg-type]
        running.pop()
        return made

    monkeypatch.setattr(hashlib, "scrypt", counted)
    threads = [threading.Thread(target=found.check, args=("ada", PASSWORD)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 8


def test_the_command_adds_a_user_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped(monkeypatch, PASSWORD + "\n")
    path = tmp_path / "users.txt"
    main(["studio", "--auth-file", str(path), "--add-user", "ada"])
    assert "ada was added" in "".join(capsys.readouterr())
    assert Users(str(path)).check("ada", PASSWORD)
