"""What a launcher is told: the decisions behind ``start``, ``delete`` and ``-info`` (shim v2, §1.5, §1.7, §1.8)."""

from __future__ import annotations

import functools
import json
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Mapping

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

import dunnage
from dunnage.api import anys, bootstrap_pb2, runtime_info_pb2, task_pb2
from dunnage.container.bundle import Bundle
from dunnage.container.container import Container
from dunnage.container.facts import Ended
from dunnage.errors import Error, InvalidArgument, NotFound
from dunnage.linux import core_scheduling
from dunnage.linux.attributes import Attributes, oom_score_adj_of
from dunnage.linux.namespaces import namespaces
from dunnage.runtime.client import Runtime
from dunnage.service import messages
from dunnage.service.options import TYPES, ReadFile, read_options
from dunnage.worker import flags as shim_flags
from dunnage.worker.control import Kind, LaunchAnswer, LaunchRequest, refusal
from dunnage.worker.groups import LAUNCHER, OtherWorkers
from dunnage.worker.host import ContainerSpawner
from dunnage.worker.served import SCHED_CORE, SOCKET_DIRECTORY, Launch, ServedGroup, group_name, listen, socket_path
from dunnage.worker.worker import Worker

GROUP_ANNOTATIONS = ("io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id")
FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
KILLED_STATUS = 137
NO_PID = 0xFFFF_FFFF  # upstream's -1 on the wire
OOM_SCORE_LIMIT = 1000
_DELETE_TIMEOUT_S = 4.0  # containerd allows 5 for the whole delete
_FEATURES_TIMEOUT_S = 4.0  # a Create may wait for it
_FEATURES_BYTES = 1 << 20  # what is longer is cut, and so is no JSON any more


class Launches:
    """Answers the launchers of one worker. ``others``: in the node's worker, those it may pass a question on to;
    ``failure``: why this worker can start nothing, if so."""

    def __init__(self, worker: Worker, *, others: OtherWorkers | None, failure: str = "", log: logging.Logger) -> None:
        self._worker = worker
        self._others = others
        self._failure = failure
        self._log = log
        self._namespaces = namespaces("self")

    async def answer(self, request: LaunchRequest) -> LaunchAnswer:
        if self._others is None:
            request = _passed_on(request)
        try:
            if namespaces(request.pid) != self._namespaces:
                return LaunchAnswer(Kind.OTHER_NAMESPACES)
        except OSError as error:
            # it gave us up, having asked for a delete perhaps: that was done without us
            self._worker.look_for_removed()
            return refusal(f"the launcher {request.pid} cannot be seen: {error}")
        try:
            flags = shim_flags.parse(request.argv)
        except shim_flags.FlagError as error:
            return LaunchAnswer(status=error.status, stderr=os.fsencode(error.stderr))
        try:
            if flags.info:
                return LaunchAnswer(stdout=await self._info(request))
            if not flags.namespace:
                return refusal("shim namespace cannot be empty")
            if not flags.id:
                return refusal("task id cannot be empty")
            if flags.action == "start":
                if self._others is not None:
                    name, cgroup = await self._worker_for(flags, request)
                    if name:
                        return await self._others.ask(name, request, cgroup=cgroup)
                return LaunchAnswer(stdout=os.fsencode(self._start(flags, request)))
            if flags.action == "delete":
                other = self._others.serving(_read_address(request.cwd)) if self._others is not None else None
                if self._others is not None and other is not None:
                    answer = await self._others.ask_existing(other, request)
                    if answer is not None:
                        return answer
                return LaunchAnswer(stdout=_delete_response(await self._delete(flags, request)))
            return refusal(f"action {flags.action!r} is not known: it is start or delete")
        except (Error, OSError) as error:
            return refusal(error)

    # info

    async def _info(self, request: LaunchRequest) -> bytes:
        info = runtime_info_pb2.RuntimeInfo(name=shim_flags.runtime_name(request.argv[0]))
        info.version.version = info.version.revision = dunnage.__version__
        command = self._worker.config.runtime
        if request.stdin:
            options = _options(request.stdin)
            info.options.CopyFrom(options)
            command = (await read_options(options, self._worker.host.read_file)).binary_name or command
        path: str | None = command  # tried as it is: it may be where even looking hangs
        if "/" not in command:
            path = shutil.which(command, path=request.env.get("PATH", os.defpath))
        if path is None:
            raise _not_found(command)
        features = await self._features(path, request)
        if features:
            info.features.type_url = FEATURES
            info.features.value = features
        return info.SerializeToString()

    async def _features(self, path: str, request: LaunchRequest) -> bytes:
        """What ``<runtime> features`` prints; nothing where the runtime has no such command, or prints no features.
        Raises NotFound."""
        output = os.memfd_create("dunnage features", os.MFD_CLOEXEC)
        try:
            exit = await self._worker.host.run(
                f"features:{path}",
                [path, "features"],
                env=request.env,
                cwd="/",
                fds={1: output},
                attributes=Attributes.of(request.pid),
                deadline_s=_FEATURES_TIMEOUT_S,
            )
            features = os.pread(output, _FEATURES_BYTES, 0) if exit.code == 0 else b""
            if features and not isinstance(json.loads(features), dict):
                raise ValueError("not a JSON object")
            return features
        except TimeoutError:
            self._log.warning("%s features did not end within %g s", path, _FEATURES_TIMEOUT_S)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise _not_found(path) from error
        except OSError as error:
            self._log.warning("%s features cannot be run: %s", path, error)
        except ValueError as error:
            self._log.warning("%s features prints none: %s", path, error)
        finally:
            os.close(output)
        return b""

    # start

    async def _worker_for(self, flags: shim_flags.Flags, request: LaunchRequest) -> tuple[str, str]:
        """The name of the worker that a start asks for, empty for the node's, and the cgroup that worker lives in."""
        cgroup = await shim_cgroup(request.stdin, flags, self._worker.host.read_file)
        if cgroup:
            return f"cgroup {cgroup}", cgroup
        match self._worker.config.group:
            case "pod":
                return f"pod {flags.namespace}/{self._group_of(flags, request)}", ""
            case "container":
                return f"container {flags.namespace}/{flags.id}", ""
        return "", ""

    def _group_of(self, flags: shim_flags.Flags, request: LaunchRequest) -> str:
        annotated = _group_id(request.cwd)
        return flags.id if annotated is None or self._worker.config.group == "container" else annotated

    def _start(self, flags: shim_flags.Flags, request: LaunchRequest) -> str:
        if self._failure:
            raise Error(self._failure)
        if flags.debug:
            logging.getLogger("dunnage").setLevel(logging.DEBUG)
        group_id = self._group_of(flags, request)
        launch = _launch(request)
        bundle = os.stat(request.cwd)
        self._worker.begins(flags.namespace, flags.id, (bundle.st_dev, bundle.st_ino))
        served = self._worker.groups.get(group_name(flags.namespace, group_id))
        if served is not None:
            self._announce(served, flags, request, launch, served.remember)
            return served.group.address
        directory = SOCKET_DIRECTORY if flags.address else os.path.join(self._worker.state, "s")
        path = socket_path(directory, flags.address, flags.namespace, group_id)
        listener = listen(path)
        if listener is None:
            # a shim of another kind serves this group: its containers stay together
            _write_address(request.cwd, f"unix://{path}")
            return f"unix://{path}"
        with listener:
            _check_core_scheduling(request, path)
            served = self._worker.make_group(
                flags.namespace,
                group_id,
                f"unix://{path}",
                launch=launch,
                containerd_address=flags.address,
                ttrpc_address=request.env.get("TTRPC_ADDRESS", ""),
            )
            self._announce(served, flags, request, launch, functools.partial(served.open, listener))
        return served.group.address

    def _announce(
        self,
        served: ServedGroup,
        flags: shim_flags.Flags,
        request: LaunchRequest,
        launch: Launch,
        write_down: Callable[[], None],
    ) -> None:
        """Await a Create, and write down that it is awaited; where that fails, it is not, and the group may end."""
        self._worker.announce(served, flags.id, launch)
        try:
            write_down()
            _write_address(request.cwd, served.group.address)
        except BaseException:
            self._withdraw(served, flags.id)
            raise

    def _withdraw(self, served: ServedGroup, container_id: str) -> None:
        served.group.withdraw(container_id)
        served.take_launch(container_id)
        self._worker.close_if_empty(served)

    # delete

    async def _delete(self, flags: shim_flags.Flags, request: LaunchRequest) -> Ended:
        # the bundle is the working directory's sibling called like the task (§1.7), not what -bundle says
        path = os.path.join(os.path.dirname(request.cwd), flags.id)
        try:
            bundle = Bundle.open(path)
        except Error:
            return Ended(NO_PID, KILLED_STATUS, time.time_ns())
        try:
            await self._worker.wait_created(flags.namespace, flags.id)
            ended = self._worker.cleaned(flags.namespace, flags.id, bundle.identity)
            if ended is not None:
                return ended
            found = self._worker.find(flags.namespace, flags.id)
            if found is not None and found[1].bundle.identity == bundle.identity:
                return await self._destroy(*found)
            ended = await self._clean_up(flags, request, bundle)
            self._worker.forget_lost(flags.namespace, flags.id)
            return ended
        finally:
            bundle.close()
            served = self._served_by(flags, request)
            if served is not None:
                self._withdraw(served, flags.id)

    async def _destroy(self, served: ServedGroup, container: Container) -> Ended:
        self._log.warning("container %s is deleted while it lives: containerd has lost it", container.id)
        ended = await container.destroy()
        self._worker.forget(served, container)
        return ended

    async def _clean_up(self, flags: shim_flags.Flags, request: LaunchRequest, bundle: Bundle) -> Ended:
        """No worker knows this container: what is left of it is in its bundle's files."""
        options = _read_options(bundle)
        runtime = Runtime(
            _read_text(bundle, "runtime") or self._worker.config.runtime,
            root=os.path.join(str(options.get("root") or self._worker.config.runtime_root), flags.namespace),
            log_path=bundle.log_path,
            systemd_cgroup=bool(options.get("systemd_cgroup")),
            spawner=ContainerSpawner(self._worker.host, _launch(request).attributes),
            env=request.env,
            deadline_s=_DELETE_TIMEOUT_S,
            scope=flags.namespace,
        )
        if _read_text(bundle, "init.pid") or _read_text(bundle, "runtime") is not None:
            try:
                await runtime.delete(flags.id, force=True)
            except Error as error:
                self._log.warning("failed to remove runc container %s: %s", flags.id, error)
        if _has_rootfs(bundle):
            try:
                await self._worker.host.unmount(f"{flags.namespace}/{flags.id}", bundle.rootfs)
            except Error as error:
                self._log.warning("failed to cleanup rootfs mount of %s: %s", flags.id, error)
        return Ended(_read_pid(bundle), KILLED_STATUS, time.time_ns())

    def _served_by(self, flags: shim_flags.Flags, request: LaunchRequest) -> ServedGroup | None:
        try:
            group_id = self._group_of(flags, request)
        except InvalidArgument:
            group_id = flags.id
        return self._worker.groups.get(group_name(flags.namespace, group_id))


def _group_id(directory: str) -> str | None:
    """The group that the bundle in ``directory`` asks for; None: one of its own."""
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            spec = json.load(file)
    except OSError as error:
        raise InvalidArgument(f"open {path}: {(error.strerror or '').lower()}") from error
    except ValueError as error:
        raise InvalidArgument(f"{path} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise InvalidArgument(f"{path} is not a JSON object")
    annotations = spec.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(value, str) for value in annotations.values()):
        raise InvalidArgument(f"{path}: annotations are not texts by name")
    for name in GROUP_ANNOTATIONS:
        if name in annotations:
            return str(annotations[name])
    return None


def _launch(request: LaunchRequest) -> Launch:
    """What the container is to inherit: the launcher's, but an OOM score one above its parent's (§1.5.11)."""
    attributes = Attributes.of(request.pid)
    try:
        score = min(oom_score_adj_of(_parent(request.pid)) + 1, OOM_SCORE_LIMIT)
    except OSError:
        score = attributes.oom_score_adj
    return Launch(dict(request.env), attributes._replace(oom_score_adj=score))


def _check_core_scheduling(request: LaunchRequest, path: str) -> None:
    """Refuse a group that is to have a core scheduling domain where there can be none, and take its socket away."""
    if request.env.get(SCHED_CORE):
        try:
            core_scheduling.check_offered()
        except OSError as error:
            os.unlink(path)
            raise Error(f"enable sched core support: {(error.strerror or '').lower()}") from error


def _parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])


def _write_address(directory: str, address: str) -> None:
    """Leave the address where containerd up to 1.7 looks for it after its restart (§1.5.6), whole or not at all."""
    temporary = os.path.join(directory, ".address")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644), "wb") as file:
        file.write(os.fsencode(address))
    os.rename(temporary, os.path.join(directory, "address"))


def _read_address(directory: str) -> str:
    try:
        with open(os.path.join(directory, "address"), "rb") as file:
            return os.fsdecode(file.read().strip())
    except OSError:
        return ""


def _passed_on(request: LaunchRequest) -> LaunchRequest:
    """The request as its launcher made it: the node's worker has passed it on, and says which process that is."""
    env = dict(request.env)
    pid = env.pop(LAUNCHER, "")
    return request._replace(env=env, pid=int(pid) if pid.isdecimal() else request.pid)


def _not_found(command: str) -> NotFound:
    return NotFound(f'failed to look up the path of "{command}": executable file not found in $PATH')


def _has_rootfs(bundle: Bundle) -> bool:
    """Its directory is asked, as what is mounted there may never answer."""
    try:
        directory = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=bundle.directory)
    except OSError:
        return False
    try:
        return os.path.basename(bundle.rootfs) in os.listdir(directory)
    finally:
        os.close(directory)


def _read_text(bundle: Bundle, name: str) -> str | None:
    """None where there is no such file; what else has that name, as a fifo, is not waited for."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(name, flags, dir_fd=bundle.directory), encoding="utf-8") as file:
            return file.read().strip() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None
    except (OSError, UnicodeDecodeError):
        return None


def _read_pid(bundle: Bundle) -> int:
    """As the launcher has it where it must do without a worker: 0 where the file says no pid."""
    text = _read_text(bundle, "init.pid")
    if text and text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    return NO_PID if text is None else 0


def _read_options(bundle: Bundle) -> Mapping[str, object]:
    try:
        options = json.loads(_read_text(bundle, "options.json") or "{}")
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _delete_response(ended: Ended) -> bytes:
    exited_at = time.time_ns() if ended.exited_at is None else ended.exited_at
    status = ended.status if ended.exited_at is not None else KILLED_STATUS
    return task_pb2.DeleteResponse(
        pid=ended.pid, exit_status=status, exited_at=messages.timestamp(exited_at)
    ).SerializeToString()


def _options(stdin: bytes) -> AnyMessage:
    try:
        return AnyMessage.FromString(stdin)
    except DecodeError as error:
        raise InvalidArgument(f"the options on stdin are no Any: {error}") from error


async def shim_cgroup(stdin: bytes, flags: shim_flags.Flags, read_file: ReadFile) -> str:
    """The cgroup that the options on a start's stdin name for the shim. Options that cannot be read name none, as
    upstream has it from 1.7 on (§1.5.10): Create is given the same ones, and refuses them with a code."""
    try:
        return (await read_options(_start_options(stdin, flags), read_file)).shim_cgroup
    except Error:
        return ""


def _start_options(stdin: bytes, flags: shim_flags.Flags) -> AnyMessage:
    """The options on a start's stdin: all of it, or an extension of the BootstrapParams that containerd sends from 2.3
    on. Options would pass for such parameters, but are not for this container (§1.3)."""
    try:
        params = bootstrap_pb2.BootstrapParams.FromString(stdin)
    except DecodeError:
        return _options(stdin)
    if (params.instance_id, params.namespace) != (flags.id, flags.namespace):
        return _options(stdin)
    values = (extension.value for extension in params.extensions)
    return next((value for value in values if anys.type_name(value) in TYPES), AnyMessage())
