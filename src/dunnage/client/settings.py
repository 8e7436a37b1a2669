"""What a container is to be like, and the OCI specification and root mounts that follow from it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dunnage import errors
from dunnage.client.bundle import Bundle, host_files, host_filesystems
from dunnage.spec import check_process, check_text, check_words, make_spec, merge_env, parse_mount

_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# on the host's own root its programs are where the caller's shell finds them
_HOST_VARIABLES = ("PATH", "HOME", "LANG", "LC_ALL", "TZ")


@dataclass(frozen=True)
class Settings:
    """A container as `dunnage run` describes it; what is None is the runtime's default, or has no limit.

    With neither `rootfs` nor `bundle` its root is the host's `/` under an overlay that is thrown away with it. `rootfs`
    is a directory that it uses in place. `bundle` is an OCI bundle, whose config.json says everything but what is given
    here in `args`, `env` and `cwd`. `env` holds ``NAME=value``; `mounts` are in the form of ``--mount``; `user` is
    ``uid[:gid]`` or a name in the root's own passwd file. `runtime` is a program's name, or a path to one.
    """

    args: Sequence[str] = ()
    rootfs: Path | None = None
    bundle: Path | None = None
    env: Sequence[str] = ()
    cwd: str | None = None
    user: str | None = None
    hostname: str | None = None
    mounts: Sequence[str] = ()
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    network: Literal["host", "none"] = "host"
    read_only: bool = False
    runtime: str = "runc"

    def check(self) -> None:
        """InvalidArgument for what cannot be meant together."""
        if self.rootfs is not None and self.bundle is not None:
            raise errors.InvalidArgument("a root directory and a bundle exclude each other")
        check_words("command", self.args)
        check_words("environment", self.env)
        if self.bundle is None and not self.args:
            raise errors.InvalidArgument("no command to run")
        check_text("runtime", self.runtime)
        if self.bundle is not None:
            said = [name for name in _NOT_WITH_BUNDLE if getattr(self, name) != getattr(_DEFAULTS, name)]
            if said:
                raise errors.InvalidArgument(f"{', '.join(said)}: with a bundle, its config.json says that")


_NOT_WITH_BUNDLE = ("user", "hostname", "mounts", "memory_bytes", "cpus", "pids", "network", "read_only")
_DEFAULTS = Settings()


HOST_ROOT = "host"
"""What `Prepared.root` and a record call the host's own `/` under an overlay."""


class RootMount(NamedTuple):
    """A mount that the worker makes on the bundle's rootfs."""

    type: str
    source: str
    options: Sequence[str]


class Prepared(NamedTuple):
    """The specification, the mounts that make its root, and what that root is, in words."""

    spec: dict[str, Any]
    rootfs: Sequence[RootMount]
    root: str


def prepare(settings: Settings, bundle: Bundle, *, terminal: bool) -> Prepared:
    """Decide specification and root; for the host's root this makes the overlay's directories in the bundle."""
    settings.check()
    if settings.bundle is not None:
        return _prepare_bundle(settings, settings.bundle, bundle, terminal)
    if settings.rootfs is not None:
        root = settings.rootfs.absolute()
        if not root.is_dir():
            raise errors.InvalidArgument(f"root {root} is not a directory")
        env = merge_env([_DEFAULT_PATH], _terminal_env(terminal))
        return Prepared(_make_spec(settings, bundle, terminal, env, root, str(root), ()), (), f"directory {root}")
    upper, work = bundle.make_scratch()
    env = [f"{name}={os.environ[name]}" for name in _HOST_VARIABLES if name in os.environ]
    env = merge_env([_DEFAULT_PATH], [*env, *_terminal_env(terminal)])
    shared = [*host_filesystems(), *host_files()]
    mounts = [f"type=bind,source={path},target={path},readonly" for path in shared if "," not in path]
    return Prepared(
        _make_spec(settings, bundle, terminal, env, Path("/"), "rootfs", mounts),
        [overlay_mount(upper, work)],
        HOST_ROOT,
    )


def overlay_mount(upper: Path, work: Path) -> RootMount:
    """The host's root, with what is changed kept elsewhere."""
    return RootMount("overlay", "overlay", ("lowerdir=/", f"upperdir={upper}", f"workdir={work}"))


def cgroups_path(bundle: Bundle) -> str:
    """Where the container's cgroup is: one level, so that nothing is left when it goes ("--" is in no identifier)."""
    return f"/dunnage--{bundle.namespace}--{bundle.id}"


def _make_spec(
    settings: Settings,
    bundle: Bundle,
    terminal: bool,
    env: Sequence[str],
    root: Path,
    rootfs_path: str,
    mounts: Sequence[str],
) -> dict[str, Any]:
    return make_spec(
        settings.args,
        env=merge_env(env, settings.env),
        cwd=settings.cwd or "/",
        user=settings.user,
        terminal=terminal,
        hostname=settings.hostname or bundle.id,
        mounts=[parse_mount(text) for text in (*mounts, *settings.mounts)],
        memory_bytes=settings.memory_bytes,
        cpus=settings.cpus,
        pids=settings.pids,
        network=settings.network,
        read_only=settings.read_only,
        rootfs_path=rootfs_path,
        cgroups_path=cgroups_path(bundle),
        users_root=root,
    )


def _prepare_bundle(settings: Settings, source: Path, bundle: Bundle, terminal: bool) -> Prepared:
    try:
        config: dict[str, Any] = json.loads((source / "config.json").read_bytes())
        process, root, linux = config["process"], config["root"], config.setdefault("linux", {})
        root["path"] = str(source.absolute() / root["path"])
        args, env = settings.args or process.get("args") or (), process.get("env") or ()
        check_words(f"{source}/config.json: args", args)
        check_words(f"{source}/config.json: env", env)
        process["args"] = list(args)
        process["env"] = merge_env(env, settings.env)
        process["cwd"] = process.get("cwd", "/") if settings.cwd is None else settings.cwd
        process["terminal"] = terminal
        linux.setdefault("cgroupsPath", cgroups_path(bundle))
        check_process(process["args"], process["env"], process["cwd"])
    except OSError as error:
        raise errors.InvalidArgument(f"{source}/config.json: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.InvalidArgument(f"{source}/config.json is no OCI specification with process and root") from error
    return Prepared(config, (), f"bundle {source.absolute()}")


def _terminal_env(terminal: bool) -> list[str]:
    return [f"TERM={os.environ.get('TERM') or 'xterm'}"] if terminal else []
