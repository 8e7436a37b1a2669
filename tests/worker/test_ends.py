"""How containers ended is remembered for a while, across workers, and never of the wrong one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from dunnage.container.facts import Ended
from dunnage.worker import ends as ends_module
from dunnage.worker.ends import Ends
from dunnage.worker.journal import Journal

KILLED = Ended(42, 137, 1_700_000_000_000_000_001)
NEVER_RAN = Ended(43, 0, None)

pytestmark = pytest.mark.usefixtures("memfds_closed")


class Workers:
    """One after the other, with one store."""

    def __init__(self) -> None:
        self.fd = -1

    def next(self) -> Ends:
        return Ends(Journal("ends", self.store, None if self.fd < 0 else os.dup(self.fd)))

    def store(self, name: str, fd: int) -> None:
        self.close()
        self.fd = os.dup(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers()
    yield made
    made.close()


def test_an_end_is_known_by_its_bundle_also_to_the_next_worker(workers: Workers) -> None:
    ends = workers.next()
    ends.remember("default", "c1", (1, 2), KILLED)
    ends.remember("default", "c2", (1, 3), NEVER_RAN)
    for worker in (ends, workers.next(), workers.next()):
        assert worker.of_bundle("default", "c1", (1, 2)) == KILLED
        assert worker.of_bundle("default", "c2", (1, 3)) == NEVER_RAN
        assert worker.of_bundle("default", "c1", (1, 4)) is None


def test_the_last_end_of_a_name_is_known_to_this_worker_and_the_next(workers: Workers) -> None:
    ends = workers.next()
    ends.remember("default", "c1", (1, 2), NEVER_RAN)
    ends.remember("default", "c1", (1, 3), KILLED)
    for worker in (ends, workers.next()):
        assert worker.of_container("default", "c1") == KILLED
        assert worker.of_container("k8s.io", "c1") is None


def test_a_new_container_of_that_name_or_inode_is_not_the_one_that_is_gone(workers: Workers) -> None:
    workers.next().remember("default", "c1", (1, 2), KILLED)
    later = workers.next()
    later.forget("default", "c1", (1, 9))
    assert later.of_container("default", "c1") is None
    assert later.of_bundle("default", "c1", (1, 2)) == KILLED
    later.forget("default", "c9", (1, 2))
    assert later.of_bundle("default", "c1", (1, 2)) is None
    assert workers.next().of_bundle("default", "c1", (1, 2)) is None


def test_an_inode_that_is_used_again_tells_no_other_s_end(workers: Workers) -> None:
    ends = workers.next()
    ends.remember("default", "c1", (1, 2), KILLED)
    for worker in (ends, workers.next()):
        assert worker.of_bundle("default", "c2", (1, 2)) is None
        assert worker.of_bundle("k8s.io", "c1", (1, 2)) is None
        assert worker.of_bundle("default", "c1", (1, 2)) == KILLED


def test_an_end_is_forgotten_in_time(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = workers.next()
    ends.remember("default", "c1", (1, 2), KILLED)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + ends_module.REMEMBER_S + 1)
    assert ends.of_bundle("default", "c1", (1, 2)) is None
    assert workers.next().of_bundle("default", "c1", (1, 2)) is None


def test_only_so_many_are_remembered(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends_module, "REMEMBERED", 3)
    ends = workers.next()
    for number in range(5):
        ends.remember("default", f"c{number}", (1, number), KILLED)
    assert [ends.of_bundle("default", f"c{number}", (1, number)) is not None for number in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
