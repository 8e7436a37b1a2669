"""``python -m dunnage.conformance --shim PATH [--shim PATH…]``: the table, and status 0 if nothing is unexplained."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dunnage.conformance.bundle import BusyboxIsMissing
from dunnage.conformance.case import Case
from dunnage.conformance.cases import all_cases
from dunnage.conformance.check import Failed
from dunnage.conformance.play import play_all
from dunnage.conformance.shim import Shim
from dunnage.conformance.table import Mark, Outcome, lines


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    cases = chosen(all_cases(), options.case)
    if not cases:
        print(f"no case fits {', '.join(options.case)}", file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(case.title for case in cases))
        return 0
    if not options.shim:
        print("which shim? --shim PATH", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("only root can make containers", file=sys.stderr)
        return 2
    try:
        return asyncio.run(_run([_binary(name) for name in options.shim], cases, options.runtime, options.verbose))
    except (BusyboxIsMissing, FileNotFoundError, PermissionError, Failed) as error:
        print(error, file=sys.stderr)
        return 2


def chosen(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Those whose area, name or title fits one of the patterns; all without a pattern."""
    if not patterns:
        return list(cases)
    return [
        case
        for case in cases
        if any(fnmatchcase(text, pattern) for text in (case.area, case.name, case.title) for pattern in patterns)
    ]


async def _run(paths: Sequence[Path], cases: Sequence[Case], runtime: str, verbose: bool) -> int:
    results: dict[str, dict[str, Outcome]] = {}

    def told(case: Case, outcome: Outcome) -> None:
        if verbose:
            print(f"{outcome.mark.value} {outcome.took_s:5.2f} s  {case.title}  {outcome.why}", file=sys.stderr)

    for path in paths:
        shim = await Shim.at(path)
        name = shim.description
        if name in results:
            name = f"{name} ({path})"
        results[name] = await play_all(shim, cases, runtime=runtime, told=told)
    print("\n".join(lines(cases, list(results), results)))
    if any(all(outcome.mark is Mark.UNPLAYED for outcome in of.values()) for of in results.values()):
        print("no case was played", file=sys.stderr)
        return 2
    return 0 if all(outcome.mark.is_good for of in results.values() for outcome in of.values()) else 1


def _binary(name: str) -> Path:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"there is no program {name}")
    return Path(found).absolute()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dunnage.conformance", description=__doc__)
    parser.add_argument("--shim", action="append", default=[], metavar="PATH", help="a shim's binary; may be repeated")
    parser.add_argument("--runtime", default="runc", metavar="NAME", help="the OCI runtime the shims are to use")
    parser.add_argument(
        *("-k", "--case"),
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases whose area, name or title fits it, as in 'stdio*'; may be repeated",
    )
    parser.add_argument("--list", action="store_true", help="print the cases and play none")
    parser.add_argument("-v", "--verbose", action="store_true", help="say of every case at once what came of it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
