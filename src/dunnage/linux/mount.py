"""A container's rootfs: `mount_plan` says which system calls a mount needs (pure), `mount_all` does them.

It runs in a child of its own, since a mount may sleep in the kernel for as long as it likes, and the working directory
is the child's. The exit status is not 0 when something failed; the text is then in the file of ``fds["error"]``.

A mount's target is taken inside the rootfs: no symbolic link leads out of it. Every path is walked by descriptors, so
that it may be as long as the file system has it.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import c_char_p, c_ulong
from typing import Any

from dunnage.errors import Error, InvalidArgument
from dunnage.linux import idmap, loop
from dunnage.linux.attributes import Attributes
from dunnage.linux.libc import check, libc
from dunnage.linux.mount_helper import mount_by_helper
from dunnage.linux.mount_plan import (
    MS_BIND,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SLAVE,
    Helper,
    Plan,
    Step,
    mount_plan,
    quoted,
)
from dunnage.linux.mount_table import mounts_below
from dunnage.linux.paths import Place, canonical, open_path, open_place
from dunnage.linux.unmount import MNT_DETACH, fail, reason, unmount_all, unmount_at

__all__ = ["mount_all", "unmount_all"]

# what statvfs calls a flag that a user namespace may have locked, and what mount calls it
LOCKED = {
    os.ST_NOSUID: MS_NOSUID,
    os.ST_NODEV: MS_NODEV,
    os.ST_NOEXEC: MS_NOEXEC,
    os.ST_NOATIME: MS_NOATIME,
    os.ST_NODIRATIME: MS_NODIRATIME,
    os.ST_RELATIME: MS_RELATIME,
}

_WHOLE_UID_MAP = [0, 0, 4294967295]


def mount_all(argument: Any, fds: Mapping[str, int]) -> int:
    """Make ``{"rootfs": path, "mounts": [{"type", "source", "target", "options"}, …]}`` in that order, all or none.

    A helper gets ``"launch"``, as `worker.served.Launch` has it: ``{"env", "attributes"}``. It and this child make a
    process group, which is killed as one.
    """
    os.setpgid(0, 0)
    rootfs = canonical(argument["rootfs"])
    launch = argument.get("launch")
    making = _Making(rootfs, launch)
    try:
        for mount in argument["mounts"]:
            making.make(mount["type"], mount["source"], mount.get("target", ""), mount["options"])
    except Error as error:
        return fail(fds, "; ".join([str(error), *making.undo()]))
    except BaseException:
        making.undo()
        raise
    return 0


class _Making:
    """The mounts of one rootfs while they are made."""

    def __init__(self, rootfs: str, launch: Mapping[str, Any] | None) -> None:
        self._rootfs = rootfs
        self._launch = launch
        self._made: list[Place] = []  # one for each mount, also of several at one place

    def make(self, fstype: str, source: str, inside: str, options: list[str]) -> None:
        """Raises Error; what was made by then is known to `undo`."""
        plan = mount_plan(fstype, source, options, page_bytes=resource.getpagesize())
        try:
            place = open_place(self._rootfs, inside)
        except OSError as error:
            step = plan.steps[0] if plan.steps else Step(source, fstype, 0, "")
            raise _failure(step, str(error.filename), error) from error
        except ValueError as error:  # it contains a zero byte
            raise InvalidArgument(f"mount target {quoted(inside)}: {error}") from error
        try:
            if plan.helper is not None:
                self._by_helper(plan.helper, place)
            elif plan.id_map is None:
                self._step_by_step(plan, source, place)
            else:
                try:
                    self._with_ids(plan, source, place)
                except OSError as error:
                    raise Error(
                        f"id-mapped mount of {quoted(source)} on {quoted(place.path)}: {reason(error)}"
                    ) from error
        finally:
            place.close()  # it would keep busy what it lies in

    def undo(self) -> list[str]:
        """Take off what was made, the last first; what stays, in words."""
        os.chdir("/")
        left = []
        while self._made:
            place = self._made.pop()
            try:
                unmount_at(place)
            except Error as error:
                left.append(str(error))
            finally:
                place.close()
        return left

    def _by_helper(self, helper: Helper, place: Place) -> None:
        env = os.environ if self._launch is None else self._launch["env"]
        if self._launch is not None:
            Attributes.from_json(self._launch["attributes"]).apply()
        before = _count_mounts_at(place.path)
        try:
            mount_by_helper(helper, place.path, env)
        except Error:
            if _count_mounts_at(place.path) > before:  # it failed after that
                self._has_made(place)
            raise
        self._has_made(place)

    def _step_by_step(self, plan: Plan, source: str, place: Place) -> None:
        with _source(plan, source) as actual:
            for step in plan.steps:
                try:
                    _mount_at(place, step if plan.loop is None else step._replace(source=actual), plan.directory)
                except OSError as error:
                    raise _failure(step, place.path, error) from error
                if not step.flags & MS_REMOUNT:
                    self._has_made(place)
                    if step.flags & MS_BIND:
                        _keep_to_itself(place, step.flags & MS_REC)

    def _with_ids(self, plan: Plan, source: str, place: Place) -> None:
        """Other owners are shown by a copy of a mount. Nothing is mounted anywhere but at the target meanwhile, so that
        whatever fails, or dies, leaves nothing elsewhere."""
        assert plan.id_map is not None
        with idmap.user_namespace(plan.id_map) as namespace:
            if plan.directory is not None:
                self._overlay_with_ids(plan, source, place, namespace)
            elif plan.steps and plan.steps[0].flags & MS_BIND:
                self._bind_with_ids(plan, source, place, namespace)
            else:
                self._step_by_step(plan, source, place)
                self._replace(place, 1, namespace)

    def _overlay_with_ids(self, plan: Plan, source: str, place: Place, namespace: int) -> None:
        """The lower directories are what is copied: the copy lies at the target, and the overlay over it, until a copy
        of the overlay takes their place."""
        assert plan.directory is not None
        lower = open_path(plan.directory)
        try:
            with _copy(lower, recursive=True) as tree:
                idmap.map_ids(tree, namespace, read_only=True)
                self._attach(tree, place)
                self._step_by_step(plan._replace(directory=f"/proc/self/fd/{tree}"), source, place)
                os.chdir("/")
        finally:
            os.close(lower)
        self._replace(place, 2, None)

    def _bind_with_ids(self, plan: Plan, source: str, place: Place, namespace: int) -> None:
        bind, *rest = plan.steps
        origin = os.open(source, os.O_PATH | os.O_CLOEXEC)
        try:
            with _copy(origin, recursive=bool(bind.flags & MS_REC)) as tree:
                idmap.map_ids(tree, namespace, read_only=False)
                self._attach(tree, place)
        finally:
            os.close(origin)
        self._step_by_step(plan._replace(steps=tuple(rest)), source, place)

    def _replace(self, place: Place, count: int, namespace: int | None) -> None:
        """Put a copy of what is mounted there last, with its ids mapped, in the place of the ``count`` last mounts."""
        on_top = place.open()
        try:
            with _copy(on_top, recursive=False) as tree:
                if namespace is not None:
                    idmap.map_ids(tree, namespace, read_only=False)
                for _ in range(count):
                    self._take_off()
                self._attach(tree, place)
        finally:
            os.close(on_top)

    def _attach(self, tree: int, place: Place) -> None:
        below = place.open()
        try:
            idmap.attach(tree, below)
        finally:
            os.close(below)
        self._has_made(place)

    def _take_off(self) -> None:
        place = self._made.pop()
        try:
            unmount_at(place, flags=MNT_DETACH)
        finally:
            place.close()

    def _has_made(self, place: Place) -> None:
        self._made.append(place.copy())


def _failure(step: Step, target: str, error: OSError) -> Error:
    return Error(
        f"mount source: {quoted(step.source)}, target: {quoted(target)}, fstype: {step.fstype}, "
        f"flags: {step.flags}, data: {quoted(step.data)}, err: {reason(error)}"
    )


def _count_mounts_at(path: str) -> int:
    with open("/proc/self/mountinfo", "rb") as file:
        return sum(mounted.path == path for mounted in mounts_below(file.read(), path))


@contextmanager
def _copy(fd: int, *, recursive: bool) -> Iterator[int]:
    tree = idmap.copy_mount(fd, recursive=recursive)
    try:
        yield tree
    finally:
        os.close(tree)


@contextmanager
def _source(plan: Plan, source: str) -> Iterator[str]:
    """The source, or a loop device over it, which goes away with the mount, or here if there will be none."""
    if plan.loop is None:
        yield source
        return
    try:
        device, path = loop.attach(source, read_only=plan.loop.read_only, direct_io=plan.loop.direct_io)
    except OSError as error:
        where = f"{error.filename}: " if error.filename not in (None, source) else ""
        raise Error(f"loop device for {quoted(source)}: {where}{reason(error)}") from error
    try:
        yield path
    finally:
        os.close(device)


def _mount_at(place: Place, step: Step, directory: str | None) -> None:
    # the place is opened anew for every step: what the step before has mounted lies above it
    target = place.open()
    try:
        if directory is not None:
            os.chdir(directory)
        path = f"/proc/self/fd/{target}"
        flags = step.flags
        if flags & MS_REMOUNT and flags & MS_BIND and _is_in_user_namespace():
            flags |= _flags_there(path)  # a user namespace may only add to what its mounts came with
        _mount(step._replace(flags=flags), path)
    finally:
        os.close(target)


def _keep_to_itself(place: Place, recursive: int) -> None:
    """Have a bind mount follow its source, but not the source it: what is unmounted here later, also when the container
    is deleted, would else be unmounted there, and what is mounted here be mounted there."""
    target = place.open()
    try:
        _mount(Step("", "", MS_SLAVE | recursive, ""), f"/proc/self/fd/{target}")
    except OSError as error:
        raise Error(f"mount propagation of {quoted(place.name)}: {reason(error)}") from error
    finally:
        os.close(target)


def _mount(step: Step, path: str) -> None:
    source, target, fstype = (c_char_p(os.fsencode(text)) for text in (step.source, path, step.fstype))
    data = c_char_p(os.fsencode(step.data)) if step.data else None  # some file systems refuse an empty text
    check(libc().mount(source, target, fstype, c_ulong(step.flags), data))


def _is_in_user_namespace() -> bool:
    with open("/proc/self/uid_map", "rb") as file:
        return [int(number) for number in file.read().split()] != _WHOLE_UID_MAP


def _flags_there(path: str) -> int:
    present = os.statvfs(path).f_flag
    return sum(flag for shown, flag in LOCKED.items() if present & shown)
