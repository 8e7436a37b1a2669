"""A v2 cgroup's numbers, by the rules of the Go shim (shim v2, §3.8).

A file of one number that is missing or holds none is 0, and `max` is 2**64 - 1; a file of keys and numbers that can not
be understood fails the call.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from dunnage.cgroups.files import (
    MAX_UINT64,
    BadFormat,
    huge_page_sizes,
    key_values,
    lines,
    number,
    rdma_entries,
    read,
    single,
    unsigned,
)
from dunnage.cgroups.paths import V2Cgroup
from dunnage.cgroups.stats_v1 import HUGEPAGES
from dunnage.cgroups.values import (
    IO,
    PSI,
    IOEntry,
    Pids,
    Pressure,
    Rdma,
    Stat,
    V2Cpu,
    V2Hugetlb,
    V2Memory,
    V2Metrics,
)
from dunnage.errors import Error

_DECIMAL = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")
_AVERAGES = ("avg10", "avg60", "avg300")
_IO_KEYS = IOEntry._fields[2:]


def read_v2(cgroup: V2Cgroup, *, log: logging.Logger, hugepages: str = HUGEPAGES) -> V2Metrics:
    """Every number of ``cgroup``; zeros when it is gone. Raises Error (BadFormat) where the call must fail."""
    return _Reader(cgroup.directory, log).metrics(huge_page_sizes(hugepages))


def parse_io(text: str) -> tuple[IOEntry, ...]:
    """``8:0 rbytes=1 wbytes=2 …`` on each line; one without a device is skipped, one with a bad number ends it."""
    entries: list[IOEntry] = []
    for line in text.split("\n"):
        device, *pairs = line.split(" ")
        numbers = device.split(":")
        if not pairs or len(numbers) != 2:
            continue
        try:
            major, minor = map(unsigned, numbers)
        except BadFormat:
            break  # as the Go shim
        entries.append(IOEntry(major, minor, **_io_values(pairs)))
    return tuple(entries)


def parse_pressure(text: str) -> PSI:
    """``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``, and ``full`` the same."""
    found: dict[str, Pressure] = {}
    for line in lines(text):
        kind, *pairs = line.split() or [""]
        if kind in PSI._fields:
            found[kind] = _pressure(pairs)
    return PSI(**found)


def _io_values(pairs: Sequence[str]) -> dict[str, int]:
    values = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key in _IO_KEYS:
            try:
                values[key] = unsigned(value)
            except BadFormat:
                continue  # as the Go shim
    return values


def _pressure(pairs: Sequence[str]) -> Pressure:
    averages: dict[str, float] = {}
    total = 0
    for pair in pairs:
        key, found, value = pair.partition("=")
        if not found:
            raise BadFormat(f"{pair!r} is not a key and its value")
        if key == "total":
            total = unsigned(value)
        elif key in _AVERAGES:
            if not _DECIMAL.fullmatch(value):
                raise BadFormat(f"{value!r} is not an average")
            averages[key] = float(value)
    return Pressure(**averages, total=total)


class _Reader:
    """Reads one cgroup's directory."""

    def __init__(self, directory: str, log: logging.Logger) -> None:
        self._directory = directory
        self._log = log

    def metrics(self, page_sizes: Sequence[str]) -> V2Metrics:
        return V2Metrics(
            pids=Pids(self._number("pids.current"), self._number("pids.max")),
            cpu=self._cpu(),
            memory=self._memory(),
            memory_events=self._stat("memory.events") or None,
            io=IO(parse_io(self._text("io.stat")), self._pressure("io.pressure")),
            rdma=Rdma(rdma_entries(self._text("rdma.current")), rdma_entries(self._text("rdma.max"))),
            hugetlb=tuple(self._hugetlb(size) for size in page_sizes),
        )

    def _cpu(self) -> V2Cpu:
        stat = self._stat("cpu.stat")
        return V2Cpu() if stat is None else V2Cpu(stat, self._pressure("cpu.pressure"))

    def _memory(self) -> V2Memory:
        stat = self._stat("memory.stat")
        if stat is None:
            return V2Memory()
        return V2Memory(
            stat,
            current=self._number("memory.current"),
            max=self._number("memory.max"),
            peak=self._number("memory.peak"),
            swap_current=self._number("memory.swap.current"),
            swap_max=self._number("memory.swap.max"),
            swap_peak=self._number("memory.swap.peak"),
            pressure=self._pressure("memory.pressure"),
        )

    def _hugetlb(self, size: str) -> V2Hugetlb:
        return V2Hugetlb(
            size,
            current=self._number(f"hugetlb.{size}.current"),
            max=self._number(f"hugetlb.{size}.max"),
            events_max=self._event(f"hugetlb.{size}.events", "max"),
        )

    def _stat(self, name: str) -> Stat | None:
        try:
            return key_values(name, read(self._directory, name))
        except FileNotFoundError:
            return None

    def _text(self, name: str) -> str:
        try:
            return read(self._directory, name)
        except (FileNotFoundError, Error):
            return ""  # these files are a bonus: none is as good as an empty one

    def _number(self, name: str) -> int:
        try:
            return single(read(self._directory, name), unlimited=MAX_UINT64)
        except FileNotFoundError:
            return 0
        except Error as error:
            self._log.warning("%s/%s: %s", self._directory, name, error)
            return 0

    def _event(self, name: str, key: str) -> int:
        for line in lines(self._text(name)):
            words = line.split()
            if len(words) == 2 and words[0] == key:
                try:
                    return number(words[1])
                except BadFormat as error:
                    self._log.warning("%s/%s: %s", self._directory, name, error)
                    return 0
        return 0

    def _pressure(self, name: str) -> PSI | None:
        try:
            return parse_pressure(read(self._directory, name))
        except FileNotFoundError:
            return None
        except BadFormat as error:
            self._log.warning("%s/%s: %s", self._directory, name, error)
            return None
        except Error:
            return None  # EOPNOTSUPP: pressure is switched off, for the host or for this cgroup
