"""The named fds that are kept for workers, each with the name of its owner, whom it outlives."""

from __future__ import annotations

import os
from collections.abc import Callable


class Store:
    """Owns every fd in it."""

    def __init__(self) -> None:
        self._fds: dict[tuple[str, str], int] = {}
        self.on_drop: Callable[[str, str], None] = lambda _owner, _name: None  # told before the fd is closed

    def put(self, owner: str, name: str, fd: int) -> None:
        """Take ``fd``; what had its name before is closed."""
        self.drop(owner, name)
        self._fds[owner, name] = fd

    def get(self, owner: str, name: str) -> int | None:
        """Still the store's."""
        return self._fds.get((owner, name))

    def of(self, owner: str) -> dict[str, int]:
        return {name: fd for (its_owner, name), fd in self._fds.items() if its_owner == owner}

    def drop(self, owner: str, name: str) -> None:
        """Close it; nothing happens if there is none."""
        if (owner, name) in self._fds:
            self.on_drop(owner, name)
            os.close(self._fds.pop((owner, name)))

    def drop_all(self, owner: str) -> None:
        for name in self.of(owner):
            self.drop(owner, name)
