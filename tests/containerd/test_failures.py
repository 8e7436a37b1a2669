"""Where who has containerd finds the whole story of a failure: in containerd's log, and with `dunnage inspect`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.containerd.harness import Containerd, wait_until

pytestmark = [pytest.mark.real, pytest.mark.usefixtures("dunnage_alone")]


@pytest.mark.parametrize("shim", ["runc"], indirect=True)
def test_a_failure_s_story_is_in_containerd_s_log_and_in_inspect(containerd: Containerd) -> None:
    name = f"c-{containerd.mark[:8]}"  # of all containers of the machine
    containerd.run_detached(name, "sleep", "1000")
    try:
        said = containerd.exec(name, "nope").stderr.decode()
        sentence = "OCI runtime exec failed: exec failed: unable to start container process: "
        assert f'{sentence}exec: "nope": executable file not found in $PATH' in said
        hint = "hint: nope is in no directory of the PATH that the process has in the container"

        def is_logged() -> bool:
            lines = [line for line in containerd.log.read_text().splitlines() if hint in line]
            return any(
                "start of exec e failed at runtime exec: " in line and "exit status 255" in line for line in lines
            )

        wait_until(is_logged, "the story is in containerd's log")
        inspect = [sys.executable, "-m", "dunnage.cli.main", "inspect", name]
        shown = json.loads(subprocess.run(inspect, capture_output=True, check=True, timeout=30).stdout)
        assert (shown["id"], shown["namespace"], shown["status"]) == (name, containerd.namespace, "running")
        (story,) = shown["failures"]
        assert (story["call"], story["exec_id"], story["step"]) == ("start", "e", "runtime exec")
        assert story["hint"] in hint
        assert story["records"][-1]["msg"] in said
    finally:
        containerd.remove(name)
