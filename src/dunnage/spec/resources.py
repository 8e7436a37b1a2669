"""What a container may take of the machine, in people's units, and as the specification's ``linux.resources`` says it.

The same limits are of its creation and of an update while it runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dunnage import errors

CPU_PERIOD_US = 100_000
UNLIMITED = -1
"""The specification's word for a limit that is to be none (memory, swap, pids, and a processor's quota)."""


class Resources(NamedTuple):
    """Limits; None leaves one as it is, and `UNLIMITED` takes it away.

    ``cpus`` is processors' time, as 1.5; ``cpu_shares`` (2 to 262144, 1024 for the usual share) counts only when
    processors are scarce. ``cpuset_cpus`` and ``cpuset_mems`` are lists as ``0-2,4``. ``memory_reservation_bytes`` is
    what the kernel tries to bring it down to when memory is scarce; ``memory_swap_bytes`` limits memory and swap
    together, as OCI and docker have it.
    """

    memory_bytes: int | None = None
    memory_swap_bytes: int | None = None
    memory_reservation_bytes: int | None = None
    cpus: float | None = None
    cpu_shares: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None

    def to_oci(self) -> dict[str, Any]:
        """``linux.resources``, with nothing in it that was not said; InvalidArgument for what no container can have."""
        self._check()
        is_free = self.cpus == UNLIMITED
        groups: dict[str, dict[str, Any]] = {
            "memory": {
                "limit": self.memory_bytes,
                "swap": self.memory_swap_bytes,
                "reservation": self.memory_reservation_bytes,
            },
            "cpu": {
                "shares": self.cpu_shares,
                "quota": None if self.cpus is None else UNLIMITED if is_free else round(self.cpus * CPU_PERIOD_US),
                "period": None if self.cpus is None else CPU_PERIOD_US,
                "cpus": self.cpuset_cpus,
                "mems": self.cpuset_mems,
            },
            "pids": {"limit": self.pids},
        }
        said = {
            name: {key: value for key, value in group.items() if value is not None} for name, group in groups.items()
        }
        return {name: group for name, group in said.items() if group}

    def _check(self) -> None:
        for name, value in zip(self._fields, self, strict=True):
            is_unlimited = value == UNLIMITED and name != "cpu_shares"
            if isinstance(value, int | float) and value <= 0 and not is_unlimited:
                raise errors.InvalidArgument(f"{name}: {value} is not above 0")
        memory, swap = self.memory_bytes, self.memory_swap_bytes
        if memory is not None and swap is not None and UNLIMITED != swap < memory:
            raise errors.InvalidArgument("memory and swap together cannot be limited below memory alone")
