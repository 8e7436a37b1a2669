"""A case is a small function with a sentence for a name; where a shim is known to differ, it says so in a line."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from dunnage.conformance.scene import Scene

Play = Callable[["Scene"], Awaitable[None]]


class Difference(NamedTuple):
    """A shim that does otherwise than the case asks, and who of the two is right."""

    who: str
    """A pattern for the shim's description, as in ``go 1.*`` or ``dunnage *``."""
    why: str
    right: str
    """Who is right: the case (what it asks for), the shim, or either."""
    source: str
    """Where that is to be read: an issue, a change, a document."""
    always: bool = True
    """False for a race: then the shim may also do as the case asks."""


class Case(NamedTuple):
    area: str
    name: str
    play: Play
    differences: Sequence[Difference]
    needs: str = ""
    """A program without which it is not played, and the table says so."""

    @property
    def title(self) -> str:
        return f"{self.area}: {self.name}"

    def difference_of(self, description: str) -> Difference | None:
        return next((each for each in self.differences if fnmatchcase(description, each.who)), None)


class Area:
    """The cases about one thing, in the order in which they are written down."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cases: list[Case] = []

    def case(self, name: str, *differences: Difference, needs: str = "") -> Callable[[Play], Play]:
        def add(play: Play) -> Play:
            self.add(name, play, *differences, needs=needs)
            return play

        return add

    def add(self, name: str, play: Play, *differences: Difference, needs: str = "") -> None:
        if any(case.name == name for case in self.cases):
            raise ValueError(f"{self.name} has two cases {name!r}")
        self.cases.append(Case(self.name, name, play, differences, needs))

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)
