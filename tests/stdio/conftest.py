from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from tests.stdio.streams import Store


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def _no_descriptor_left() -> Iterator[None]:
    before = _descriptors()
    yield
    assert _descriptors() == before


@pytest.fixture
def store(_no_descriptor_left: None) -> Iterator[Store]:
    """After the test nothing may be kept: every name was released."""
    keep = Store()
    yield keep
    left = sorted(keep.fds)
    for name in left:
        keep.release(name)
    assert left == []
