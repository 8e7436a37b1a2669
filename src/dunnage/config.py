"""What an administrator may choose: ``/etc/dunnage/config.toml``, every key with a default, every mistake named."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from dunnage.errors import InvalidArgument

PATH = "/etc/dunnage/config.toml"

Group = Literal["node", "pod", "container"]
LogLevel = Literal["debug", "info", "warning", "error"]


@dataclass(frozen=True)
class Config:
    """Durations are in seconds.

    ``group`` says how many workers serve a node: one (``node``), or one more per pod or per container.
    ``runtime`` is the OCI runtime where a container's options name none; ``runtime_root`` where it keeps its state.
    ``runtime_timeout_s`` bounds every call to the runtime but those that write or read a checkpoint, which
    ``checkpoint_timeout_s`` does; ``mount_timeout_s`` every mount and unmount;
    ``io_drain_timeout_s`` how long a Delete waits for the last bytes of stdout and stderr;
    ``create_timeout_s`` after how long a ``start`` that no Create followed is dropped;
    ``idle_exit_s`` how long keeper and worker stay when nothing is left.
    """

    group: Group = "node"
    runtime: str = "runc"
    runtime_root: str = "/run/containerd/runc"
    log_level: LogLevel = "info"
    runtime_timeout_s: float = 120.0
    checkpoint_timeout_s: float = 3600.0
    mount_timeout_s: float = 30.0
    io_drain_timeout_s: float = 10.0
    create_timeout_s: float = 120.0
    idle_exit_s: float = 30.0


def load(path: str = PATH) -> Config:
    """Read the file at ``path``; no file means every default. Raises InvalidArgument naming file, key and fact."""
    try:
        with open(path, "rb") as file:
            return parse(tomllib.load(file), path)
    except FileNotFoundError:
        return Config()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror}") from error


def parse(table: Mapping[str, object], path: str = PATH) -> Config:
    """Make a Config of a TOML table. Raises InvalidArgument for an unknown key or a wrong value."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in known:
            raise InvalidArgument(f"{path}: unknown key {key}; known are {', '.join(sorted(known))}")
        values[key] = _checked(path, key, value)
    return dataclasses.replace(Config(), **values)  # type: ignore[arg-type]  # each value was checked against its field


_CHOICES: Mapping[str, tuple[str, ...]] = {"group": get_args(Group), "log_level": get_args(LogLevel)}


def _checked(path: str, key: str, value: object) -> object:
    if key in _CHOICES:
        if value not in _CHOICES[key]:
            raise InvalidArgument(f"{path}: {key} is {value!r}; it may be {', '.join(_CHOICES[key])}")
        return value
    if key.endswith("_s"):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86_400:
            raise InvalidArgument(f"{path}: {key} is {value!r}; it must be a number of seconds, up to 86400")
        return float(value)
    if not isinstance(value, str) or not value:
        raise InvalidArgument(f"{path}: {key} is {value!r}; it must be a text that is not empty")
    return value
