"""Where ``scripts/newer`` keeps what is newer than this Debian; ``scripts/test`` has it fetched."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".cache/newer"
CRIU = FOLDER / "criu/bin"
"""To be put in front of the PATH: the runtimes look for criu there."""
CONTAINERD = FOLDER / "containerd/bin"
