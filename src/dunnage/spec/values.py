"""What people write on a command line, read once: sizes, processors, mounts; InvalidArgument says what is meant."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from dunnage import errors
from dunnage.spec.resources import UNLIMITED

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(?:i?b)?|b)?", re.IGNORECASE)
_LEAST_CPUS = 0.01
"""The kernel takes no quota below 1 ms, which is this share of the period of 100 ms."""


class Mount(NamedTuple):
    """One mount of a container, in the specification's words."""

    destination: str
    type: str
    source: str
    options: Sequence[str]

    def to_oci(self) -> dict[str, Any]:
        return {**self._asdict(), "options": list(self.options)}


def parse_memory(text: str) -> int:
    """Bytes of ``64M``, ``1.5GiB``, ``100000``: the letters are powers of 1024, upper or lower case."""
    match = _SIZE.fullmatch(text.strip())
    size = 0
    if match:
        number, unit = match.groups()
        size = int(float(number) * 1024 ** (" kmgtp".index(unit.lower()) if unit else 0))
    if not 0 < size < 1 << 63:
        raise errors.InvalidArgument(f"memory {text!r} is not a size such as 64M or 1.5G")
    return size


def parse_cpus(text: str) -> float:
    """How many processors' time, as ``0.5``."""
    try:
        cpus = float(text)
    except ValueError:
        cpus = 0.0
    if not _LEAST_CPUS <= cpus < 1 << 20:
        raise errors.InvalidArgument(
            f"cpus {text!r} is not a number of processors such as 0.5 (at least {_LEAST_CPUS})"
        )
    return cpus


_N = TypeVar("_N", int, float)


def parse_limit(text: str, parse: Callable[[str], _N]) -> _N:
    """What `parse` makes of it; `UNLIMITED` for ``max``, and for docker's ``-1``."""
    return UNLIMITED if text.strip().lower() in ("max", "-1") else parse(text)


def parse_pids(text: str) -> int:
    """How many processes and threads, as ``100``."""
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 63):
        raise errors.InvalidArgument(f"pids {text!r} is not a number of processes such as 100")
    return int(text)


def parse_mount(text: str) -> Mount:
    """``type=bind,source=DIR,target=DIR,readonly`` or ``DIR:DIR[:ro]``.

    The type is bind unless said; a bind's source may be relative to the working directory. Other keys: ``options=a:b``
    in mount(8)'s words, ``tmpfs-size`` and ``tmpfs-mode``. A comma or, in the short form, a colon cannot be in a path.
    """
    first = text.partition(",")[0]
    return _parse_pairs(text) if "=" in first and not first.startswith(("/", ".")) else _parse_short(text)


def _parse_short(text: str) -> Mount:
    parts = text.split(":")
    flags = parts[2].split(",") if len(parts) == 3 else []
    if not 2 <= len(parts) <= 3 or not parts[0] or not set(flags) <= {"ro", "rw"}:
        raise errors.InvalidArgument(f"mount {text!r} is neither SOURCE:TARGET[:ro] nor type=…,source=…,target=…")
    return _make_mount(text, "bind", parts[0], parts[1], "ro" in flags, [])


def _parse_pairs(text: str) -> Mount:
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        name = _KEYS.get(key)
        if name is None:
            raise errors.InvalidArgument(f"mount {text!r}: unknown key {key!r} (known: {', '.join(_KEYS)})")
        if name in fields:
            raise errors.InvalidArgument(f"mount {text!r}: {key} is given twice")
        if not equals and name != "readonly":
            raise errors.InvalidArgument(f"mount {text!r}: {key} needs a value")
        fields[name] = value if equals else "true"
    readonly = _parse_bool(text, fields.get("readonly", "false"))
    kind = fields.get("type", "bind")
    options = list(filter(None, fields.get("options", "").split(":")))
    for name, option in _TMPFS.items():
        if name in fields:
            if kind != "tmpfs":
                raise errors.InvalidArgument(f"mount {text!r}: {name} is for type=tmpfs")
            options.append(option(fields[name]))
    return _make_mount(text, kind, fields.get("source", ""), fields.get("target", ""), readonly, options)


def _make_mount(text: str, kind: str, source: str, target: str, readonly: bool, options: list[str]) -> Mount:
    if not target.startswith("/"):
        raise errors.InvalidArgument(f"mount {text!r}: the target must be an absolute path")
    target = os.path.normpath("/" + target.lstrip("/"))
    if target == "/":
        raise errors.InvalidArgument(f"mount {text!r}: the target cannot be the root itself")
    if kind == "bind":
        if not source:
            raise errors.InvalidArgument(f"mount {text!r}: a bind mount needs a source")
        source = os.path.abspath(source)
        if not {"bind", "rbind"} & set(options):
            options = ["rbind", *options]
    if readonly and "ro" not in options:
        options.append("ro")
    return Mount(target, kind, source or kind, tuple(options))


def _parse_bool(text: str, value: str) -> bool:
    if value not in ("true", "1", "false", "0"):
        raise errors.InvalidArgument(f"mount {text!r}: readonly is true or false, not {value!r}")
    return value in ("true", "1")


_KEYS = {
    "type": "type",
    "source": "source",
    "src": "source",
    "target": "target",
    "dst": "target",
    "destination": "target",
    "readonly": "readonly",
    "ro": "readonly",
    "options": "options",
    "tmpfs-size": "tmpfs-size",
    "tmpfs-mode": "tmpfs-mode",
}
_TMPFS: dict[str, Callable[[str], str]] = {
    "tmpfs-size": lambda text: f"size={parse_memory(text)}",
    "tmpfs-mode": lambda text: f"mode={text}",
}
