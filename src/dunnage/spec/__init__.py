"""An OCI config.json made in Python, for those who run containers without containerd."""

from dunnage.spec.config import check_process, check_text, check_words, make_spec, merge_env
from dunnage.spec.resources import UNLIMITED, Resources
from dunnage.spec.users import resolve_user
from dunnage.spec.values import Mount, parse_cpus, parse_limit, parse_memory, parse_mount, parse_pids

__all__ = [
    "UNLIMITED",
    "Mount",
    "Resources",
    "check_process",
    "check_text",
    "check_words",
    "make_spec",
    "merge_env",
    "parse_cpus",
    "parse_limit",
    "parse_memory",
    "parse_mount",
    "parse_pids",
    "resolve_user",
]
