"""A container's rootfs: `mount_plan` says which system calls a mount needs (pure), `mount_all`, `unmount_all` do them.

Both run in a child of their own, since a mount may sleep in the kernel for as long as it likes, and the working
directory is theirs. The exit status is not 0 when something failed; the text is then in the file of ``fds["error"]``.

A mount's target is taken inside the rootfs: no symbolic link leads out of it. Every path is walked by descriptors, so
that it may be as long as the file system has it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import c_char_p, c_ulong
from typing import Any, NamedTuple

from dunnage.errors import Error, InvalidArgument, Unimplemented
from dunnage.linux import loop
from dunnage.linux.libc import check, libc

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
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
UMOUNT_NOFOLLOW = 8

# option: flags it sets, flags it clears
OPTIONS: Mapping[str, tuple[int, int]] = {
    "async": (0, MS_SYNCHRONOUS),
    "atime": (0, MS_NOATIME),
    "bind": (MS_BIND, 0),
    "defaults": (0, 0),
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

# what statvfs calls a flag that a user namespace may have locked, and what mount calls it
LOCKED = {
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: MS_NOATIME,
    os.ST_NODIRATIME: MS_NODIRATIME,
    os.ST_RELATIME: MS_RELATIME,
}

OVERLAY_ROOM_BYTES = 512  # containerd makes lower directories relative this far below a page
BUSY_TRIES = 50
BUSY_PAUSE_S = 0.05
PIECE_CHARS = 1000  # of a path walked at once: below PATH_MAX (4096 bytes) whatever they are
MAX_LINKS = 40  # as the kernel's own walk


class Step(NamedTuple):
    """One mount(2)."""

    source: str
    fstype: str
    flags: int
    data: str


class Place(NamedTuple):
    """Where something can be mounted or unmounted: a directory (O_PATH) and a name in it."""

    directory: int
    name: str


class Plan(NamedTuple):
    """``directory``: where to be meanwhile (for relative lower directories); ``loop``: the flags of a loop device over
    the source; ``helper``: a program that makes the mount, and takes the target as its second argument."""

    steps: tuple[Step, ...]
    directory: str | None = None
    loop: int | None = None
    helper: tuple[str, ...] | None = None


def mount_plan(fstype: str, source: str, options: Sequence[str], *, page_bytes: int) -> Plan:
    """What makes this mount; raises InvalidArgument, Unimplemented or Error for what can not be made."""
    if any("\0" in text for text in (fstype, source, *options)):
        raise InvalidArgument("mount contains a zero byte")  # where C ends the text, and mounts something else
    for option in options:
        if option.startswith("X-containerd."):
            raise Error(f"internal mount option {quoted(option)} was not consumed by the mount manager")
        if option.startswith(("uidmap=", "gidmap=")):
            raise Unimplemented(f"id-mapped mounts are not implemented: {option}")
    family, _, kind = fstype.partition(".")
    if family in ("fuse", "fuse3") and kind:
        words = [word for option in options for word in ("-o", option)]
        return Plan((), helper=(f"mount.{family}", source, *words, "-t", kind))
    directory = None
    if fstype == "overlay" and sum(len(os.fsencode(option)) for option in options) >= page_bytes - OVERLAY_ROOM_BYTES:
        directory, options = relative_lowerdirs(options)
    flags, looped, direct, rest = 0, False, False, []
    for option in options:
        if option in OPTIONS:
            sets, clears = OPTIONS[option]
            flags = (flags | sets) & ~clears
        elif option == "loop":
            looped = True
        elif option == "direct-io":
            direct = True
        else:
            rest.append(option)
    if direct and not looped:
        rest.append("direct-io")
    data = ",".join(rest)
    if len(os.fsencode(data)) > page_bytes:
        raise InvalidArgument("mount options is too long")
    steps = []
    if not flags & MS_REMOUNT or data:
        steps.append(Step(source, fstype, flags, data))
    if flags & MS_BIND and flags & MS_RDONLY:  # the kernel takes no other flag together with a bind
        steps.append(Step("", "", flags | MS_REMOUNT, ""))
    if not looped:
        return Plan(tuple(steps), directory)
    read_only = loop.LO_FLAGS_READ_ONLY if flags & MS_RDONLY else 0
    return Plan(
        tuple(steps), directory, loop.LO_FLAGS_AUTOCLEAR | read_only | (loop.LO_FLAGS_DIRECT_IO if direct else 0)
    )


def relative_lowerdirs(options: Sequence[str]) -> tuple[str | None, list[str]]:
    """The directory that all lower directories have in common, and the options with paths relative to it."""
    changed = list(options)
    for index, option in enumerate(options):
        if not option.startswith("lowerdir="):
            continue
        layers = re.split(r"(?<!\\):", option.removeprefix("lowerdir="))  # "\:" is a colon in a name
        named = [layer for layer in layers if layer]
        if len(named) < 2 or not all(layer.startswith("/") for layer in named):
            return None, changed
        common = os.path.commonpath([os.path.dirname(layer) for layer in named])
        if common == "/":
            return None, changed
        changed[index] = "lowerdir=" + ":".join(os.path.relpath(layer, common) if layer else "" for layer in layers)
        # a backslash escapes in the option, not in a path that is changed to
        return re.sub(r"\\(.)", r"\1", common), changed
    return None, changed


def mount_all(argument: Any, fds: Mapping[str, int]) -> int:
    """Make ``{"rootfs": path, "mounts": [{"type", "source", "target", "options"}, …]}`` in that order, all or none."""
    rootfs = os.path.realpath(argument["rootfs"])
    made: list[Place] = []
    try:
        for mount in argument["mounts"]:
            plan = mount_plan(mount["type"], mount["source"], mount["options"], page_bytes=resource.getpagesize())
            _make(plan, mount, rootfs, made)
    except Error as error:
        os.chdir("/")
        texts = [str(error)]
        for place in reversed(made):
            try:
                _unmount_at(place, f"{rootfs}/{place.name}", once=True)
            except (Error, OSError) as left:
                texts.append(str(left))
            os.chdir("/")
            os.close(place.directory)
        return _fail(fds, "; ".join(texts))
    return 0


def _make(plan: Plan, mount: Mapping[str, Any], rootfs: str, made: list[Place]) -> None:
    target = os.path.join(rootfs, mount.get("target", "").strip("/")).rstrip("/")
    try:
        place = open_place(rootfs, mount.get("target", ""))
    except OSError as error:
        raise Error(f"mount target {quoted(target)}: {_reason(error)}") from error
    except ValueError as error:  # it contains a zero byte
        raise InvalidArgument(f"mount target {quoted(target)}: {error}") from error
    try:
        if plan.helper is not None:
            _run_helper(plan.helper, target)
            made.append(place)
        else:
            _do(plan, mount, place, target, made)
    finally:
        if place not in made:
            os.close(place.directory)  # it would keep busy what it lies in


def _do(plan: Plan, mount: Mapping[str, Any], place: Place, target: str, made: list[Place]) -> None:
    with _source(plan, mount["source"]) as device:
        for step in plan.steps:
            try:
                _mount_at(place, step if plan.loop is None else step._replace(source=device), plan.directory)
            except OSError as error:
                raise Error(
                    f"mount source: {quoted(mount['source'])}, target: {quoted(target)}, fstype: {mount['type']}, "
                    f"flags: {step.flags}, data: {quoted(step.data)}, err: {_reason(error)}"
                ) from error
            if not step.flags & MS_REMOUNT:
                made.append(place)


def _mount_at(place: Place, step: Step, directory: str | None) -> None:
    # the place is opened anew for every step: what the step before has mounted lies above it
    target = os.open(place.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place.directory)
    try:
        if directory is not None:
            os.chdir(directory)
        _mount(step, target)
    finally:
        os.close(target)


def _mount(step: Step, target: int) -> None:
    path = f"/proc/self/fd/{target}"
    try:
        _mount_call(step, path)
    except PermissionError:
        locked = _locked_flags(path)
        if not step.flags & MS_REMOUNT or not step.flags & MS_BIND or locked | step.flags == step.flags:
            raise
        _mount_call(step._replace(flags=step.flags | locked), path)  # a user namespace may only add to them


def _mount_call(step: Step, path: str) -> None:
    source, target, fstype = (c_char_p(os.fsencode(text)) for text in (step.source, path, step.fstype))
    data = c_char_p(os.fsencode(step.data)) if step.data else None  # some file systems refuse an empty text
    check(libc().mount(source, target, fstype, c_ulong(step.flags), data))


def _locked_flags(path: str) -> int:
    present = os.statvfs(path).f_flag
    return sum(flag for shown, flag in LOCKED.items() if present & shown)


@contextmanager
def _source(plan: Plan, source: str) -> Iterator[str]:
    """The source, or a loop device over it, which goes away with the mount, or here if there will be none."""
    if plan.loop is None:
        yield source
        return
    try:
        device, path = loop.attach(source, plan.loop)
    except OSError as error:
        raise Error(f"loop device for {quoted(source)}: {_reason(error)}") from error
    try:
        yield path
    finally:
        os.close(device)


def _run_helper(helper: tuple[str, ...], target: str) -> None:
    program, source, *rest = helper
    found = shutil.which(program)
    if found is None:
        raise Error(f"mount helper {program}: exec: {quoted(program)}: executable file not found in $PATH")
    try:
        result = subprocess.run([found, source, target, *rest], stdin=subprocess.DEVNULL, capture_output=True)
    except OSError as error:
        raise Error(f"mount helper {program}: {_reason(error)}") from error
    if result.returncode:
        output = (result.stdout + result.stderr).decode(errors="replace").strip()
        raise Error(f"mount helper {program} for {quoted(target)} ended with {result.returncode}: {output}")


def unmount_all(argument: Any, fds: Mapping[str, int]) -> int:
    """Unmount everything at and below ``{"rootfs": path}``, deepest first; what is not mounted is well."""
    if not argument["rootfs"]:
        return 0
    rootfs = os.path.realpath(argument["rootfs"])
    with open("/proc/self/mountinfo", "rb") as file:
        points = mount_points(file.read(), rootfs)
    failure = None
    for point, fstype in points:
        failure = None  # that of the outermost mount counts: inner ones may be gone together with it
        parent, name = os.path.split(point)
        try:
            if fstype.startswith("fuse") and _unmount_fuse(point):
                continue
            place = Place(open_path(parent), name)
            try:
                _unmount_at(place, point)
            finally:
                os.chdir("/")  # a working directory keeps its file system busy, too
                os.close(place.directory)
        except FileNotFoundError:
            continue
        except Error as error:
            failure = str(error)
        except OSError as error:
            failure = f"failed to unmount target {point}: {_reason(error)}"
    return _fail(fds, failure) if failure else 0


def mount_points(mountinfo: bytes, root: str) -> list[tuple[str, str]]:
    """Path and type of every mount at or below ``root``, deepest first, a place once. Pure."""
    found: dict[str, str] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(b" - ")
        escaped = left.split(b" ")[4]
        path = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), escaped))
        if path == root or path.startswith(root.rstrip("/") + "/"):
            found[path] = os.fsdecode(right.split(b" ")[0])
    return sorted(found.items(), key=lambda item: len(item[0]), reverse=True)


def _unmount_at(place: Place, shown: str, *, once: bool = False) -> None:
    """Unmount until nothing is mounted there; leaves the working directory beside it."""
    os.chdir(place.directory)
    tries = 0
    while True:
        try:
            check(libc().umount2(c_char_p(os.fsencode(place.name)), UMOUNT_NOFOLLOW))
            if once:
                return
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # nothing is mounted there, or not any more
                return
            tries += 1
            if error.errno != errno.EBUSY or tries == BUSY_TRIES:
                raise Error(f"failed to unmount target {shown}: {_reason(error)}") from error
            time.sleep(BUSY_PAUSE_S)  # a process that has been killed may still be in its exit


def _unmount_fuse(point: str) -> bool:
    for program in ("fusermount3", "fusermount"):
        if found := shutil.which(program):
            done = subprocess.run([found, "-u", point], stdin=subprocess.DEVNULL, capture_output=True)
            if done.returncode == 0:
                return True
    return False


# --- paths


def open_path(path: str) -> int:
    """An O_PATH descriptor of an absolute path of any length."""
    fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
    rest = path.strip("/")
    while rest:
        cut = len(rest) if len(rest) <= PIECE_CHARS else rest.rfind("/", 0, PIECE_CHARS)
        piece, rest = (rest[:cut], rest[cut:].lstrip("/")) if cut > 0 else (rest, "")
        fd = _step_down(fd, piece, os.O_PATH | os.O_CLOEXEC)
    return fd


def _step_down(fd: int, path: str, flags: int) -> int:
    try:
        return os.open(path, flags, dir_fd=fd)
    finally:
        os.close(fd)


def open_place(rootfs: str, target: str) -> Place:
    """Where ``target`` lies inside ``rootfs``: links are followed, but none leads out of it."""
    parent, name = os.path.split(rootfs)
    stack = [Place(open_path(parent), name)]  # from the root down; ".." takes the last one off, but never the root
    todo = _words(target)
    links = 0
    try:
        while todo:
            word = todo.pop()
            if word == "..":
                if len(stack) > 1:
                    os.close(stack.pop().directory)
                continue
            stack.append(Place(_open_directory(stack[-1]), word))
            here = stack[-1].directory
            if not stat.S_ISLNK(os.stat(word, dir_fd=here, follow_symlinks=False).st_mode):
                continue
            links += 1
            if links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), target)
            link = os.readlink(word, dir_fd=here)
            kept = 1 if link.startswith("/") else len(stack) - 1
            while len(stack) > kept:
                os.close(stack.pop().directory)
            todo += _words(link)
        return stack.pop()
    finally:
        for place in stack:
            os.close(place.directory)


def _open_directory(place: Place) -> int:
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
    return os.open(place.name, flags, dir_fd=place.directory)


def _words(path: str) -> list[str]:
    """The components of a path, the first one last."""
    return [word for word in reversed(path.split("/")) if word not in ("", ".")]


# --- words


def quoted(text: str) -> str:
    """As Go's %q."""
    return json.dumps(text, ensure_ascii=False)


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return f"{reason[:1].lower()}{reason[1:]}"


def _fail(fds: Mapping[str, int], text: str) -> int:
    if "error" in fds:
        os.pwrite(fds["error"], text.encode(errors="surrogateescape"), 0)
    return 1
