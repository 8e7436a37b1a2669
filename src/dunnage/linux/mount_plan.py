"""What a mount needs, as values: flags and data of the system calls, and what must be there before them. Pure.

The words of the options, and of the errors, are those of containerd's own mounts.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dunnage.errors import Error, InvalidArgument

MS_RDONLY = 1  # linux/mount.h
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_MANDLOCK = 64
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

# option: flags it sets, flags it clears
OPTIONS: Mapping[str, tuple[int, int]] = {
    "async": (0, MS_SYNCHRONOUS),
    "atime": (0, MS_NOATIME),
    "bind": (MS_BIND, 0),
    "dev": (0, MS_NODEV),
    "diratime": (0, MS_NODIRATIME),
    "dirsync": (MS_DIRSYNC, 0),
    "exec": (0, MS_NOEXEC),
    "mand": (MS_MANDLOCK, 0),
    "noatime": (MS_NOATIME, 0),
    "nodev": (MS_NODEV, 0),
    "nodiratime": (MS_NODIRATIME, 0),
    "noexec": (MS_NOEXEC, 0),
    "nomand": (0, MS_MANDLOCK),
    "norelatime": (0, MS_RELATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "nosuid": (MS_NOSUID, 0),
    "rbind": (MS_BIND | MS_REC, 0),
    "relatime": (MS_RELATIME, 0),
    "remount": (MS_REMOUNT, 0),
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "strictatime": (MS_STRICTATIME, 0),
    "suid": (0, MS_NOSUID),
    "sync": (MS_SYNCHRONOUS, 0),
}
# ``defaults`` is not among them: containerd has it in its table, without a flag, and so hands it on as data

OVERLAY_ROOM_BYTES = 512  # containerd makes lower directories relative this far below a page


class Step(NamedTuple):
    """One mount(2)."""

    source: str
    fstype: str
    flags: int
    data: str


class IdRange(NamedTuple):
    """``size`` ids from ``inside`` on, which are those from ``outside`` on."""

    inside: int
    outside: int
    size: int


class IdMap(NamedTuple):
    """Whose ids an id-mapped mount shows: what is stored as ``inside`` belongs to ``outside``."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]


class Loop(NamedTuple):
    """A loop device over the source."""

    read_only: bool
    direct_io: bool


class Helper(NamedTuple):
    """A program that makes the mount, and takes the target after the source."""

    program: str
    source: str
    options: tuple[str, ...]


class Plan(NamedTuple):
    """``directory``: what the lower directories of an overlay are relative to; with an ``id_map`` it is that which is
    mapped, else the mount itself."""

    steps: tuple[Step, ...]
    directory: str | None = None
    loop: Loop | None = None
    helper: Helper | None = None
    id_map: IdMap | None = None


def mount_plan(fstype: str, source: str, options: Sequence[str], *, page_bytes: int) -> Plan:
    """What makes this mount; raises InvalidArgument or Error for what can not be made."""
    if any("\0" in text for text in (fstype, source, *options)):
        raise InvalidArgument("mount contains a zero byte")  # where C ends the text, and mounts something else
    for option in options:
        if option.startswith("X-containerd."):
            raise Error(f"internal mount option {quoted(option)} was not consumed by the mount manager")
    family, dot, kind = fstype.partition(".")
    if family in ("fuse", "fuse3") and dot:
        words = [word for option in options for word in ("-o", option)]
        return Plan((), helper=Helper(f"mount.{family}", source, (*words, "-t", kind)))
    id_map, options = _id_map(options)
    directory = None
    is_overlay = fstype == "overlay"
    if is_overlay and (
        id_map or sum(len(os.fsencode(option)) for option in options) >= page_bytes - OVERLAY_ROOM_BYTES
    ):
        directory, options = relative_lowerdirs(options, one_is_enough=id_map is not None)
    if is_overlay and id_map and directory is None:
        raise InvalidArgument("id-mapped overlay: its lower directories have no directory in common but the root")
    flags, looped, words = _flags(options)
    direct_io = looped and "direct-io" in words
    if direct_io:
        words.remove("direct-io")
    data = ",".join(words)
    if len(os.fsencode(data)) >= page_bytes:  # the kernel ends it with a zero byte: a whole page would lose its last
        raise InvalidArgument("mount options is too long")
    steps = []
    if not flags & MS_REMOUNT or data:
        steps.append(Step(source, fstype, flags, data))
    if flags & MS_BIND and flags & MS_RDONLY:  # the kernel takes no other flag together with a bind
        steps.append(Step("", "", flags | MS_REMOUNT, ""))
    if id_map and flags & MS_REMOUNT:
        raise InvalidArgument("id-mapped mount: a remount changes no ids")
    loop = Loop(bool(flags & MS_RDONLY), direct_io) if looped else None
    return Plan(tuple(steps), directory, loop, None, id_map)


def relative_lowerdirs(options: Sequence[str], *, one_is_enough: bool = False) -> tuple[str | None, list[str]]:
    """The directory that all lower directories have in common, and the options with paths relative to it, which come
    last as containerd has them; None and the same options where that is impossible or, for a single one, useless."""
    unchanged = list(options)
    index = next((at for at, option in enumerate(options) if option.startswith("lowerdir=")), None)
    if index is None:
        return None, unchanged
    layers = _split_layers(options[index].removeprefix("lowerdir="))
    named = [layer.rstrip("/") for layer in layers if layer]
    if len(named) < (1 if one_is_enough else 2) or not all(layer.startswith("/") for layer in named):
        return None, unchanged
    common = os.path.commonpath([os.path.dirname(layer) for layer in named])
    if common == "/" or not all(layer.startswith(f"{common}/") for layer in named):
        return None, unchanged
    relative = "lowerdir=" + ":".join(layer[len(common) + 1 :] for layer in layers)
    # a backslash escapes in the option, not in a path that is changed to
    return re.sub(r"\\(.)", r"\1", common), [*unchanged[:index], *unchanged[index + 1 :], relative]


def _split_layers(text: str) -> list[str]:
    r"""At every colon but a ``\:``, which is one in a name."""
    layers, escaped = [""], False
    for character in text:
        if character == ":" and not escaped:
            layers.append("")
        else:
            layers[-1] += character
        escaped = character == "\\" and not escaped
    return layers


def _flags(options: Sequence[str]) -> tuple[int, bool, list[str]]:
    """The flags, whether ``loop`` is among the options, and those that are data."""
    flags, looped, words = 0, False, []
    for option in options:
        if option in OPTIONS:
            sets, clears = OPTIONS[option]
            flags = (flags | sets) & ~clears
        elif option == "loop":
            looped = True
        else:
            words.append(option)
    return flags, looped, words


def _id_map(options: Sequence[str]) -> tuple[IdMap | None, list[str]]:
    """What ``uidmap=`` and ``gidmap=`` say, the last ones, and the other options."""
    found: dict[str, tuple[IdRange, ...]] = {}
    rest = []
    for option in options:
        name, _, value = option.partition("=")
        if name in ("uidmap", "gidmap") and value:
            found[name] = tuple(_id_range(name, word) for word in value.split(","))
        elif name not in ("uidmap", "gidmap"):
            rest.append(option)
    if not found:
        return None, rest
    if len(found) == 1:
        raise InvalidArgument(f"id-mapped mount: there is a {next(iter(found))}, but both uidmap and gidmap are needed")
    return IdMap(found["uidmap"], found["gidmap"]), rest


def _id_range(name: str, word: str) -> IdRange:
    numbers = word.split(":")
    if len(numbers) != 3 or not all(number.isascii() and number.isdecimal() for number in numbers):
        raise InvalidArgument(f"{name} {quoted(word)} is not of the form container-id:host-id:size")
    return IdRange(*map(int, numbers))


_ESCAPES = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}


def quoted(text: str) -> str:
    """As Go's %q."""
    return '"' + "".join(_escape(character) for character in text) + '"'


def _escape(character: str) -> str:
    code = ord(character)
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    if character in _ESCAPES:
        return _ESCAPES[character]
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8 (surrogateescape)
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
