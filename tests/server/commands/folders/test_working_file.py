"""The working file keeps whole records, whatever was cut off, and refuses another run."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from pathlib import Path

import pytest

from server.commands.folders.working_file import Record, WorkingFile
from server.errors import ConfigError

IDENTITY = {"r": "8", "the list of files": [3, "abc"]}
RECORDS = [Record(b"first..."), Record(b"", "it is empty"), Record(b"third..\0")]
CONDITIONS = {"dtype": "float32"}


def write(path: Path, records: list[Record]) -> None:
    file = WorkingFile(path, IDENTITY)
    file.begin(8, CONDITIONS)
    file.append(records[:1])
    file.append(records[1:])
    file.close()


def test_records_are_read_again_and_more_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, RECORDS)
    file = WorkingFile(path, IDENTITY)
    assert (file.done, file.failed, file.conditions) == (3, 1, CONDITIONS)
    file.begin(8, {"dtype": "bfloat16"})
    assert file.conditions == CONDITIONS
    file.append([Record(b"fourth..")])
    assert list(file.read()) == [*RECORDS, Record(b"fourth..")]
    file.remove()
    assert list(tmp_path.iterdir()) == []


def test_wherever_it_is_cut_whole_records_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, [])
    header = path.stat().st_size
    path.unlink()
    write(path, RECORDS)
    content = path.read_bytes()
    size = (len(content) - header) // len(RECORDS)
    # Within the first line, after it, and within and after each record.
    for cut in (0, 5, header - 1, header, *range(header + 1, len(content) + 1, size // 2)):
        path.write_bytes(content[:cut])
        file = WorkingFile(path, IDENTITY)
        whole = max(0, cut - header) // size
        assert file.done == whole
        file.begin(8, CONDITIONS)
        file.append(RECORDS[whole:])
        assert list(file.read()) == RECORDS
        file.close()
        assert path.read_bytes() == content


def test_a_record_that_did_not_reach_the_disk_and_all_after_it_are_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, RECORDS)
    content = path.read_bytes()
    start = content.index(b"it is empty")
    path.write_bytes(content[:start] + bytes(11) + content[start + 11 :])
    file = WorkingFile(path, IDENTITY)
    assert list(file.read()) == RECORDS[:1]
    file.close()


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_an_error_that_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file"
    file = WorkingFile(path, IDENTITY, clock=itertools.count(step=10).__next__)
    file.begin(8, CONDITIONS)
    file.append(RECORDS[:1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "fsync":
        monkeypatch.setattr(os, "fsync", refuse)
    else:  # in the middle of the record
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(ConfigError, match=r"cannot write .*; the same command goes on"):
            file.append(RECORDS[1:2])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    file.close()
    file = WorkingFile(path, IDENTITY)
    written = 1 if call == "write" else 2
    assert list(file.read()) == RECORDS[:written]
    file.close()


def test_a_long_reason_is_cut(tmp_path: Path) -> None:
    file = WorkingFile(tmp_path / "file", IDENTITY)
    file.begin(8, CONDITIONS)
    file.append([Record(b"", "x" + "ä" * 1000)])
    (record,) = file.read()
    assert record.reason == "x" + "ä" * 99
    file.close()


def test_another_run_is_refused_and_what_differs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, RECORDS)
    content = path.read_bytes()
    with pytest.raises(ConfigError, match=r"differs: r \(it was 8, now it is 16\)\. .*--fresh"):
        WorkingFile(path, IDENTITY | {"r": "16"})
    with pytest.raises(ConfigError, match=r"differs: the list of files\. "):
        WorkingFile(path, IDENTITY | {"the list of files": [3, "abd"]})
    assert path.read_bytes() == content
    file = WorkingFile(path, IDENTITY | {"r": "16"}, fresh=True)
    assert path.read_bytes() == content  # until something takes its place
    file.begin(4, CONDITIONS)
    assert file.done == 0
    file.close()


@pytest.mark.parametrize("content", [b"someone's notes", b'{"format": "other"}\n', b"\0" * 99])
def test_a_file_of_someone_else_is_not_touched(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not what an interrupted command leaves"):
        WorkingFile(path, IDENTITY)
    assert path.read_bytes() == content


def test_two_runs_at_once_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    first = WorkingFile(path, IDENTITY)
    first.begin(8, CONDITIONS)
    for fresh in (False, True):
        with pytest.raises(ConfigError, match="another command is writing"):
            WorkingFile(path, IDENTITY, fresh=fresh).begin(8, CONDITIONS)
    first.close()
    WorkingFile(path, IDENTITY).close()
