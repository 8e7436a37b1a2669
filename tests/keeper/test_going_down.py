"""When is the machine going down (docs/decisions/keeper-sigterm.md)? Asked with a ``/run`` of the question's own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from tests.keeper.conftest import ROOT

pytestmark = pytest.mark.real

SCHEDULED = "mkdir /run/systemd/shutdown; echo MODE=reboot > /run/systemd/shutdown/scheduled; echo USEC={usec} >> "
FILE = "/run/systemd/shutdown/scheduled"


@pytest.mark.parametrize(
    ("run", "going_down"),
    [
        ("true", False),
        ("mkdir -p /run/systemd/system", False),
        ("touch /run/nologin", False),  # an administrator's, where there is no systemd
        ("mkdir -p /run/systemd/system; touch /run/nologin", True),
        ("mkdir -p /run/systemd/system; touch /run/nologin; " + SCHEDULED.format(usec=1) + FILE, True),
        ("mkdir -p /run/systemd/system; touch /run/nologin; " + SCHEDULED.format(usec=9 * 10**15) + FILE, False),
    ],
)
def test_the_machine_goes_down_when_systemd_says_so_and_no_later_moment_is_set(run: str, going_down: bool) -> None:
    ask = "from dunnage.keeper.main import is_machine_going_down as ask; print(ask())"
    script = f'mount -t tmpfs none /run && {{ {run}; }} && exec "$@"'
    answer = subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", sys.executable, "-c", ask],
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == str(going_down), answer.stderr
