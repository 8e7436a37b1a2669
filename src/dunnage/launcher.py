"""containerd-shim-dunnage-v2: it asks the worker, prints what comes back, and exits as told; it knows nothing itself.

containerd runs it twice for every container, so the way to a keeper that answers imports ``sys``, ``posix`` and
``_socket`` alone. ``dunnage install`` copies this file with the constants filled in, and what is between the two marks
as text, since compiling it takes half as long as a launch. Nothing of dunnage is imported: ``delete`` works without it.
"""

import _socket
import posix
import sys

PYTHON = ""  # the interpreter that has dunnage, and starts the keeper; empty: the one that runs this
VERSION = "unreleased"
STATE_ROOT = "/run/dunnage"

NAME = "io.containerd.dunnage.v2"
BOOLEANS = ("debug", "info", "v", "version")
STRINGS = ("address", "bundle", "debug-socket", "id", "namespace", "publish-binary", "socket")
TRUE = ("1", "t", "T", "TRUE", "true", "True")
Answer = tuple[bytes, int, bytes, bytes]  # its kind, the exit status, stdout, stderr
ANSWER_S = 90.0
DELETE_ANSWER_S = 2.0  # containerd allows 5 s in all, and without an answer the bundle's files have to do


def main() -> None:
    """Ask and exit; never returns."""
    flags, action = scan(sys.argv)
    if flags.get("v") in TRUE or flags.get("version") in TRUE:
        answer = (b"A", 0, version_text(sys.argv[0]), b"")
    else:
        stdin = read_all(0) if action == "start" or flags.get("info") in TRUE else b""
        frame = frame_of(sys.argv, posix.environ, stdin)
        deadline = clock() + (DELETE_ANSWER_S if action == "delete" else ANSWER_S)
        first = None
        try:
            first = ask(f"{STATE_ROOT}/{key_of(flags.get('address', ''))}/control", frame, deadline)
        except OSError:
            pass  # the slow way finds out what is the matter
        answer = first if first and first[0] == b"A" else slow_way(flags, action, frame, deadline, first)
    write_all(1, answer[2])
    write_all(2, answer[3])
    posix._exit(answer[1])  # nothing is left to finalize, and finalizing takes a millisecond


def scan(argv: list[str]) -> tuple[dict[str, str], str]:
    """The flags and the action, by Go's rules; where Go would refuse, what came before, and no action."""
    flags: dict[str, str] = {}
    at = 1
    while at < len(argv):
        word = argv[at]
        at += 1
        if len(word) < 2 or word[0] != "-":
            return flags, word
        if word == "--":
            return flags, argv[at] if at < len(argv) else ""
        name, equals, value = word[2 if word[1] == "-" else 1 :].partition("=")
        if name in BOOLEANS:
            flags[name] = value if equals else "true"
            continue
        if name not in STRINGS or (not equals and at == len(argv)):
            break
        if not equals:
            value = argv[at]
            at += 1
        flags[name] = value
    return flags, ""


def key_of(address: str) -> str:
    """The directory below the state root for a containerd address: ``local`` without one, else its escaped path."""
    if not address:
        return "local"
    key = ""
    for char in address:
        if char == "/":
            key += "-"
        elif char.isascii() and (char.isalnum() or char in ":_."):
            key += char
        else:
            key += "".join([f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape")])
    if len(key) > 1 and key[0] == "-":
        key = key[1:]
    if key[0] == "." or key == "local":
        key = f"\\x{ord(key[0]):02x}{key[1:]}"
    return key if len(key) <= 64 else f"{key[-40:]}-{fnv1a(key.encode()):016x}"


def fnv1a(text: bytes) -> int:
    """FNV-1a, 64 bits: a name must be the same in every launcher, it need not be secure."""
    value = 0xCBF29CE484222325
    for byte in text:
        value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return value


def frame_of(argv: list[str], environ: dict[bytes, bytes], stdin: bytes) -> bytes:
    """The whole request (the format is in worker/control.py)."""
    encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
    try:
        cwd = posix.getcwdb()
    except OSError:
        cwd = b""  # it was removed; what needs it says so
    fields = [str(len(argv)).encode(), *[word.encode(encoding, errors) for word in argv]]
    fields += [str(len(environ)).encode(), *[name + b"=" + value for name, value in environ.items()]]
    body = b"\0".join([*fields, cwd, stdin])
    return b"1" + len(body).to_bytes(4, "little") + body


def ask(path: str, frame: bytes, deadline: float) -> Answer | None:
    """The answer; None where the connection ended without a whole answer, which means: ask again.

    OSError where nobody listens; BlockingIOError where nobody answered, or the backlog stayed full, until the deadline.
    """
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        limit(peer, _socket.SO_SNDTIMEO, deadline)
        peer.connect(path)
        try:
            while frame:
                limit(peer, _socket.SO_SNDTIMEO, deadline)
                frame = frame[peer.send(frame) :]
        except (BrokenPipeError, ConnectionResetError):
            pass  # a question may be refused before it is all said: the answer is there
        except OSError as error:
            if error.errno == 107:  # ENOTCONN: CPython takes a connect that a stop interrupted for one that succeeded
                return None
            raise
        text, size = b"", 10
        while len(text) < size:
            limit(peer, _socket.SO_RCVTIMEO, deadline)
            try:
                chunk = peer.recv(65536)
            except ConnectionResetError:
                return None
            if not chunk:
                return None
            text += chunk
            if len(text) >= 10:
                middle = 10 + int.from_bytes(text[2:6], "little")
                size = middle + int.from_bytes(text[6:10], "little")
        return text[:1], text[1], text[10:middle], text[middle:size]
    finally:
        peer.close()


def limit(peer: _socket.socket, option: int, deadline: float) -> None:
    """Let the kernel end the next call at the deadline, so that a blocking connect waits for room in the backlog."""
    left = max(int((deadline - clock()) * 1_000_000), 1)  # 0 would mean for ever
    word = 8 if sys.maxsize > 1 << 32 else 4
    timeval = (left // 1_000_000).to_bytes(word, sys.byteorder) + (left % 1_000_000).to_bytes(word, sys.byteorder)
    peer.setsockopt(_socket.SOL_SOCKET, option, timeval)


def clock() -> float:
    """Monotonic seconds without importing ``time``."""
    return posix.times()[4]


def read_all(fd: int) -> bytes:
    """Everything until the end; nothing where the descriptor is closed."""
    got = b""
    try:
        posix.set_blocking(fd, True)  # what is not there yet is not the end
        while chunk := posix.read(fd, 1 << 20):
            got += chunk
    except OSError:
        pass
    return got


def write_all(fd: int, text: bytes) -> None:
    """Write it, or as much of it as the reader takes."""
    try:
        posix.set_blocking(fd, True)
        while text:
            text = text[posix.write(fd, text) :]
    except OSError:
        pass


def version_text(program: str) -> bytes:
    """What ``-v`` prints, laid out as containerd's own shim does."""
    name, version = program.rpartition("/")[2], sys.version.split()[0]
    return f"{name}:\n  Version:  {VERSION}\n  Revision: {VERSION}\n  Python version: {version}\n\n".encode()


# --- the slow way ---


class Refusal(Exception):
    """What cannot be done, and why, in words for containerd's log."""


HELD_LOCK_S = 10.0  # a launcher holds a keeper's lock for milliseconds before the socket is there
STARTS = 2  # a keeper that dies twice while one launcher waits for it would die a third time
RUNTIME_S = 2.2  # of a delete's 5 s, after the 2 s in which a worker may answer
UNMOUNT_S = 0.4
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")


def slow_way(flags: dict[str, str], action: str, frame: bytes, deadline: float, first: Answer | None) -> Answer:
    """Everything but a keeper that answers at once: start one, go to the right one, or do without."""
    import _signal  # type: ignore[import-not-found]  # ``signal`` without its enum, which takes 7 ms

    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)  # ignored, as one may inherit it, no child would leave a status
    key = key_of(flags.get("address", ""))
    try:
        if action != "delete":
            return wait_answer(key, frame, deadline, first, may_start=True)
        try:
            return wait_answer(key, frame, deadline, first, may_start=False)
        except (Refusal, OSError):
            return clean_up(flags, deadline + RUNTIME_S, deadline + RUNTIME_S + UNMOUNT_S)
    except Refusal as error:
        reason = str(error)
    except OSError as error:
        reason = f"{error.filename}: {lowered(error)}" if error.filename else lowered(error)
    return b"A", 1, b"", f"{NAME}: {reason}".encode("utf-8", "surrogateescape")


def wait_answer(key: str, frame: bytes, deadline: float, answer: Answer | None, *, may_start: bool) -> Answer:
    """Ask the keeper of these namespaces until it answers, and start it if there is none; raises Refusal."""
    import time

    directory, own = f"{STATE_ROOT}/{key}", f"{STATE_ROOT}/{own_key(key)}"
    pause_s, starts, log_at, held_since = 0.005, 0, 0, 0.0
    while True:
        if answer is not None:
            if answer[0] == b"A":
                return answer
            if answer[0] != b"N" or directory == own:
                what = "says that these namespaces are not its own" if answer[0] == b"N" else "is of another release"
                raise Refusal(f"keeper {keeper_pid(directory)} of {directory} {what}")
            directory, starts = own, 0
        try:
            answer = ask(f"{directory}/control", frame, deadline)
            if answer is not None:
                continue
            held_since = 0.0
        except BlockingIOError:
            raise Refusal(silence(directory)) from None
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            answer = None
            if directory != own and is_listening(own):
                directory, starts = own, 0
                continue
            if not may_start and not is_locked(directory):
                raise Refusal(f"no keeper lives in {directory}") from None
            lock = taken_lock(directory) if may_start else None
            if lock is None:
                held_since = held_since or clock()
                if clock() - held_since > HELD_LOCK_S:
                    raise Refusal(silence(directory)) from None
            elif is_listening(directory):
                posix.close(lock)
                continue
            elif starts == STARTS:
                posix.close(lock)
                raise Refusal(f"keeper of {directory} cannot start: {last_words(directory, log_at)}") from None
            else:
                log_at, starts = start_keeper(directory, lock), starts + 1
                continue
        if clock() > deadline:
            raise Refusal(silence(directory))
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.1)


def own_key(key: str) -> str:
    """The key of a keeper for this process's namespaces, where the plain key belongs to another set of them."""
    found = []
    for name in NAMESPACES:
        try:
            found.append(f"{name}:{posix.stat(f'/proc/self/ns/{name}').st_ino}")
        except OSError:
            pass  # a kernel without that kind of namespace
    return f"{key}+{fnv1a(','.join(found).encode()):016x}"


def is_listening(directory: str) -> bool:
    """Whether somebody holds the listening control socket; a full backlog is somebody's, too."""
    peer = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
    try:
        return peer.connect_ex(f"{directory}/control") in (0, 11)  # EAGAIN: the backlog is full
    finally:
        peer.close()


def taken_lock(directory: str) -> int | None:
    """The keeper's lock, taken; None where a keeper, or a launcher that starts one, has it; makes the directory."""
    import fcntl
    import os

    for path in (STATE_ROOT, directory):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if os.stat(path).st_uid != os.geteuid():
                raise Refusal(f"state directory {path} belongs to another user") from None
        except OSError as error:
            raise Refusal(f"mkdir {path}: {lowered(error)}") from error
    path = f"{directory}/lock"
    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Refusal(f"open {path}: {lowered(error)}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), os.stat(path)):
                return lock
        except BlockingIOError:
            os.close(lock)
            return None
        except FileNotFoundError:
            pass
        os.close(lock)  # somebody removed the file between open and flock: a lock on it would exclude nobody


def is_locked(directory: str) -> bool:
    """Whether a keeper lives there, found out without making anything."""
    import fcntl

    try:
        lock = posix.open(f"{directory}/lock", posix.O_RDWR | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        posix.close(lock)
    return False


def start_keeper(directory: str, lock: int) -> int:
    """Start the keeper, which gets lock and listening socket; both are closed here. Returns the size its log had."""
    import os

    path = f"{directory}/control"
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        if os.path.lexists(path):
            os.unlink(path)
        umask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(umask)
        listener.listen(4096)
        log = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        log_at = os.fstat(log).st_size
        child = os.fork()
        if child == 0:
            try:
                os.setsid()
                if os.fork() == 0:
                    become_keeper(directory, lock, listener.fileno(), log)
            except OSError as error:
                os.write(log, f"keeper cannot start: {lowered(error)}\n".encode())
            finally:
                os._exit(0)
        os.close(log)
        os.waitpid(child, 0)
    except OSError as error:
        raise Refusal(f"cannot start a keeper in {directory}: {lowered(error)}") from error
    finally:
        listener.close()
        os.close(lock)
    return log_at


def become_keeper(directory: str, lock: int, control: int, log: int) -> None:
    """The rest of the way to the keeper, in its process: nothing of the launcher's comes along but its environment."""
    import fcntl
    import os
    import signal

    python = PYTHON or sys.executable
    os.chdir("/")
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    # copies above 2, where even a launcher that was started with closed descriptors has nothing of its own
    null, log, *kept = (
        fcntl.fcntl(fd, fcntl.F_DUPFD, 3) for fd in (os.open("/dev/null", os.O_RDWR), log, lock, control)
    )
    for target, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, target)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in kept:
            try:
                os.close(fd)
            except OSError:
                pass  # the one that listed them
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores them, and an exec would pass that on
    arguments = ["--state", directory, "--lock-fd", str(kept[0]), "--control-fd", str(kept[1])]
    # the last argument is room: the keeper writes its name, containerd-shim…, over its arguments
    argv = [python, "-I", "-m", "dunnage.keeper", *arguments, " " * 256]
    try:
        os.execv(python, argv)
    except OSError as error:
        os.write(2, f"cannot run {python}: {lowered(error)}\n".encode())


def silence(directory: str) -> str:
    """What to say of a keeper that lives and does not answer."""
    pid = keeper_pid(directory)
    return f"keeper {pid} of {directory} lives but does not answer; what it logs is in {directory}/log"


def keeper_pid(directory: str) -> str:
    """The pid in the lock file."""
    return (text_of(directory, "lock") or "(unknown)")[:20]


def last_words(directory: str, log_at: int) -> str:
    """The end of what a keeper wrote since."""
    try:
        with open(f"{directory}/log", "rb") as file:
            file.seek(max(log_at, file.seek(0, 2) - 2000))
            return file.read().decode("utf-8", "replace").strip() or f"it died without a word in {directory}/log"
    except OSError as error:
        return f"its log cannot be read: {lowered(error)}"


def lowered(error: Exception) -> str:
    """The kernel's words, as Go writes them."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def clean_up(flags: dict[str, str], runtime_deadline: float, deadline: float) -> Answer:
    """Delete a container by its bundle's files alone, as containerd's own shim does; what fails is a warning."""
    import os

    container, namespace = flags.get("id", ""), flags.get("namespace", "")
    if not namespace:
        raise Refusal("shim namespace cannot be empty")
    if not container or "/" in container or container in (".", ".."):
        raise Refusal(f"invalid container id {container!r}")
    try:
        bundle = f"{os.path.dirname(os.getcwd())}/{container}"
    except OSError:
        bundle = flags.get("bundle", "")  # the working directory is gone, and most likely the bundle with it
    warnings: list[str] = []
    delete_by_runtime(bundle, namespace, container, runtime_deadline, warnings)
    unmount_rootfs(f"{bundle}/rootfs", deadline, warnings)
    response = delete_response(init_pid(bundle, warnings), exit_status=137)
    return b"A", 0, response, "".join([f"{line}\n" for line in warnings]).encode("utf-8", "surrogateescape")


def delete_by_runtime(bundle: str, namespace: str, container: str, deadline: float, warnings: list[str]) -> None:
    """Have the container's runtime kill and remove it; a runtime that hangs is killed at the deadline."""
    import os

    options = bundle_options(bundle, warnings)
    runtime = text_of(bundle, "runtime") or options.get("binary_name") or "runc"
    root = options.get("root") or "/run/containerd/runc"
    argv = [runtime, "--root", f"{root}/{namespace}"]
    if options.get("systemd_cgroup"):
        argv.append("--systemd-cgroup")  # runc before 1.1 does not know it of itself, and would leave the scope
    if os.path.isdir(bundle):
        argv += ["--log", f"{bundle}/log.json", "--log-format", "json"]
    argv += ["delete", "--force", container]
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", **os.environ}
    said = os.memfd_create("stderr")  # not a pipe: a hook that lives on would hold it open
    try:
        pid = spawn(runtime, argv, env, said)
        if not ends(pid, deadline):
            os.killpg(pid, 9)
            warnings.append(f"{runtime} delete --force {container} did not end in time and was killed")
        elif status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            words = os.pread(said, 2000, 0).decode("utf-8", "replace").strip()
            warnings.append(f"failed to remove runc container: {words or f'{runtime} exited with {status}'}")
    except (OSError, ValueError) as error:  # ValueError: what no argument can be
        warnings.append(f"cannot run {runtime}: {lowered(error)}")
    finally:
        os.close(said)


def spawn(command: str, argv: list[str], env: dict[str, str], said: int) -> int:
    """Run a program in a session of its own; its pid. By hand: to import ``subprocess`` takes as long as all else."""
    actions = [(posix.POSIX_SPAWN_OPEN, 0, "/dev/null", 0, 0), *[(posix.POSIX_SPAWN_DUP2, said, fd) for fd in (1, 2)]]
    failure: OSError = FileNotFoundError(2, "executable file not found in $PATH")
    for place in ("",) if "/" in command else [f"{place}/" for place in env["PATH"].split(":") if place]:
        try:  # 13 and 25: SIGPIPE and SIGXFSZ, which Python ignores
            return posix.posix_spawn(place + command, argv, env, file_actions=actions, setsid=True, setsigdef=(13, 25))
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            failure = error
    raise failure


def ends(pid: int, deadline: float) -> bool:
    """Wait for the end of a child until the deadline."""
    import select

    pidfd = posix.pidfd_open(pid)
    try:
        return bool(select.select([pidfd], [], [], max(deadline - clock(), 0.1))[0])
    finally:
        posix.close(pidfd)


def bundle_options(bundle: str, warnings: list[str]) -> dict[str, str]:
    """The values of options.json that are texts, or true; none where there is no such file, or half of one."""
    if not (text := text_of(bundle, "options.json")) or text == "{}":
        return {}
    try:
        import json  # only where it is needed: when a whole node is cleaned up, every millisecond counts

        found = dict(json.loads(text))
    except (TypeError, ValueError, RecursionError) as error:
        warnings.append(f"{bundle}/options.json: {error}")
        return {}
    return {name: str(value) for name, value in found.items() if isinstance(value, str) or value is True}


def text_of(directory: str, name: str) -> str | None:
    """A small file's text; None where there is none: what else has that name is not waited for."""
    try:
        fd = posix.open(f"{directory}/{name}", posix.O_RDONLY | posix.O_NONBLOCK | posix.O_CLOEXEC)
    except OSError:
        return None
    text = read_all(fd) if posix.fstat(fd).st_mode >> 12 == 8 else None  # a regular file
    posix.close(fd)
    return None if text is None else text.decode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()).strip()


def init_pid(bundle: str, warnings: list[str]) -> int:
    """The init's pid; without a file the number that upstream's −1 becomes on the wire, and 0 where it says none."""
    text = text_of(bundle, "init.pid")
    if text and text.isascii() and text.isdecimal() and len(text) < 10:
        return int(text)
    warnings.append(f"{bundle}/init.pid holds no pid")
    return 4294967295 if text is None else 0


def unmount_rootfs(rootfs: str, deadline: float, warnings: list[str]) -> None:
    """Unmount everything at and below the rootfs, in a child, as an unmount may hang in the kernel."""
    import os

    rootfs = os.path.join(os.path.realpath(os.path.dirname(rootfs)), os.path.basename(rootfs))
    if not mount_points(rootfs):
        return
    child = os.fork()
    if child == 0:
        try:
            os._exit(unmount_all(rootfs))
        finally:
            os._exit(255)
    if not ends(child, deadline):
        warnings.append(f"failed to unmount {rootfs}: it did not end in time")
        os.kill(child, 9)
    elif failure := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        warnings.append(f"failed to unmount {rootfs}: {os.strerror(failure).lower()}")


def unmount_all(rootfs: str) -> int:
    """0, or the errno of a mount that stays; a busy one is detached, with what lies in it."""
    import ctypes

    umount2 = ctypes.CDLL(None, use_errno=True).umount2
    detach, no_follow, failure = 2, 8, 0
    for point in mount_points(rootfs):
        if umount2(point, no_follow) and umount2(point, no_follow | detach):
            failure = ctypes.get_errno()
    return failure if mount_points(rootfs) else 0


def mount_points(rootfs: str) -> list[bytes]:
    """The mount points at and below a path, the last mounted first; one that is mounted over appears as often."""
    found, top = [], rootfs.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            point = line.split(b" ")[4]
            for escaped in (rb"\040", rb"\011", rb"\012", rb"\043", rb"\134"):  # the backslash last
                point = point.replace(escaped, bytes([int(escaped[1:], 8)]))
            if point == top or point.startswith(top + b"/"):
                found.append(point)
    return found[::-1]


def delete_response(pid: int, exit_status: int) -> bytes:
    """containerd.task.v2.DeleteResponse: 1 pid, 2 exit_status, 3 exited_at {1 seconds, 2 nanos}."""
    import time

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    seconds, nanos = divmod(time.time_ns(), 1_000_000_000)
    exited_at = b"\x08" + varint(seconds) + (b"\x10" + varint(nanos) if nanos else b"")
    return b"\x08" + varint(pid) + b"\x10" + varint(exit_status) + b"\x1a" + varint(len(exited_at)) + exited_at


# --- end of the slow way ---

if __name__ == "__main__":
    main()
