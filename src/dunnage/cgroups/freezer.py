"""Letting a frozen cgroup go on, where no runtime is to be asked for it: when what it kept is dead, or is to die."""

from __future__ import annotations

from dunnage.cgroups.paths import Cgroup, V1Cgroup
from dunnage.errors import Error


def thaw(cgroup: Cgroup) -> None:
    """Thaw it. One that is gone, or not frozen, is no error; Error says what else went wrong."""
    if isinstance(cgroup, V1Cgroup):
        directory, name, value = cgroup.directories.get("freezer"), "freezer.state", "THAWED"
    else:
        directory, name, value = cgroup.directory, "cgroup.freeze", "0"
    if directory is None:
        return
    try:
        # without O_CREAT, as a file of a cgroup is there or not
        with open(f"{directory}/{name}", "r+", encoding="ascii") as file:
            file.write(value)
    except FileNotFoundError:
        pass  # nobody is left in it
    except OSError as error:
        raise Error(f"thaw {directory}: {error.strerror}") from error
