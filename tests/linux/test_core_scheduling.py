"""Core scheduling domains: what is asked of the kernel, and what happens where it has none."""

from __future__ import annotations

import errno
import os

import pytest

from dunnage.linux import core_scheduling
from dunnage.linux.attributes import Attributes


class Kernel:
    """Notes what is asked of it; ``gone`` are pids that it does not know."""

    def __init__(self, *, gone: tuple[int, ...] = ()) -> None:
        self.asked: list[tuple[int, ...]] = []
        self._gone = gone

    def check(self, result: int) -> int:
        if result:
            raise OSError(result, os.strerror(result))
        return result

    def prctl(self, *arguments: int) -> int:
        self.asked.append(arguments)
        return errno.ESRCH if arguments[2] in self._gone else 0


@pytest.mark.parametrize(
    ("peer", "asked"),
    [
        (0, [(62, 1, 0, 1, 0)]),
        (41, [(62, 3, 41, 0, 0)]),
        (42, [(62, 3, 42, 0, 0), (62, 1, 0, 1, 0)]),
    ],
)
def test_a_process_enters_its_peer_s_domain_or_a_new_one(
    monkeypatch: pytest.MonkeyPatch, peer: int, asked: list[tuple[int, ...]]
) -> None:
    kernel = Kernel(gone=(42,))
    monkeypatch.setattr(core_scheduling, "libc", lambda: kernel)
    monkeypatch.setattr(core_scheduling, "check", kernel.check)
    core_scheduling.enter(peer)
    assert kernel.asked == asked


def test_a_process_that_does_not_get_its_domain_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(peer: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(core_scheduling, "enter", refuse)
    attributes = Attributes.of(os.getpid())
    assert attributes.core_peer is None
    attributes.apply()
    asked = Attributes.from_json(attributes._replace(core_peer=0).to_json())
    with pytest.raises(OSError, match="core scheduling: Invalid argument"):
        asked.apply()
