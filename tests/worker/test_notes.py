"""Requests that were taken and not answered, as the next worker finds them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunnage.worker.journal import Journal
from dunnage.worker.notes import RequestNotes, Unanswered

pytestmark = pytest.mark.usefixtures("memfds_closed")


class Kept:
    """A journal's memfd that outlives whoever writes it."""

    def __init__(self) -> None:
        self.fd = -1

    def store(self, name: str, fd: int) -> None:
        self.close()
        self.fd = os.dup(fd)

    def notes(self) -> RequestNotes:
        """Of this process, or of the one after it."""
        return RequestNotes(Journal("requests", self.store, None if self.fd < 0 else os.dup(self.fd)))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def kept() -> Iterator[Kept]:
    made = Kept()
    yield made
    made.close()


def test_what_is_not_answered_is_found_by_connection(kept: Kept) -> None:
    notes = kept.notes()
    notes.note("a#1", 1, b"first")
    notes.note("b#2", 1, b"other")
    notes.note("a#1", 3, b"second")
    notes.note("a#1", 5, b"third")
    notes.answered("a#1", 3)
    assert kept.notes().unanswered() == {
        "a#1": Unanswered((b"first", b"third"), 5),
        "b#2": Unanswered((b"other",), 1),
    }


def test_what_a_former_worker_noted_is_struck_out_when_it_is_answered_later(kept: Kept) -> None:
    kept.notes().note("a#1", 1, b"first")
    later = kept.notes()
    assert later.unanswered() == {"a#1": Unanswered((b"first",), 1)}
    later.note("a#1", 1, b"first")
    later.answered("a#1", 1)
    assert kept.notes().unanswered() == {}
    assert kept.notes().unanswered() == {}


def test_pieces_give_way_to_the_whole_frame(kept: Kept) -> None:
    notes = kept.notes()
    notes.note("a#1", 1, b"first")
    notes.partial("a#1", b"hel")
    notes.partial("a#1", b"lo")
    assert kept.notes().unanswered() == {"a#1": Unanswered((b"first",), 1, (b"hel", b"lo"))}
    notes.note("a#1", 3, b"hello")
    assert kept.notes().unanswered() == {"a#1": Unanswered((b"first", b"hello"), 3)}


def test_nobody_waits_on_a_connection_that_has_ended(kept: Kept) -> None:
    notes = kept.notes()
    notes.note("a#1", 1, b"first")
    notes.partial("a#1", b"hel")
    notes.note("b#2", 1, b"other")
    notes.disconnected("a#1")
    notes.disconnected("a#1")
    notes.answered("a#1", 1)
    assert kept.notes().unanswered() == {"b#2": Unanswered((b"other",), 1)}
    notes.answered("b#2", 1)
    assert kept.notes().unanswered() == {}


def test_the_end_of_a_connection_of_a_former_worker_is_the_end_of_its_notes(kept: Kept) -> None:
    before = kept.notes()
    before.note("a#1", 1, b"first")
    before.partial("a#1", b"hel")
    later = kept.notes()
    later.unanswered()
    later.disconnected("a#1")
    assert kept.notes().unanswered() == {}


connections = st.sampled_from(("a#1", "b#2"))
steps = st.one_of(
    st.tuples(st.just("note"), connections, st.sampled_from((1, 3, 5)), st.binary(max_size=20)),
    st.tuples(st.just("partial"), connections, st.just(0), st.binary(max_size=20)),
    st.tuples(st.just("answered"), connections, st.sampled_from((1, 3, 5)), st.just(b"")),
    st.tuples(st.just("disconnected"), connections, st.just(0), st.just(b"")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(steps, st.none()), max_size=30))
def test_notes_say_what_is_unanswered_whenever_a_worker_dies(
    history: list[tuple[str, str, int, bytes] | None],
) -> None:
    """None is the death of a worker and the birth of the next."""
    kept = Kept()
    notes = kept.notes()
    frames: dict[str, dict[int, bytes]] = {"a#1": {}, "b#2": {}}
    pieces: dict[str, list[bytes]] = {"a#1": [], "b#2": []}
    for step in history:
        if step is None:
            notes = kept.notes()
            notes.unanswered()
            continue
        what, connection, stream_id, data = step
        if what == "note":
            notes.note(connection, stream_id, data)
            frames[connection].pop(stream_id, None)
            frames[connection][stream_id] = data
            pieces[connection].clear()
        elif what == "partial":
            notes.partial(connection, data)
            pieces[connection].append(data)
        elif what == "answered":
            notes.answered(connection, stream_id)
            frames[connection].pop(stream_id, None)
        else:
            notes.disconnected(connection)
            frames[connection].clear()
            pieces[connection].clear()
        expected = {
            connection: Unanswered(
                tuple(frames[connection].values()), max(frames[connection], default=0), tuple(pieces[connection])
            )
            for connection in frames
            if frames[connection] or pieces[connection]
        }
        assert kept.notes().unanswered() == expected
    kept.close()
