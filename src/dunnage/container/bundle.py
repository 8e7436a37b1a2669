"""The bundle directory, file by file: containerd's, every shim's, and our own ``dunnage.json``.

Source for names, contents and modes: shim v2, §1.9. Every write is a temporary file and a rename.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dunnage.container.facts import Fact, fact_from_json
from dunnage.errors import Error, FailedPrecondition, InvalidArgument
from dunnage.runtime.logs import gather

RECORD = "dunnage.json"
LAUNCH = "dunnage-launch.json"
FAILURES = "dunnage-failures.json"
RECORD_VERSION = 1

_UNFINISHED = re.compile(r"process[a-z0-9_]{8}\.json|\..+\.new")

Record = dict[str, Any]
"""What ``dunnage.json`` holds: JSON values only; ``container.Container.record`` says which."""


class Bundle:
    """One container's bundle, held open so that it is found again wherever its path leads. Owns ``directory``."""

    def __init__(self, path: str, directory: int) -> None:
        self.path = path
        self.directory = directory

    @classmethod
    def open(cls, path: str) -> Bundle:
        """Open the bundle at ``path``. Raises FailedPrecondition where there is no such directory."""
        try:
            return cls(path, os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError as error:
            raise FailedPrecondition(f"bundle {path} cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        """Give the directory's descriptor back. Idempotent."""
        if self.directory >= 0:
            os.close(self.directory)
            self.directory = -1

    @property
    def rootfs(self) -> str:
        return os.path.join(self.path, "rootfs")

    @property
    def work(self) -> str:
        """Where criu works; containerd's bundles have a link there, to a directory on disk."""
        return os.path.join(self.path, "work")

    @property
    def log_path(self) -> str:
        """Where the runtime writes its log, shared by all its calls for this bundle."""
        return os.path.join(self.path, "log.json")

    @property
    def init_pid_path(self) -> str:
        return os.path.join(self.path, "init.pid")

    def exec_pid_path(self, exec_id: str) -> str:
        return os.path.join(self.path, f"{exec_id}.pid")

    def read_pid(self, exec_id: str) -> int:
        """What the runtime wrote: the init's pid for an empty id, else the exec's. Raises Error."""
        what = "exec" if exec_id else "container"
        try:
            return int(self._read(f"{exec_id or 'init'}.pid"))
        except (OSError, ValueError) as error:
            raise Error(f"failed to retrieve OCI runtime {what} pid: {error}") from error

    @property
    def identity(self) -> tuple[int, int]:
        """Device and inode of the directory: what tells this bundle from a later one of the same name."""
        status = os.fstat(self.directory)
        return status.st_dev, status.st_ino

    @property
    def is_removed(self) -> bool:
        """Whether the directory is no more, whoever removed it."""
        return self.directory >= 0 and os.fstat(self.directory).st_nlink == 0

    def make_rootfs(self) -> None:
        """Make the directory that is mounted on. Raises Error."""
        try:
            os.mkdir("rootfs", 0o711, dir_fd=self.directory)
        except FileExistsError:
            pass  # containerd has made it
        except OSError as error:
            raise Error(f"{self.rootfs} cannot be made: {error.strerror}") from error

    def make_work(self) -> None:
        """Make ``work`` where nobody has. Raises Error."""
        try:
            os.mkdir("work", 0o700, dir_fd=self.directory)
        except FileExistsError:
            pass
        except OSError as error:
            raise Error(f"{self.work} cannot be made: {error.strerror}") from error

    def read_spec(self) -> dict[str, Any]:
        """The OCI spec. Raises InvalidArgument where ``config.json`` is missing or no JSON object."""
        try:
            spec = json.loads(self._read("config.json"))
        except OSError as error:
            raise InvalidArgument(f"{self.path}/config.json cannot be read: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{self.path}/config.json is not JSON: {error}") from error
        if not isinstance(spec, dict):
            raise InvalidArgument(f"{self.path}/config.json is not a JSON object")
        return spec

    def write_options(self, options: Mapping[str, object], runtime: str) -> None:
        """Leave ``options.json`` and ``runtime`` for whoever runs ``delete`` when no shim is there to ask. Raises
        Error."""
        try:
            self._write("options.json", json.dumps(options, separators=(",", ":")), 0o600)
            self._write("runtime", runtime, 0o600)
        except OSError as error:
            raise Error(f"bundle {self.path} cannot be written: {error.strerror}") from error

    def read_record(self) -> Record | None:
        """What was saved last; None where nothing was. Raises Error for one that cannot be read or is of a newer
        version."""
        record = self._read_object(RECORD)
        if record is None:
            return None
        version = record.get("version", 0)
        if not isinstance(version, int) or version > RECORD_VERSION:
            raise Error(f"{self.path}/{RECORD} is of version {version}; this dunnage reads {RECORD_VERSION}")
        return record

    def save(self, record: Record) -> None:
        self._write(RECORD, json.dumps({"version": RECORD_VERSION, **record}, separators=(",", ":")), 0o600)

    def read_launch(self) -> Record | None:
        """What ``write_launch`` wrote; None where it never did. Raises Error for what cannot be read."""
        return self._read_object(LAUNCH)

    def write_launch(self, launch: Record) -> None:
        """Keep what the launcher handed down: written once, as large as an environment, so apart from the record."""
        self._write(LAUNCH, json.dumps(launch, separators=(",", ":")), 0o600)

    def read_failures(self) -> list[Any]:
        """The stories that ``save_failures`` kept; none where they cannot be read."""
        try:
            kept = json.loads(self._read(FAILURES))
        except (OSError, ValueError):
            return []
        return kept if isinstance(kept, list) else []

    def save_failures(self, stories: Sequence[Mapping[str, Any]]) -> None:
        """Keep the stories of failures (``stories``), apart from the record, which is written so much more often."""
        self._write(FAILURES, json.dumps(stories, separators=(",", ":")), 0o600)

    def forget(self) -> None:
        """Remove what only a living container needs; by the last of it a next worker knows that there is some left."""
        for name in (FAILURES, RECORD, LAUNCH):
            self.remove(name)
            self.remove(f".{name}.new")

    def remove_unfinished(self) -> None:
        """Put away what a worker that died in the middle of a write or of a call has left; no call of it may be under
        way any more. An exec's file (``runtime.client``) holds its environment."""
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.directory)
        try:
            names = os.listdir(directory)
        finally:
            os.close(directory)
        for name in names:
            if _UNFINISHED.fullmatch(name):
                self.remove(name)
        gather(self.log_path)

    def remove(self, name: str) -> None:
        if self.directory < 0:
            return  # closed, and about to be removed by whoever made it
        try:
            os.unlink(name, dir_fd=self.directory)
        except FileNotFoundError:
            pass  # removed before, or never made

    def _read_object(self, name: str) -> Record | None:
        try:
            value = json.loads(self._read(name))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise Error(f"{self.path}/{name} cannot be read: {error}") from error
        if not isinstance(value, dict):
            raise Error(f"{self.path}/{name} is not a JSON object")
        return value

    def _read(self, name: str) -> str:
        with open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory), encoding="utf-8") as file:
            return file.read()

    def _write(self, name: str, text: str, mode: int) -> None:
        temporary = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        fd = os.open(temporary, flags, mode, dir_fd=self.directory)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.rename(temporary, name, src_dir_fd=self.directory, dst_dir_fd=self.directory)
        except BaseException:
            self.remove(temporary)
            raise


def untold(record: Record, events_written: int) -> list[Fact]:
    """The facts that a worker was telling when it died, less those that it had written down: by then there were
    ``events_written`` events of all containers. Only one record, the last that was saved, can have any."""
    telling = record["telling"]
    return [fact_from_json(fact) for fact in telling["facts"]][max(0, events_written - telling["after"]) :]


def has_private_pid_namespace(spec: Mapping[str, Any]) -> bool:
    """True if the container has a pid namespace of its own, whose end kills all in it (shim v2, §4.2)."""
    linux = spec.get("linux")
    namespaces = linux.get("namespaces") if isinstance(linux, dict) else None
    for namespace in namespaces if isinstance(namespaces, list) else ():
        if isinstance(namespace, dict) and namespace.get("type") == "pid":
            return not namespace.get("path")
    return False
