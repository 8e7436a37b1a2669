"""What a process inherits besides environment and fds: read from one process, put on another."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from typing import Any, NamedTuple

from dunnage.linux import core_scheduling

# every RLIMIT_* the kernel has (asm-generic/resource.h): 0 … 15
LIMITS = range(16)


class Attributes(NamedTuple):
    """umask; limit number → (soft, hard); nice value; the CPUs it may run on; its OOM score adjustment; and whose core
    scheduling domain it shares (``core_scheduling.enter``), None: its parent's."""

    umask: int
    rlimits: Mapping[int, tuple[int, int]]
    nice: int
    affinity: frozenset[int]
    oom_score_adj: int
    core_peer: int | None = None

    @classmethod
    def of(cls, pid: int) -> Attributes:
        """Those of process ``pid``; raises ProcessLookupError when it is gone."""
        try:
            return cls(
                umask=umask_of(pid),
                rlimits={limit: resource.prlimit(pid, limit) for limit in LIMITS},
                nice=os.getpriority(os.PRIO_PROCESS, pid),
                affinity=frozenset(os.sched_getaffinity(pid)),
                oom_score_adj=oom_score_adj_of(pid),
            )
        except FileNotFoundError as gone:
            raise ProcessLookupError(gone.errno, f"process {pid} is gone") from gone

    def apply(self) -> list[str]:
        """Put them on the calling process; give back what it may not have, in words. Raises OSError where it does not
        get its core scheduling domain: that one is for safety.

        The OOM score comes first, since the limits may forbid opening its file, and limits come last.
        """
        refused: list[str] = []
        if self.core_peer is not None:
            try:
                core_scheduling.enter(self.core_peer)
            except OSError as error:
                raise OSError(error.errno, f"core scheduling: {error.strerror}") from error
        os.umask(self.umask)
        try:
            set_oom_score_adj(self.oom_score_adj)
        except OSError as error:
            refused.append(f"oom_score_adj {self.oom_score_adj}: {error.strerror}")
        try:
            if os.getpriority(os.PRIO_PROCESS, 0) != self.nice:
                os.setpriority(os.PRIO_PROCESS, 0, self.nice)
        except OSError as error:
            refused.append(f"nice {self.nice}: {error.strerror}")
        try:
            if os.sched_getaffinity(0) != self.affinity:
                os.sched_setaffinity(0, self.affinity)
        except OSError as error:
            refused.append(f"affinity: {error.strerror}")
        for limit, (soft, hard) in self.rlimits.items():
            try:
                if resource.getrlimit(limit) != (soft, hard):
                    resource.setrlimit(limit, (soft, hard))
            except (OSError, ValueError) as error:
                refused.append(f"limit {limit} {soft}:{hard}: {error}")
        return refused

    def to_json(self) -> dict[str, Any]:
        return {
            "umask": self.umask,
            "rlimits": [[limit, soft, hard] for limit, (soft, hard) in self.rlimits.items()],
            "nice": self.nice,
            "affinity": sorted(self.affinity),
            "oom_score_adj": self.oom_score_adj,
            "core_peer": self.core_peer,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Attributes:
        return cls(
            umask=value["umask"],
            rlimits={limit: (soft, hard) for limit, soft, hard in value["rlimits"]},
            nice=value["nice"],
            affinity=frozenset(value["affinity"]),
            oom_score_adj=value["oom_score_adj"],
            core_peer=value.get("core_peer"),
        )


def umask_of(pid: int) -> int:
    with open(f"/proc/{pid}/status", "rb") as status:
        for line in status:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    # a zombie has no Umask line, and a kernel before 4.7 has it for nobody
    raise ProcessLookupError(f"process {pid} has no umask")


def oom_score_adj_of(pid: int) -> int:
    with open(f"/proc/{pid}/oom_score_adj", "rb") as file:
        return int(file.read())


def set_oom_score_adj(value: int) -> None:
    with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write(str(value))
