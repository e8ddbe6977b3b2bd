"""Who is at the studio: browsers, their pages and their files, with a clock of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ddim.serving.limits import Limits
from ddim.serving.refusal import Refusal
from ddim.studio import visits as module
from ddim.studio.sessions import Sessions
from ddim.studio.visits import Visit, Visits


class Place:
    """A studio's visits and the hands of its clock."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.sessions = Sessions()
        (root / "cache").mkdir()
        self.visits = Visits(self.sessions, root / "uploads", root / "cache", Limits(), lambda: self.now)

    def begin(self) -> Visit:
        visit = self.visits.of(self.visits.begin())
        assert visit is not None
        return visit


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.sessions.close()


def test_a_page_and_its_files_are_the_browsers_that_named_it_first(place: Place) -> None:
    ada, bob = place.begin(), place.begin()
    assert place.visits.claim(ada, "pageone1") == place.visits.claim(ada, "pageone1") == "pageone1"
    with pytest.raises(Refusal, match="another visitor's page"):
        place.visits.claim(bob, "pageone1")
    made = place.sessions.of("pageone1").keep(b"x", "x.png")
    uploaded = place.visits.keep(ada, b"x", "x.png")
    for path in (made, uploaded):
        assert place.visits.may_have(ada, str(path))
        assert not place.visits.may_have(bob, str(path))


def test_all_goes_with_a_browsers_last_page(place: Place) -> None:
    ada = place.begin()
    for page in ("pageone1", "pagetwo2"):
        place.visits.opened(ada, place.visits.claim(ada, page))
    made, uploaded = place.sessions.of("pageone1").keep(b"x", "x.png"), place.visits.keep(ada, b"x", "x.png")
    stopped: list[str] = []
    place.sessions.of("pageone1").begin("draw", lambda: stopped.append("draw"))
    place.visits.closed(ada, "pageone1")
    assert (made.exists(), uploaded.exists(), stopped) == (False, True, ["draw"])
    place.visits.closed(ada, "pagetwo2")
    assert not uploaded.exists()
    assert place.visits.claim(place.begin(), "pageone1")  # which is nobody's now


def test_a_page_with_two_connections_is_open_as_long_as_one_is(place: Place) -> None:
    ada = place.begin()
    page = place.visits.claim(ada, "pageone1")
    place.visits.opened(ada, page)
    place.visits.opened(ada, page)
    uploaded = place.visits.keep(ada, b"x", "x.png")
    place.visits.closed(ada, page)
    assert uploaded.exists()
    place.visits.closed(ada, page)
    assert not uploaded.exists()


def test_what_never_opened_a_page_goes_after_a_minute(place: Place) -> None:
    ada = place.begin()
    place.visits.claim(ada, "pageone1")
    made, uploaded = place.sessions.of("pageone1").keep(b"x", "x.png"), place.visits.keep(ada, b"x", "x.png")
    place.now = 59
    place.visits.sweep()
    assert made.exists()
    assert uploaded.exists()
    place.now = 61
    place.visits.sweep()
    assert not made.exists()
    assert not uploaded.exists()
    assert len(place.sessions) == 0


def test_a_session_that_a_last_request_began_after_its_page_was_closed_goes(place: Place) -> None:
    ada = place.begin()
    page = place.visits.claim(ada, "pageone1")
    place.visits.opened(ada, page)
    place.visits.closed(ada, page)
    late = place.sessions.of(page).keep(b"x", "x.png")
    place.visits.sweep()
    assert not late.exists()


def test_browsers_that_have_gone_are_forgotten(place: Place) -> None:
    token = place.visits.begin()
    assert place.visits.of(token) is not None
    place.now = 3601
    place.visits.sweep()
    assert place.visits.of(token) is None


def test_too_many_browsers_push_out_those_without_a_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BROWSERS", 3)
    tokens = []
    for number in range(3):
        place.now = number
        tokens.append(place.visits.begin())
    first = place.visits.of(tokens[0])
    assert first is not None
    place.visits.claim(first, "pageone1")
    tokens.append(place.visits.begin())
    assert [place.visits.of(token) is not None for token in tokens] == [True, False, True, True]
    for number, token in enumerate((tokens[2], tokens[3])):
        visit = place.visits.of(token)
        assert visit is not None
        place.visits.claim(visit, f"page000{number}")
    with pytest.raises(Refusal, match="too many visitors"):
        place.visits.begin()


def test_all_uploads_together_are_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ALL", 10)
    place.visits.keep(place.begin(), b"x" * 6, "x.png")
    with pytest.raises(Refusal, match="too many files"):
        place.visits.keep(place.begin(), b"x" * 6, "x.png")


def test_a_link_is_nobodys_file(place: Place, tmp_path: Path) -> None:
    ada = place.begin()
    own = place.visits.keep(ada, b"x", "x.png")
    link = own.with_name("link.png")
    link.symlink_to(tmp_path / "secret")
    assert not place.visits.may_have(ada, str(link))
    assert not place.visits.may_have(ada, str(own.parent / ".." / ".." / own.name))
    assert not place.visits.may_have(ada, own.name)
