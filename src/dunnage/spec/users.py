"""``--user``: numbers, or names as the container's own passwd and group files know them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dunnage import errors

_LARGEST_ID = (1 << 32) - 2  # 2**32 - 1 is -1, "no change", to the kernel
_SYMLINKS = 40  # path_resolution(7)


def resolve_user(text: str | None, root: str | os.PathLike[str]) -> dict[str, Any]:
    """The OCI user of ``USER[:GROUP]``, each a name or a number; None is root.

    Without a group, the user's own and its supplementary ones count, as login would give them; a number that the passwd
    file doesn't have is taken with group 0. Files are read below ``root``, also through symbolic links.
    """
    if not text:
        return {"uid": 0, "gid": 0}
    user, colon, group = text.partition(":")
    if not user or (colon and not group):
        raise errors.InvalidArgument(f"user {text!r} is not of the form USER[:GROUP]")
    uid, gid, name = _find_user(user, Path(root))
    if colon:
        gid = _find_group(group, Path(root))
        return {"uid": uid, "gid": gid, "additionalGids": [gid]}
    extra = [int(fields[2]) for fields in _entries(Path(root), "etc/group", 4) if name and name in fields[3].split(",")]
    # with its own group among them, as login does: else a process could drop it and pass a file's "group may not"
    return {"uid": uid, "gid": gid, "additionalGids": [gid, *sorted(set(extra) - {gid})]}


def _find_user(user: str, root: Path) -> tuple[int, int, str]:
    number = _parse_id(user)
    for fields in _entries(root, "etc/passwd", 4):
        if fields[0] == user or (number is not None and int(fields[2]) == number):
            return int(fields[2]), int(fields[3]) if fields[3].isdigit() else 0, fields[0]
    if number is None:
        raise errors.InvalidArgument(f"user {user} is not in the container's /etc/passwd")
    return number, 0, ""


def _find_group(group: str, root: Path) -> int:
    number = _parse_id(group)
    if number is not None:
        return number
    for fields in _entries(root, "etc/group", 3):
        if fields[0] == group:
            return int(fields[2])
    raise errors.InvalidArgument(f"group {group} is not in the container's /etc/group")


def _parse_id(text: str) -> int | None:
    if not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    if number > _LARGEST_ID:
        raise errors.InvalidArgument(f"{text} is too large for a user or group")
    return number


def _entries(root: Path, name: str, least: int) -> Iterator[list[str]]:
    """The lines with a number in the third field and ``least`` fields; none where there is no such file."""
    try:
        text = _resolve_below(root, name).read_text(errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= least and fields[2].isascii() and fields[2].isdigit():
            yield fields


def _resolve_below(root: Path, name: str) -> Path:
    """``name`` with its symbolic links followed as a process with that root would."""
    left = name.split("/")[::-1]
    found: list[str] = []
    for _ in range(_SYMLINKS):
        while left:
            part = left.pop()
            if part == "..":
                del found[-1:]
                continue
            if part in ("", "."):
                continue
            here = root.joinpath(*found, part)
            if here.is_symlink():
                target = os.readlink(here)
                if target.startswith("/"):
                    found.clear()
                left.extend(target.split("/")[::-1])
                break
            found.append(part)
        else:
            return root.joinpath(*found)
    raise OSError(f"too many symbolic links: {name}")
