"""cgroups, v1 and v2: which one a container has, its numbers in the kernel's words, its out-of-memory kills.

No cgroup is made or removed here: that is the OCI runtime's part.
"""

from __future__ import annotations

import logging

from dunnage.cgroups.controllers import enable_controllers
from dunnage.cgroups.freezer import thaw
from dunnage.cgroups.oom import OomWatch, open_oom_watch
from dunnage.cgroups.paths import Cgroup, CgroupDeleted, V1Cgroup, V2Cgroup, cgroup_of, is_unified
from dunnage.cgroups.stats_v1 import read_v1
from dunnage.cgroups.stats_v2 import read_v2
from dunnage.cgroups.values import Metrics

__all__ = [
    "Cgroup",
    "CgroupDeleted",
    "Metrics",
    "OomWatch",
    "V1Cgroup",
    "V2Cgroup",
    "cgroup_of",
    "enable_controllers",
    "is_unified",
    "open_oom_watch",
    "read_metrics",
    "thaw",
]


def read_metrics(cgroup: Cgroup, *, log: logging.Logger) -> Metrics:
    """Every number of ``cgroup``; zeros when it is gone. Raises Error where a file can not be understood."""
    return read_v1(cgroup) if isinstance(cgroup, V1Cgroup) else read_v2(cgroup, log=log)
