"""Every call's options, which know their argv. Pure.

Order and spelling are go-runc's, since runtimes are tested against that: two things look odd and are meant,
``-no-subreaper`` with one dash and ``--resources=-`` with an equals sign.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Arguments(Protocol):
    """One subcommand: what follows the global flags."""

    @property
    def verb(self) -> str: ...

    def argv(self, container: str) -> list[str]: ...


@dataclass(frozen=True)
class Globals:
    """What stands before the subcommand."""

    root: str
    log: str
    systemd_cgroup: bool = False
    criu: str = ""

    def argv(self) -> list[str]:
        return [
            *("--root", self.root),
            *("--log", self.log, "--log-format", "json"),
            *_option("--criu", self.criu),
            *_flag("--systemd-cgroup", self.systemd_cgroup),
        ]


@dataclass(frozen=True)
class Create:
    bundle: str
    pid_file: str
    console_socket: str | None = None
    no_pivot: bool = False
    no_new_keyring: bool = False
    verb: str = field(default="create", init=False)

    def argv(self, container: str) -> list[str]:
        return [
            *("create", "--bundle", self.bundle),
            *_path("--pid-file", self.pid_file),
            *_option("--console-socket", self.console_socket),
            *_flag("--no-pivot", self.no_pivot),
            *_flag("--no-new-keyring", self.no_new_keyring),
            container,
        ]


@dataclass(frozen=True)
class Start:
    verb: str = field(default="start", init=False)

    def argv(self, container: str) -> list[str]:
        return ["start", container]


@dataclass(frozen=True)
class Exec:
    """``process`` is the path of a file with an OCI process in JSON."""

    process: str
    pid_file: str
    console_socket: str | None = None
    detach: bool = True
    verb: str = field(default="exec", init=False)

    def argv(self, container: str) -> list[str]:
        return [
            *("exec", "--process", self.process),
            *_option("--console-socket", self.console_socket),
            *_flag("--detach", self.detach),
            *_path("--pid-file", self.pid_file),
            container,
        ]


@dataclass(frozen=True)
class Kill:
    signal: int
    all: bool = False
    verb: str = field(default="kill", init=False)

    def argv(self, container: str) -> list[str]:
        return ["kill", *_flag("--all", self.all), container, str(self.signal)]


@dataclass(frozen=True)
class Delete:
    force: bool = False
    verb: str = field(default="delete", init=False)

    def argv(self, container: str) -> list[str]:
        return ["delete", *_flag("--force", self.force), container]


@dataclass(frozen=True)
class Pause:
    verb: str = field(default="pause", init=False)

    def argv(self, container: str) -> list[str]:
        return ["pause", container]


@dataclass(frozen=True)
class Resume:
    verb: str = field(default="resume", init=False)

    def argv(self, container: str) -> list[str]:
        return ["resume", container]


@dataclass(frozen=True)
class Ps:
    verb: str = field(default="ps", init=False)

    def argv(self, container: str) -> list[str]:
        return ["ps", "--format", "json", container]


@dataclass(frozen=True)
class State:
    verb: str = field(default="state", init=False)

    def argv(self, container: str) -> list[str]:
        return ["state", container]


@dataclass(frozen=True)
class Update:
    """The resources, in JSON, come on stdin."""

    verb: str = field(default="update", init=False)

    def argv(self, container: str) -> list[str]:
        return ["update", "--resources=-", container]


@dataclass(frozen=True)
class Criu:
    """What checkpoint and restore have in common."""

    image_path: str
    work_path: str | None = None
    parent_path: str | None = None
    open_tcp: bool = False
    external_unix_sockets: bool = False
    terminal: bool = False
    file_locks: bool = False
    cgroups_mode: str | None = None
    empty_namespaces: Sequence[str] = ()

    def argv(self) -> list[str]:
        return [
            *_option("--image-path", self.image_path),
            *_option("--work-path", self.work_path),
            *_option("--parent-path", self.parent_path),
            *_flag("--tcp-established", self.open_tcp),
            *_flag("--ext-unix-sk", self.external_unix_sockets),
            *_flag("--shell-job", self.terminal),
            *_flag("--file-locks", self.file_locks),
            *_option("--manage-cgroups-mode", self.cgroups_mode),
            *(word for namespace in self.empty_namespaces for word in ("--empty-ns", namespace)),
        ]


@dataclass(frozen=True)
class Checkpoint:
    criu: Criu
    leave_running: bool = True
    verb: str = field(default="checkpoint", init=False)

    def argv(self, container: str) -> list[str]:
        return ["checkpoint", *self.criu.argv(), *_flag("--leave-running", self.leave_running), container]


@dataclass(frozen=True)
class Restore:
    criu: Criu
    bundle: str
    pid_file: str
    console_socket: str | None = None
    no_pivot: bool = False
    detach: bool = True
    no_subreaper: bool = True
    verb: str = field(default="restore", init=False)

    def argv(self, container: str) -> list[str]:
        return [
            *("restore", *self.criu.argv()),
            *_flag("--detach", self.detach),
            *_path("--pid-file", self.pid_file),
            *_option("--console-socket", self.console_socket),
            *_flag("--no-pivot", self.no_pivot),
            *_flag("-no-subreaper", self.no_subreaper),
            *("--bundle", self.bundle),
            container,
        ]


def _flag(name: str, given: bool) -> list[str]:
    return [name] if given else []


def _option(name: str, value: str | None) -> list[str]:
    return [name, value] if value else []


def _path(name: str, path: str) -> list[str]:
    """The runtime may change its directory before it writes."""
    return [name, os.path.abspath(path)]
