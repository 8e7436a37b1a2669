"""What the world is told of a container, each fact in the container's record first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from dunnage.container.bundle import Bundle, Record
from dunnage.container.facts import Fact, fact_to_json


class Telling:
    """One container's. ``record`` gives what a next worker needs; ``tell`` gets each fact, in the order the world may
    learn it, and writes it down as an event; ``events_written`` is how many it ever has, of all containers: by that a
    next worker knows what was told (``bundle.untold``)."""

    def __init__(
        self,
        container_id: str,
        bundle: Bundle,
        *,
        record: Callable[[], Record],
        tell: Callable[[Fact], None],
        events_written: Callable[[], int],
        log: logging.Logger,
    ) -> None:
        self._container_id = container_id
        self._bundle = bundle
        self._record = record
        self._tell = tell
        self._events_written = events_written
        self._log = log
        self._silent = False
        self._over = False

    def save(self) -> None:
        """Write down what a next worker needs to go on with this container; after its last fact, nothing."""
        if not self._over:
            self._save(())

    def publish(self, *facts: Fact) -> None:
        """Tell facts, in one step with the change they tell of: they are in the record first, and a next worker, before
        it does anything else, tells those that were not written down as events yet."""
        if self._silent:
            self.save()
            return
        self._save(facts)
        for fact in facts:
            self._tell(fact)

    def publish_last(self, fact: Fact) -> None:
        """Nothing comes after it."""
        if not self._silent:
            self.publish(fact)
        self._silent = self._over = True

    def silence(self) -> None:
        """Tell nothing any more: the container's client is gone."""
        self._silent = True

    def _save(self, telling: Sequence[Fact]) -> None:
        facts = [fact_to_json(fact) for fact in telling]
        try:
            self._bundle.save({**self._record(), "telling": {"after": self._events_written(), "facts": facts}})
        except OSError as error:
            # the container goes on: only a death of this worker would now cost something
            self._log.error("failed to save the state of container %s: %s", self._container_id, error)
