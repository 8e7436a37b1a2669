"""Letting a frozen cgroup go on, where the runtime's own resume is not what is meant."""

from __future__ import annotations

from dunnage.cgroups.paths import Cgroup, V1Cgroup
from dunnage.errors import Error


def thaw(cgroup: Cgroup) -> None:
    """Thaw a v1 cgroup: no signal, not even SIGKILL, reaches a process that is frozen there. v2 lets SIGKILL through,
    and is left as it is. A cgroup that is gone, or not frozen, is no error; Error says what else went wrong."""
    directory = cgroup.directories.get("freezer") if isinstance(cgroup, V1Cgroup) else None
    if directory is None:
        return
    try:
        with open(f"{directory}/freezer.state", "w", encoding="ascii") as state:
            state.write("THAWED")
    except FileNotFoundError:
        pass  # nobody is left in it
    except OSError as error:
        raise Error(f"thaw {directory}: {error.strerror}") from error
