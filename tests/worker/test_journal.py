"""Records outlive the process that wrote them, whole or not at all, and stay away once they are done."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunnage.worker import journal as journal_module
from dunnage.worker.journal import Journal

pytestmark = pytest.mark.usefixtures("memfds_closed")


class Store:
    """The keeper's, with copies of its own."""

    def __init__(self) -> None:
        self.fds: dict[str, int] = {}
        self.stored = 0

    def __call__(self, name: str, fd: int) -> None:
        self.close()
        self.fds[name] = os.dup(fd)
        self.stored += 1

    def content(self) -> bytes:
        fd = self.fds["journal"]
        return os.pread(fd, os.fstat(fd).st_size, 0)

    def next_process(self) -> Journal:
        """What a new worker makes of it."""
        return Journal("journal", self, os.dup(self.fds["journal"]))

    def cut(self, size: int) -> None:
        os.ftruncate(self.fds["journal"], size)

    def close(self) -> None:
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()


@pytest.fixture
def store() -> Iterator[Store]:
    made = Store()
    yield made
    made.close()


def test_a_new_process_finds_the_records_in_their_order(store: Store) -> None:
    journal = Journal("journal", store)
    numbers = [journal.append(data) for data in (b"one", b"", b"three\0\n")]
    assert journal.live == dict(zip(numbers, (b"one", b"", b"three\0\n"), strict=True))
    assert store.next_process().live == journal.live
    assert list(store.next_process().live) == numbers


def test_what_is_done_does_not_come_back(store: Store) -> None:
    journal = Journal("journal", store)
    first, second = journal.append(b"one"), journal.append(b"two")
    journal.done(first)
    journal.done(first)
    journal.done(4711)
    assert store.next_process().live == {second: b"two"}


@pytest.mark.parametrize("compact_bytes", [0, 1 << 20])
def test_a_number_is_never_used_again(store: Store, monkeypatch: pytest.MonkeyPatch, compact_bytes: int) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_BYTES", compact_bytes)
    journal = Journal("journal", store)
    for number in [journal.append(b"one"), journal.append(b"two")]:
        journal.done(number)
    later = store.next_process()
    assert later.written == journal.written == 2
    third = later.append(b"three")
    assert third == 3
    assert store.next_process().live == {third: b"three"}


def test_records_that_are_done_are_thrown_out_of_a_large_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_BYTES", 1000)
    journal = Journal("journal", store)
    kept = journal.append(b"kept")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        journal.done(journal.append(b"x" * 50))
        assert len(store.content()) < 1200
    assert store.stored > 1, "the new file is in the store"
    assert len(os.listdir("/proc/self/fd")) == before
    assert store.next_process().live == {kept: b"kept"}


def test_a_large_file_of_live_records_is_not_copied_again_and_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_COMPACT_BYTES", 1000)
    journal = Journal("journal", store)
    numbers = [journal.append(b"x" * 50) for _ in range(100)]
    for number in numbers[:30]:
        journal.done(number)
    assert store.stored == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=40), min_size=1, max_size=8), st.data())
def test_any_cut_gives_the_first_records_whole(records: list[bytes], data: st.DataObject) -> None:
    store = Store()
    journal = Journal("journal", store)
    numbers = [journal.append(record) for record in records]
    size = data.draw(st.integers(0, len(store.content())), label="size")
    store.cut(size)
    found = store.next_process().live
    assert list(found.items()) == list(zip(numbers, records, strict=True))[: len(found)]
    if size == sum(13 + len(record) for record in records):
        assert len(found) == len(records)
    store.close()


operations = st.lists(st.one_of(st.binary(max_size=40), st.integers(0, 10)), max_size=30)
"""Bytes: append them; a number: the record appended as the n-th is done."""


CUT = b"".join(struct.pack("<IBQ", 0, 1, number) for number in range(100, 110))
"""A record whose inside looks like records, wherever one begins to read."""


@settings(max_examples=300, deadline=None)
@given(operations, operations, st.integers(0, 12 + len(CUT)))
def test_a_process_goes_on_where_a_cut_write_of_another_ended(
    first: list[bytes | int], second: list[bytes | int], cut: int
) -> None:
    """The bytes of a write that was cut short are never read as records, however much is written after them."""
    store = Store()
    journal = Journal("journal", store)
    apply(journal, first)
    content = store.content()
    journal.append(CUT)
    store.cut(len(content) + cut)
    later = store.next_process()
    assert later.live == {n: data for n, data in journal.live.items() if data != CUT}
    apply(later, second)
    assert store.next_process().live == later.live
    store.close()


def apply(journal: Journal, operations: list[bytes | int]) -> None:
    numbers: list[int] = []
    for operation in operations:
        if isinstance(operation, bytes):
            numbers.append(journal.append(operation))
        elif operation < len(numbers):
            journal.done(numbers[operation])


def test_a_record_that_could_not_be_written_is_not_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal("journal", store)
    kept = journal.append(b"kept")

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="no space left"):
            journal.append(b"lost")
    assert journal.live == {kept: b"kept"}
    later = journal.append(b"later")
    assert store.next_process().live == {kept: b"kept", later: b"later"}


def test_the_writers_of_one_journal_are_told_apart(store: Store) -> None:
    journal = Journal("journal", store)
    one, other = journal.for_one("default /run/a.sock"), journal.for_one("k8s.io ")
    first = one.append(b"a\0b")
    second = other.append(b"")
    third = one.append(b"c")
    assert store.next_process().live_by_label() == {
        "default /run/a.sock": [(first, b"a\0b"), (third, b"c")],
        "k8s.io ": [(second, b"")],
    }
    one.done(first)
    assert store.next_process().live_by_label()["default /run/a.sock"] == [(third, b"c")]
