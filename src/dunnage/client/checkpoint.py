"""A checkpoint: a directory with criu's images of a container, and what is needed to make the container again.

    <directory>/
        …               the runtime's and criu's own files
        bundle/         config.json and client.json as the container had them
            upper/      what it changed on the host's root, where that is its root

The runtime makes the images, through the worker; the rest is for a client, which may restore it under another name. Of
a root directory or a bundle only the place is remembered: its files are expected where they were.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dunnage import errors
from dunnage.api import options_pb2
from dunnage.client.bundle import Bundle, Record
from dunnage.client.settings import HOST_ROOT, Prepared, RootMount, cgroups_path, overlay_mount

_SAVED = "bundle"


@dataclass(frozen=True)
class Wishes:
    """How criu is to take it, in the words of ``runc checkpoint``. `terminal` None: as the container has one."""

    exit: bool = False
    tcp: bool = False
    unix_sockets: bool = False
    terminal: bool | None = None
    file_locks: bool = False
    empty_namespaces: Sequence[str] = ()
    work_directory: Path | None = None
    parent: Path | None = None

    def to_options(self, directory: Path, *, has_terminal: bool) -> options_pb2.CheckpointOptions:
        # the runtime takes a parent's place from the images' own, so that they can be moved together
        parent = "" if self.parent is None else os.path.relpath(self.parent.resolve(), directory.resolve())
        return options_pb2.CheckpointOptions(
            exit=self.exit,
            open_tcp=self.tcp,
            external_unix_sockets=self.unix_sockets,
            terminal=has_terminal if self.terminal is None else self.terminal,
            file_locks=self.file_locks,
            empty_namespaces=list(self.empty_namespaces),
            work_path="" if self.work_directory is None else str(self.work_directory.absolute()),
            parent_path=parent,
        )


class Target:
    """The directory of a checkpoint that is being made; `undo` leaves it as it was found."""

    def __init__(self, directory: Path) -> None:
        self.path = directory.absolute()
        self._is_ours = False

    def make(self) -> None:
        """Make it, or take one that is empty; AlreadyExists where images of another checkpoint would be mixed in."""
        try:
            self.path.mkdir(mode=0o700)
            self._is_ours = True
        except FileExistsError:
            if not self.path.is_dir():
                raise errors.InvalidArgument(f"{self.path} is not a directory") from None
            if any(self.path.iterdir()):
                raise errors.AlreadyExists(f"directory {self.path} is not empty") from None
        except OSError as error:
            raise errors.InvalidArgument(f"{self.path}: {(error.strerror or str(error)).lower()}") from error

    async def save(self, bundle: Bundle) -> None:
        """Put down what the container is."""
        saved = self.path / _SAVED
        saved.mkdir(mode=0o700)
        record = bundle.read_record()
        for name in (bundle.config_path.name, bundle.record_path.name):
            shutil.copyfile(bundle.path / name, saved / name)
        if record.root == HOST_ROOT:
            await copy_tree(bundle.upper_path, saved / "upper")

    def undo(self) -> None:
        if self._is_ours:
            shutil.rmtree(self.path)
            return
        for path in self.path.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class Saved(NamedTuple):
    """What a checkpoint's directory says of its container."""

    directory: Path
    config: dict[str, Any]
    record: Record

    @classmethod
    def read(cls, directory: Path) -> Saved:
        """NotFound where there is none; InvalidArgument for one that dunnage did not make."""
        if not directory.is_dir():
            raise errors.NotFound(f"checkpoint {directory} does not exist")
        saved = directory.absolute() / _SAVED
        try:
            config = json.loads((saved / "config.json").read_bytes())
            record = Record(**json.loads((saved / "client.json").read_bytes()))
            config["process"]["args"], config["root"]["path"], config["linux"]["cgroupsPath"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise errors.InvalidArgument(
                f"{directory} has no container that dunnage could make again: {saved} is not whole"
            ) from error
        return cls(directory.absolute(), config, record)

    def check_terminal(self, terminal: bool) -> None:
        """InvalidArgument unless it gets a terminal just where it had one: criu can give and take none."""
        if terminal != self.record.terminal:
            had = "a terminal, and needs one" if self.record.terminal else "no terminal, and takes none"
            raise errors.InvalidArgument(f"container {self.record.id} had {had} to go on")

    async def prepare(self, bundle: Bundle, terminal: bool) -> Prepared:
        """The container again, for a new bundle: its specification, and its root with what it had changed there."""
        config = json.loads(json.dumps(self.config))
        config["process"]["terminal"] = terminal
        before = Bundle(bundle.state, self.record.namespace, self.record.id)
        if config["linux"]["cgroupsPath"] == cgroups_path(before):
            config["linux"]["cgroupsPath"] = cgroups_path(bundle)
        mounts: Sequence[RootMount] = ()
        if self.record.root == HOST_ROOT:
            upper, work = bundle.make_scratch()
            await copy_tree(self.directory / _SAVED / "upper", upper)
            mounts = (overlay_mount(upper, work),)
        return Prepared(config, mounts, self.record.root)


async def copy_tree(source: Path, target: Path) -> None:
    """Copy a directory's contents with owners, attributes, holes and device nodes, as an overlay's layer needs it."""
    target.mkdir(mode=0o755, exist_ok=True)
    process = await asyncio.create_subprocess_exec(
        *("cp", "-a", "--sparse=always", "--", f"{source}/.", str(target)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, complaint = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        raise errors.Internal(f"{source} could not be copied: {complaint.decode(errors='replace').strip()}")


def check_images(directory: Path) -> str:
    """The directory's path, whole; NotFound where there is none."""
    if not directory.is_dir():
        raise errors.NotFound(f"checkpoint {directory} does not exist")
    return str(directory.absolute())
