"""An OCI config.json made in Python, for those who run containers without containerd."""

from dunnage.spec.config import check_process, check_text, make_spec
from dunnage.spec.users import resolve_user
from dunnage.spec.values import Mount, parse_cpus, parse_memory, parse_mount

__all__ = [
    "Mount",
    "check_process",
    "check_text",
    "make_spec",
    "parse_cpus",
    "parse_memory",
    "parse_mount",
    "resolve_user",
]
