"""The runtime options of a container: what a client sent, whichever way, as one value, and as the bundle keeps it.

containerd.runc.v1.Options comes from whoever knows the runtime as runc. For every other name containerd has only
runtimeoptions.v1.Options: CRI packs the runtime's table ``options`` of containerd's configuration into ``config_body``
(1.7+), or sends the ``ConfigPath`` of that table; ctr's ``--runtime-config-path`` is such a path too. Keys are those
that the table has for runc, in letters of either case, as containerd reads them.

An unknown key is refused. containerd hands the table on unread, so a mistyped ``SystemdCgroup`` would be told by
nobody, and the pods would live in other cgroups than the kubelet's; and a table for another runtime would be obeyed in
part. What belongs to containerd alone, or to a runtime that no longer takes it, is known and passed over.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage

from dunnage.api import anys, options_pb2, runtimeoptions_pb2
from dunnage.container.facts import Options
from dunnage.errors import InvalidArgument

ReadFile = Callable[[str], Awaitable[bytes]]
"""Reads a file where that may sleep; raises InvalidArgument naming it where it cannot be read."""

RUNC: Final = options_pb2.Options.DESCRIPTOR.full_name

KEYS: Final[Mapping[str, str]] = {
    "NoPivotRoot": "no_pivot_root",
    "NoNewKeyring": "no_new_keyring",
    "ShimCgroup": "shim_cgroup",
    "IoUid": "io_uid",
    "IoGid": "io_gid",
    "BinaryName": "binary_name",
    "Root": "root",
    "CriuPath": "criu_path",
    "SystemdCgroup": "systemd_cgroup",
    "CriuWorkPath": "criu_work_path",
}
"""The keys of the table, and our names for them."""

PASSED_OVER: Final = ("TypeUrl", "ConfigPath", "ConfigBody", "CriuImagePath", "TaskApiAddress", "TaskApiVersion")
"""Keys for containerd: the first three are how the table says where the options are, the rest it uses itself."""

_CLASSES: Final[Sequence[type[options_pb2.Options | runtimeoptions_pb2.Options]]] = (
    options_pb2.Options,
    runtimeoptions_pb2.Options,
)
TYPES: Final = tuple(message.DESCRIPTOR.full_name for message in _CLASSES)
"""The messages that options are sent in."""

_BY_LOWER: Final = {key.lower(): key for key in (*KEYS, *PASSED_OVER)}
_UINT32_MAX: Final = 0xFFFF_FFFF


async def read_options(packed: AnyMessage, read_file: ReadFile) -> Options:
    """The options in it. Absent or empty: the defaults.

    Raises InvalidArgument for another type, bad bytes, and a table that cannot be read or says what is no option, and
    what ``read_file`` raises.
    """
    if not packed.type_url and not packed.value:
        return Options()
    message: options_pb2.Options | runtimeoptions_pb2.Options = anys.unpack(packed, _CLASSES)
    if isinstance(message, options_pb2.Options):
        return _checked({name: getattr(message, name) for name in Options._fields}, "the runtime options")
    where = message.config_path or "the runtime options (config_body)"
    if message.type_url.rpartition("/")[2] not in ("", RUNC):
        raise InvalidArgument(f"{where}: TypeUrl is {message.type_url!r}; it may be {RUNC!r}, or be left out")
    if not message.config_path:
        return parse_table(message.config_body, where)
    if not os.path.isabs(message.config_path) or "\0" in message.config_path:
        raise InvalidArgument(f"the runtime options: ConfigPath is {where!r}; it must be an absolute path")
    return parse_table(await read_file(message.config_path), where)


def parse_table(text: bytes, where: str) -> Options:
    """Options in TOML. Raises InvalidArgument that begins with ``where`` and names key and fact."""
    try:
        table = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # TOML, or UTF-8; nested too deep
        raise InvalidArgument(f"{where} is not TOML: {error}") from error
    values: dict[str, object] = {}
    for written, value in table.items():
        key = _BY_LOWER.get(written.lower())
        if key is None:
            raise InvalidArgument(f"{where}: unknown key {written}; known are {', '.join(sorted(KEYS))}")
        if key in KEYS:
            name = KEYS[key]
            if name in values:
                raise InvalidArgument(f"{where}: {key} is there twice")
            values[name] = _typed(where, key, value, Options._field_defaults[name])
    return _checked(values, where)


def options_file(values: Options) -> dict[str, object]:
    """What ``options.json`` holds: the names of the messages' fields, empty ones left out (shim v2, §1.9). Any shim's
    ``delete`` reads it, wherever the options came from."""
    return {name: value for name, value in values._asdict().items() if value}


def _typed(where: str, key: str, value: object, default: object) -> object:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InvalidArgument(f"{where}: {key} is {value!r}; it must be true or false")
    elif isinstance(default, int):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _UINT32_MAX:
            raise InvalidArgument(f"{where}: {key} is {value!r}; it must be a number up to {_UINT32_MAX}")
    elif not isinstance(value, str):
        raise InvalidArgument(f"{where}: {key} is {value!r}; it must be a text")
    return value


def _checked(values: Mapping[str, object], where: str) -> Options:
    for name, value in values.items():
        if isinstance(value, str) and "\0" in value:
            raise InvalidArgument(f"{where}: {name} has a NUL in it")
    return Options(**values)  # type: ignore[arg-type]  # of the fields' types: the message's, or looked at one by one
