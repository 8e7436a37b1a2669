"""A room of its own for each test of the launcher."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.launcher.stage import Room


@pytest.fixture
def room() -> Iterator[Room]:
    top = Path(tempfile.mkdtemp(prefix="dl-"))  # short: a unix socket's path has 107 bytes
    made = Room(top)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(top)
