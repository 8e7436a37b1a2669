from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunnage.cgroups import files, stats_v1, stats_v2
from dunnage.cgroups.files import MAX_UINT32, MAX_UINT64, BadFormat
from dunnage.cgroups.values import RdmaEntry
from dunnage.errors import Error

# near misses are likelier to find something than any text is
TEXTS = st.text() | st.text(alphabet="0123456789-+ :=.\n\tmaxsomefullavgTotalhca_handle٣²", max_size=60)


@pytest.mark.parametrize(
    "parse",
    [
        lambda text: files.unsigned(text),
        lambda text: files.number(text),
        lambda text: files.single(text, unlimited=0),
        lambda text: files.key_values("memory.stat", text),
        lambda text: files.rdma_entries(text),
        lambda text: stats_v1.parse_blkio("blkio.x", text, {}),
        lambda text: stats_v1.parse_partitions(text),
        lambda text: stats_v1.parse_cpuacct(text, text, text, ticks_per_s=100),
        lambda text: stats_v2.parse_io(text),
        lambda text: stats_v2.parse_pressure(text),
    ],
)
@given(text=TEXTS)
def test_any_text_gives_a_value_or_a_named_error(parse: object, text: str) -> None:
    assert callable(parse)
    try:
        value = parse(text)
    except BadFormat:
        return
    assert value is not None


@given(st.integers(min_value=0, max_value=MAX_UINT64))
def test_every_number_the_kernel_can_write_is_read(value: int) -> None:
    assert files.single(f"{value}\n", unlimited=0) == value


@given(st.dictionaries(st.text("abcdefgh_.", min_size=1), st.integers(0, MAX_UINT64)))
def test_keys_and_numbers_come_back_as_they_were_written(values: dict[str, int]) -> None:
    assert files.key_values("x", "".join(f"{key} {value}\n" for key, value in values.items())) == values


@pytest.mark.parametrize("text", ["", "x", "+1", "1_0", "0x1", "١", "-", "--1", str(MAX_UINT64 + 1), "9" * 10_000])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(BadFormat, match=r"is not a number from 0 to"):
        files.number(text)


@pytest.mark.parametrize("text", ["-1", "-9223372036854775808", "-99999999999999999999999"])
def test_a_negative_number_is_zero(text: str) -> None:
    assert files.number(text) == 0


def test_leading_zeros_do_not_count_as_digits() -> None:
    assert files.number("0" * 100 + "7") == 7


def test_the_word_max_is_what_the_caller_says() -> None:
    assert files.single(" max\n", unlimited=5) == 5


def test_a_bad_line_is_named() -> None:
    with pytest.raises(BadFormat, match=r"^memory.stat line 2: 'b' is not a key and a number$"):
        files.key_values("memory.stat", "a 1\nb\n")
    with pytest.raises(BadFormat, match=r"^memory.stat line 1: 'x' is not a number"):
        files.key_values("memory.stat", "a x\n")


def test_rdma_takes_max_for_the_largest_and_skips_other_lines() -> None:
    text = "mlx4_0 hca_handle=2 hca_object=max\nbroken\n\nocrdma1 hca_handle=x hca_object=7\n"
    assert files.rdma_entries(text) == (RdmaEntry("mlx4_0", 2, MAX_UINT32), RdmaEntry("ocrdma1", 0, 7))


def test_huge_page_sizes_are_named_as_in_the_files(tmp_path: Path) -> None:
    for name in ("hugepages-64kB", "hugepages-2048kB", "hugepages-1048576kB", "hugepages-16777216kB", "other"):
        (tmp_path / name).mkdir()
    assert sorted(files.huge_page_sizes(str(tmp_path))) == ["16GB", "1GB", "2MB", "64KB"]
    assert files.huge_page_sizes(f"{tmp_path}/none") == ()


def test_a_file_that_can_not_be_read_is_an_error_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "memory.stat").mkdir()
    with pytest.raises(Error, match=rf"^read {tmp_path}/memory.stat: Is a directory$"):
        files.read(str(tmp_path), "memory.stat")
    with pytest.raises(FileNotFoundError):
        files.read(f"{tmp_path}/gone", "memory.stat")
