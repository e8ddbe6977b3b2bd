"""Who may draw."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from ddim.errors import ConfigError
from ddim.serving.keys import Keys, check_origin, read_keys
from ddim.serving.refusal import Refusal

ONE, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_one_of_the_keys_is_needed() -> None:
    keys = Keys([ONE, OTHER])
    for key in (ONE, OTHER):
        keys.check(f"Bearer {key}")
        keys.check(f"bearer  {key} ")
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        f"Basic {ONE}",
        ONE,
        f"Bearer {ONE}x",
        f"Bearer {ONE[:-1]}",
        "Bearer \udcff",
    ):
        with pytest.raises(Refusal) as raised:
            keys.check(wrong)
        assert raised.value.status == 401
        assert ONE not in raised.value.message
    Keys().check(None)


def test_every_key_is_compared_whatever_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over hashes of one length, by the comparison that takes as long for whatever differs."""
    import hmac

    seen: list[tuple[int, int]] = []
    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: seen.append((len(a), len(b))) or compare(a, b))
    keys = Keys([ONE, OTHER, "x" * 100])
    for sent in (f"Bearer {ONE}", "Bearer z"):
        seen.clear()
        with contextlib.suppress(Refusal):
            keys.check(sent)
        assert seen == [(32, 32)] * 3


def test_a_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# of Ann\n{ONE}\n\n  {OTHER}\n")
    read_keys(str(path)).check(f"Bearer {OTHER}")
    for text, said in (
        ("", "no key"),
        ("# x\n", "no key"),
        ("short\n", "key 1 must be 16"),
        (f"{ONE}\na b c d e f g h i\n", "key 2"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            read_keys(str(path))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text"):
        read_keys(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "origin", [None, "http://localhost:3000", "http://127.0.0.1", "http://[::1]:8000", "https://a.b"]
)
def test_pages_that_may_draw(origin: str | None) -> None:
    check_origin(origin, ["https://a.b"])


@pytest.mark.parametrize("origin", ["null", "https://a.b.c", "http://a.b", "http://localhost.evil", "http://[x", ""])
def test_pages_that_may_not(origin: str) -> None:
    with pytest.raises(Refusal) as raised:
        check_origin(origin, ["https://a.b"])
    assert raised.value.status == 403
    check_origin(origin, ["*"])
