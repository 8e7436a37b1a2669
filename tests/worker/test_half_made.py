"""The same half-made bundles as in tests/launcher/test_half_made.py, where a worker answers that knows none of them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.launcher.test_half_made import CASES, PID_UNKNOWN, RUNTIME, WHOLE, Outcome, Spoil, fifo
from tests.worker.house import open_house

from dunnage.api import task_pb2

pytestmark = pytest.mark.real


def test_a_worker_deletes_what_the_launcher_would(directory: Path, rootfs: Path) -> None:
    stub = directory / "runc"
    stub.write_text(RUNTIME)
    stub.chmod(0o755)
    cases: dict[str, tuple[Spoil, Outcome]] = {
        wrong: (spoil, expected) for wrong, (spoil, _, expected) in CASES.items()
    }
    for name in ("options.json", "runtime", "init.pid"):
        cases[f"{name} is a fifo"] = fifo(name), PID_UNKNOWN if name == "init.pid" else WHOLE
    found: dict[str, Outcome | str] = {}

    async def whole() -> None:
        async with asyncio.timeout(60), open_house(directory, rootfs) as house:
            for wrong, (spoil, _) in cases.items():
                bundle = house.bundle("c1")
                bundle.mkdir()
                (directory / "called").unlink(missing_ok=True)
                for name, content in {"options.json": "{}", "runtime": "", "init.pid": "4711"}.items():
                    (bundle / name).write_text(content)
                spoil(bundle)
                env = {**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"}
                answer = await house.launch("delete", "c1", env=env)
                words = (directory / "called").read_text().splitlines() if (directory / "called").exists() else []
                deleted = (words[words.index("--root") + 1], words[-1]) if words else None
                pid = task_pb2.DeleteResponse.FromString(answer.stdout).pid if answer.stdout else None
                found[wrong] = Outcome(answer.status, pid, deleted) if not answer.stderr else answer.stderr.decode()
                bundle.rename(directory / f"was {len(found)}")

    asyncio.run(whole())
    assert found == {wrong: expected for wrong, (_, expected) in cases.items()}
