"""A container's cgroup: where it is, what it uses, and whether the kernel has killed in it for want of memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dunnage.cgroups import Cgroup, Metrics, OomWatch, V2Cgroup, cgroup_of, enable_controllers, read_metrics, thaw
from dunnage.cgroups.paths import from_json, to_json
from dunnage.errors import Error, NotFound


class ContainerCgroup:
    """Found by the init's pid when there is one, and remembered beyond its death. ``on_kill`` is called once for each
    growth of the kernel's count of kills; what ``record`` gives then has the new count already."""

    def __init__(self, name: str, *, oom: OomWatch, on_kill: Callable[[], None], log: logging.Logger) -> None:
        self._name = name
        self._oom = oom
        self._on_kill = on_kill
        self._log = log
        self._cgroup: Cgroup | None = None
        self._told = 0

    def find(self, pid: int) -> None:
        """Look where process ``pid`` is. Without a cgroup the container runs all the same: a failure is only logged."""
        try:
            self._cgroup = cgroup_of(pid, unified=self._oom.unified)
        except Error as error:
            self._log.error("the cgroup of container %s is not known: %s", self._name, error)

    def watch(self) -> None:
        """From now on kills are told; those that nobody has been told of, at once."""
        if self._cgroup is None:
            return
        if isinstance(self._cgroup, V2Cgroup):
            for failure in enable_controllers(self._cgroup):
                self._log.warning("failed to enable controllers of container %s: %s", self._name, failure)
        try:
            self._oom.watch(self._name, self._cgroup, self._killed, told=self._told)
        except Error as error:
            self._log.error("out-of-memory kills in container %s are not seen: %s", self._name, error)

    def look(self) -> None:
        """Before an exit is told: the kernel has counted a kill before the process was dead."""
        self._oom.final(self._name)

    def metrics(self) -> Metrics:
        """What the container uses, zeros where its cgroup is gone. Raises NotFound where it was never known."""
        if self._cgroup is None:
            raise NotFound("cgroup does not exist")
        return read_metrics(self._cgroup, log=self._log)

    def thaw(self) -> None:
        """Let what a dead init leaves behind go on."""
        try:
            if self._cgroup is not None:
                thaw(self._cgroup)
        except Error as error:
            self._log.warning("what is left in container %s may stay frozen: %s", self._name, error)

    def let_kill_through(self) -> None:
        """On v1 no signal, not even SIGKILL, reaches a process that is frozen."""
        if not self._oom.unified:
            self.thaw()

    def record(self) -> dict[str, Any] | None:
        """What ``restore`` needs, in JSON values."""
        return None if self._cgroup is None else {**to_json(self._cgroup), "told": self._told}

    def restore(self, record: dict[str, Any] | None) -> None:
        if record is not None:
            self._cgroup, self._told = from_json(record), record["told"]

    def close(self) -> None:
        """Watch no more. Idempotent."""
        self._oom.unwatch(self._name)

    def _killed(self, count: int) -> None:
        self._told = count
        self._on_kill()
