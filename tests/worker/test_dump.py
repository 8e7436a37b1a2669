"""The lines of a dump, where no worker is needed to have them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dunnage.worker.dump import dump


def test_no_path_of_a_stream_is_told_by_a_call_that_a_former_worker_began() -> None:
    calls = {7: "open:/logs/secret\n", 8: "read:/etc/secret", 9: "runtime:default/c1:start"}
    host = SimpleNamespace(inherited_calls=calls, unseen={9})
    worker: Any = SimpleNamespace(host=host, notes=SimpleNamespace(pending=lambda: ()))
    said = list(dump(worker, None))
    assert [line for line in said if line.startswith("inherited")] == [
        "inherited call open, process 7",
        "inherited call read, process 8",
        "inherited call runtime:default/c1:start, process 9",
        "inherited process 9 that nobody has watched yet",
    ]
