"""Where stdout goes when it is no fifo: log files, regular files, and log drivers, each with and without a terminal."""

from __future__ import annotations

from typing import Any, Final

from dunnage.conformance.case import Area, Difference
from dunnage.conformance.check import contains, equal, refused, that, wait_until
from dunnage.conformance.scene import Scene, Status, Task
from dunnage.ttrpc.errors import RpcError

AREA: Final = Area("stdio schemes")
BOTH: Final = ("sh", "-c", "echo out; echo err >&2")
DRIVER: Final = """#!/bin/sh
trap '' TERM
env >{place}/env
printf '%s\\n' "$@" >{place}/arguments
cat <&3 >{place}/out 5>&- &
cat <&4 >{place}/err 5>&- &
{ready}
wait
echo done >{place}/end
"""
READY: Final = "exec 5>&-"
READY_BYTE: Final = "printf x >&5; exec 5>&-"


class Driver:
    """A log driver that writes what it is given into files of its own, and ends when both have come to their end."""

    def __init__(self, scene: Scene, ready: str = READY) -> None:
        self.place = scene.directory / "driver"
        self.place.mkdir()
        self.path = self.place / "log-driver"
        self.path.write_text(DRIVER.format(place=self.place, ready=ready))
        self.path.chmod(0o755)

    def uri(self, query: str = "", scheme: str = "binary") -> str:
        return f"{scheme}://{self.path}{query}"

    def text(self, name: str) -> str:
        path = self.place / name
        return path.read_text() if path.exists() else ""


async def lived(scene: Scene, stdout: str, *args: str, stderr: str | None = None, terminal: bool = False) -> Task:
    """A container with that stdout, over and deleted."""
    task = await scene.task(scene.bundle(args or BOTH, terminal=terminal))
    fields: dict[str, Any] = {"stdout": stdout, "terminal": terminal}
    if not terminal:
        fields["stderr"] = stdout if stderr is None else stderr
    await task.create(**fields)
    await task.call("Start")
    await task.call("Wait")
    await task.call("Delete")
    return task


LOST_END: Final = Difference(
    "go *",
    "stdout's end closes the file under stderr, whose last bytes are lost now and then",
    "the case",
    "containerd issue 3118, of which io.go has kept a half: stdout's copier gets the file and not the counter",
    always=False,
)


@AREA.case("file:// takes stdout and stderr, makes its directory, and appends", LOST_END)
async def to_file(scene: Scene) -> None:
    path = scene.directory / "logs" / "deep" / "c1.log"
    await lived(scene, f"file://{path}")
    equal("its lines", sorted(path.read_bytes().splitlines()), [b"err", b"out"])


@AREA.case("file:// of a file that is there keeps what it has")
async def appends(scene: Scene) -> None:
    path = scene.directory / "c1.log"
    path.write_text("before\n")
    await lived(scene, f"file://{path}", "sh", "-c", "echo out")
    equal("it", path.read_text(), "before\nout\n")


@AREA.case("file:// makes a file that all may read and its owner write")
async def file_mode(scene: Scene) -> None:
    path = scene.directory / "c1.log"
    await lived(scene, f"file://{path}", "sh", "-c", "echo out")
    equal("its mode", path.stat().st_mode & 0o777, 0o644)


@AREA.case("file:// of stdout takes stderr too, whatever stderr says", LOST_END)
async def only_stdout_counts(scene: Scene) -> None:
    path, other = scene.directory / "c1.log", scene.directory / "other.log"
    await lived(scene, f"file://{path}", "sh", "-c", "echo err >&2", stderr=f"file://{other}")
    that(not other.exists(), "there is no file of stderr's name")
    equal("stdout's", path.read_text(), "err\n")


@AREA.case("an exec may have a file:// of its own")
async def exec_to_file(scene: Scene) -> None:
    task = await scene.running()
    path = scene.directory / "e1.log"
    await task.exec_with("e1", ("sh", "-c", "echo out; exit 4"), stdout=f"file://{path}", stderr=f"file://{path}")
    await task.call("Start", exec_id="e1")
    equal("the exit status", (await task.call("Wait", exec_id="e1")).exit_status, 4)
    await task.call("Delete", exec_id="e1")
    equal("it", path.read_text(), "out\n")


@AREA.case("file:// with a terminal is refused, and nothing is left")
async def file_terminal(scene: Scene) -> None:
    task = await scene.task(scene.bundle(terminal=True))
    path = scene.directory / "c1.log"
    await refused(task.create(stdout=f"file://{path}", terminal=True), "failed to start console copy: …")
    await refused(task.call("State"), "container not created: not found")


@AREA.case("a regular file is appended to")
async def regular(scene: Scene) -> None:
    out, err = scene.directory / "out", scene.directory / "err"
    out.write_text("before\n")
    err.write_text("")
    await lived(scene, str(out), stderr=str(err))
    equal("stdout's", out.read_text(), "before\nout\n")
    equal("stderr's", err.read_text(), "err\n")


@AREA.case("one regular file may be stdout and stderr", LOST_END)
async def one_regular(scene: Scene) -> None:
    path = scene.directory / "both"
    path.write_text("")
    await lived(scene, str(path))
    equal("its lines", sorted(path.read_text().splitlines()), ["err", "out"])


@AREA.case("a path that is not there is refused, and nothing is left")
async def no_path(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await refused(task.create(stdout="/no/such/fifo", stderr="/no/such/fifo"), "failed to start io pipe copy: …")
    await refused(task.call("State"), "container not created: not found")


@AREA.case("a terminal without stdout is refused, and nothing is left")
async def no_terminal_stdout(scene: Scene) -> None:
    task = await scene.task(scene.bundle(terminal=True))
    await refused(task.create(terminal=True), "failed to start console copy: …")


@AREA.case("a scheme that nobody knows is refused by name")
async def unknown_scheme(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await refused(
        task.create(stdout="carrier-pigeon:///x"),
        "failed to create init process I/O: unknown STDIO scheme carrier-pigeon…",
    )


@AREA.case("an exec with a scheme that nobody knows fails its Start, and the container goes on")
async def unknown_exec_scheme(scene: Scene) -> None:
    task = await scene.running()
    await task.exec_with("e1", ("true",), stdout="carrier-pigeon:///x")
    await refused(task.call("Start", exec_id="e1"), "…")
    equal("the container's status", await task.status(), Status.RUNNING)


@AREA.case("binary:// gets stdout and stderr, each to its end")
async def driver(scene: Scene) -> None:
    driver = Driver(scene)
    await lived(scene, driver.uri())
    await wait_until(lambda: driver.text("end"), "the driver has come to its end")
    equal("what it got", (driver.text("out"), driver.text("err")), ("out\n", "err\n"))


@AREA.case("binary:// is told the container and the namespace, and nothing else of the environment")
async def driver_environment(scene: Scene) -> None:
    driver = Driver(scene)
    await lived(scene, driver.uri())
    lines = [
        line for line in driver.text("env").splitlines() if not line.startswith(("PWD=", "SHLVL=", "_=", "OLDPWD="))
    ]
    equal("its environment", sorted(lines), ["CONTAINER_ID=c1", f"CONTAINER_NAMESPACE={scene.namespace}"])


@AREA.case("binary:// gets a query's key and value as two arguments")
async def driver_arguments(scene: Scene) -> None:
    driver = Driver(scene)
    await lived(scene, driver.uri("?tag=a%20b"))
    equal("its arguments", driver.text("arguments"), "tag\na b\n")


@AREA.case("binary:// is ready when it says so with a byte")
async def driver_byte(scene: Scene) -> None:
    driver = Driver(scene, READY_BYTE)
    await lived(scene, driver.uri())
    await wait_until(lambda: driver.text("out") == "out\n", "it got stdout")


@AREA.case("binary:// of an exec is told the exec's id")
async def exec_driver(scene: Scene) -> None:
    task = await scene.running()
    driver = Driver(scene)
    await task.exec_with("e1", BOTH, stdout=driver.uri(), stderr=driver.uri())
    await task.call("Start", exec_id="e1")
    await task.call("Wait", exec_id="e1")
    await task.call("Delete", exec_id="e1")
    contains("its environment", driver.text("env"), "CONTAINER_ID=e1\n")
    await wait_until(lambda: driver.text("out") == "out\n", "it got stdout")


@AREA.case("binary:// with a terminal gets what the terminal shows")
async def driver_terminal(scene: Scene) -> None:
    driver = Driver(scene)
    await lived(scene, driver.uri(), "sh", "-c", "tty; echo last", terminal=True)
    await wait_until(lambda: "last" in driver.text("out"), "it got the last line")
    contains("what it got", driver.text("out"), "/dev/pts/")


@AREA.case("binary:// that is not there is refused, and nothing is left")
async def no_driver(scene: Scene) -> None:
    task = await scene.task(scene.bundle())
    await refused(
        task.create(stdout="binary:///no/such/driver", stderr="binary:///no/such/driver"),
        "failed to create init process I/O: …",
    )
    await refused(task.call("State"), "container not created: not found")


@AREA.case("a log driver that ends with its container delays Delete by no more than it takes")
async def driver_is_quick(scene: Scene) -> None:
    driver = Driver(scene)
    task = await scene.task(scene.bundle(BOTH))
    await task.create(stdout=driver.uri(), stderr=driver.uri())
    await task.call("Start")
    await task.call("Wait")
    await task.call("Delete", timeout_s=8)


@AREA.case("binary-v2:// that ends without saying that it is ready is refused, by a shim that knows the scheme")
async def driver_v2_crash(scene: Scene) -> None:
    driver = Driver(scene, "exit 1")
    task = await scene.task(scene.bundle())
    uri = driver.uri(scheme="binary-v2")
    error = await refused(task.create(stdout=uri, stderr=uri), "failed to create init process I/O: …")
    if "unknown STDIO scheme" not in error.message:
        contains("the error", error.message, "logging binary did not call ready")


@AREA.case("binary-v2:// that says that it is ready gets stdout and stderr, of a shim that knows the scheme")
async def driver_v2(scene: Scene) -> None:
    driver = Driver(scene, READY_BYTE)
    try:
        await lived(scene, driver.uri(scheme="binary-v2"))
    except RpcError as error:
        contains("the error", error.message, "unknown STDIO scheme binary-v2")
        return
    await wait_until(lambda: driver.text("out") == "out\n", "it got stdout")
