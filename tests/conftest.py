"""Rules for every test: a real one leaves nothing behind, and no test is skipped unless the reason is one we accept."""

from __future__ import annotations

import os
import re
import signal
import uuid
from collections.abc import Generator, Iterator

import pytest
from tests import leaks

# Why a test may be skipped even where everything is installed. Any other skip fails under --no-skips (scripts/test).
ACCEPTED_SKIPS = {
    r"needs a host with cgroup v2 alone": "a host is either hybrid or unified; the other one runs elsewhere",
    r"needs a host with cgroup v1": "as above",
    r"needs CAP_SYS_RESOURCE": "some virtual machines withhold it even from root",
    r"needs systemd": "not every machine was booted by it",
    r"about dunnage alone": "asked for another shim with --shim-runtime",
}


def pytest_configure(config: pytest.Config) -> None:
    """What whoever runs the tests ignores (nohup, a shell's background job) is not to be ignored by all they run."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("dunnage")
    group.addoption("--no-skips", action="store_true", help="a skip whose reason is not an accepted one is a failure")
    group.addoption("--shared-host", action="store_true", help="others run containers here too: see tests/leaks.py")
    group.addoption(
        "--shim-runtime",
        default="io.containerd.dunnage.v2",
        help="the runtime that the tests with containerd ask for (io.containerd.runc.v2: the Go shim)",
    )
    group.addoption("--containerd", default="containerd", help="the containerd to test with; ctr is taken beside it")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("no_skips"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not any(re.search(accepted, reason) for accepted in ACCEPTED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{reason}: not among the accepted reasons (tests/conftest.py)"
    return report


@pytest.fixture(scope="session")
def session_mark() -> Iterator[str]:
    """Every process a test starts inherits it, so that leaks are told from what others do on the host."""
    mark = uuid.uuid4().hex
    os.environ[leaks.SESSION] = mark
    yield mark
    del os.environ[leaks.SESSION]


@pytest.fixture(scope="session")
def top_cgroups() -> frozenset[str]:
    return leaks.top_level_cgroups()


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test marked ``real`` fails if, 5 s after its end, anything is on the host that was not there before."""
    if request.node.get_closest_marker("real") is None:
        yield
        return
    mark = request.getfixturevalue("session_mark")
    top = request.getfixturevalue("top_cgroups")
    base = request.getfixturevalue("tmp_path_factory").getbasetemp()

    shared = request.config.getoption("shared_host")

    def take() -> leaks.Snapshot:
        return leaks.Snapshot.take(session=mark, base=base, top_cgroups=top, shared=shared)

    before = take()
    yield
    left = leaks.wait_until_nothing_is_left(before, take)
    if left:
        pytest.fail("left behind:\n" + "\n".join(left), pytrace=False)
