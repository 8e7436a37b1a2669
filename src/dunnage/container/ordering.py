"""Which exits may be told now: the promise of the shim about the order of its events, as a pure class.

For each container: an exit is told once, never before its start, and the init's after every exec's; a Create that
failed tells nothing; no exec starts once the init is dead. Source: shim v2, §4.2.

Facts go in by method calls; what may be told comes back as a list of process ids, in order. The init's id is ``""``.
"""

from __future__ import annotations

from enum import Enum

INIT = ""


class _Phase(Enum):
    STARTING = 1  # a runtime call is in flight: whatever exits is told after its start
    LIVE = 2  # its start was told


class ExitOrder:
    """The processes of one container whose exits are still to be told."""

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}
        self._seen: list[str] = []
        self._init_died = False

    @property
    def init_died(self) -> bool:
        """True from the moment the init's death was seen: from then on no exec may start."""
        return self._init_died

    @property
    def waiting(self) -> tuple[str, ...]:
        """Processes whose exit is not told yet."""
        return tuple(self._phases)

    def is_starting(self, process: str) -> bool:
        """True while a runtime call that starts ``process`` is in flight, until its start is told."""
        return self._phases.get(process) is _Phase.STARTING

    def starting(self, process: str) -> bool:
        """A runtime call that starts ``process`` is about to be made. False: the init is dead, do not make it."""
        if process != INIT and self._init_died:
            return False
        self._phases[process] = _Phase.STARTING
        return True

    def started(self, process: str) -> list[str]:
        """The start of ``process`` was told. Returns the exits that may be told now."""
        if self._phases.get(process) is _Phase.STARTING:
            self._phases[process] = _Phase.LIVE
        return self._tellable()

    def start_failed(self, process: str, *, lives: bool = False) -> list[str]:
        """The runtime call failed. ``lives``: the process is there all the same (an init stays created)."""
        if self._phases.get(process) is _Phase.STARTING:
            if lives:
                self._phases[process] = _Phase.LIVE
            else:
                del self._phases[process]
                self._seen = [seen for seen in self._seen if seen != process]
        return self._tellable()

    def init_dying(self) -> None:
        """The init's death was seen, but what it leaves behind has yet to be killed."""
        self._init_died = True

    def exited(self, process: str) -> list[str]:
        """The exit of ``process`` was seen (once or more often). Returns the exits that may be told now."""
        if process == INIT:
            self._init_died = True
        if process in self._phases and process not in self._seen:
            self._seen.append(process)
        return self._tellable()

    def _tellable(self) -> list[str]:
        told = []
        for process in [*(seen for seen in self._seen if seen != INIT), *(seen for seen in self._seen if seen == INIT)]:
            if self._phases[process] is _Phase.STARTING:
                continue
            if process == INIT and len(self._phases) > 1:
                continue
            del self._phases[process]
            self._seen.remove(process)
            told.append(process)
        return told
