"""What an unfinished run has found so far, in a file to which records are only appended.

The first line is JSON: what the run depends on, and the size of a record. Then follows one record
for each picture, in the order of the list: so the number of whole records is the number of pictures
that are done. A record has a checksum. What is not whole, because the process was killed or the
machine lost power while it was written, is cut off when the run goes on.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from server.errors import ConfigError

_FORMAT = "tome-serve folder 1"
_HEADER_START = f'{{"format": "{_FORMAT}"'.encode()
# A killed process loses nothing that it has written. So many seconds may be lost with the power.
SYNC_SECONDS = 2.0
# Of the payload of a record: the reason why a picture failed has to fit, shortened if need be.
_LEAST_PAYLOAD_BYTES = 200
_READ_TOGETHER = 1024
_OK, _FAILED = 1, 2


class Record(NamedTuple):
    """What was found for one picture.

    Attributes:
        payload: the result; empty if there is none.
        reason: why there is no result; else empty.
    """

    payload: bytes
    reason: str = ""


class WorkingFile:
    """The working file of a run, locked while it is open.

    Args:
        path: of the file.
        identity: all that the results depend on, by names for people; its values are JSON.
        fresh: whether to forget what the file has.
        clock: returns seconds.

    Attributes:
        conditions: of the run that began it, once `begin` was called; empty before.
        payload_bytes: of each result, from then on.
        done: the number of records.
        failed: the number of those that have a reason.

    Raises:
        ConfigError: the file has results of a run with another identity, is no working file, is in
            use, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        *,
        fresh: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = path
        self.conditions: dict[str, Any] = {}
        self.done = 0
        self.failed = 0
        self._identity = identity
        self._clock = clock
        self._synced = clock()
        self._header_bytes = 0
        self._record_type = np.dtype([])
        self.payload_bytes = 0
        self._file: FileIO | None = None
        if path.exists() and not fresh:
            try:
                self._open("r+b")
                self._read_header()
            except ConfigError:
                self.close()
                raise

    def begin(self, payload_bytes: int, conditions: dict[str, Any]) -> None:
        """Write the first line, unless the file has one.

        Args:
            payload_bytes: of the result for a picture.
            conditions: to keep for a run that goes on.

        Raises:
            ConfigError: the file cannot be written, or its records have another size.
        """
        if self.conditions:
            if self.payload_bytes != payload_bytes:
                raise ConfigError(f"{self.path} has other results; --fresh starts again")
            return
        if self._file is None:
            self._open("a+b")  # which does not empty it before it is locked
        self._opened.truncate(0)
        self._opened.seek(0)
        header = {
            "format": _FORMAT,
            "identity": self._identity,
            "payload_bytes": payload_bytes,
            "conditions": conditions,
        }
        self._write(json.dumps(header).encode() + b"\n")
        self._read_header()

    def append(self, records: Sequence[Record]) -> None:
        """Append records of the next pictures, in their order.

        Raises:
            ConfigError: the disk is full. What was written before is kept.
        """
        rows = np.zeros(len(records), self._record_type)
        for row, record in zip(rows, records, strict=True):
            payload = record.payload
            row["kind"] = _OK
            if record.reason:
                row["kind"] = _FAILED
                # An incomplete character at the cut is left out when it is read.
                payload = record.reason.encode(errors="replace")[: self._payload_capacity]
                self.failed += 1
            row["payload"] = np.void(payload.ljust(self._payload_capacity, b"\0"))
            row["index"] = self.done
            row["checksum"] = zlib.crc32(row.tobytes()[:-4])
            self.done += 1
        self._write(rows.tobytes())

    def read(self) -> Iterator[Record]:
        """Yield all records, in the order of the pictures."""
        for rows in self._chunks():
            for row in rows:
                yield self._parse(row)

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file; it stays."""
        if self._file is not None:
            self._file.close()

    @property
    def _opened(self) -> FileIO:
        assert self._file is not None, "nothing began"
        return self._file

    @property
    def _payload_capacity(self) -> int:
        return max(self.payload_bytes, _LEAST_PAYLOAD_BYTES)

    def _open(self, mode: Literal["r+b", "a+b"]) -> None:
        try:
            self._file = self.path.open(mode, buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise ConfigError(f"another command is writing {self.path}; wait for its end") from None
        except OSError as error:
            raise ConfigError(f"cannot write {self.path}: {error.strerror or error}") from error

    def _write(self, content: bytes) -> None:
        remaining = memoryview(content)
        try:
            # A write may stop in the middle, at the end of the disk. Then the next one raises.
            while remaining:
                remaining = remaining[self._opened.write(remaining) :]
            # A network drive may say only now that it is full.
            if self._clock() - self._synced >= SYNC_SECONDS:
                os.fsync(self._opened.fileno())
                self._synced = self._clock()
        except OSError as error:
            raise ConfigError(
                f"cannot write {self.path}: {error.strerror or error}; the same command goes on"
            ) from error

    def _read_header(self) -> None:
        """Read the first line and count the records; a file without a first line has none."""
        with os.fdopen(os.dup(self._opened.fileno()), "rb") as file:
            file.seek(0)
            line = file.readline()
        if not line.endswith(b"\n") and line.startswith(_HEADER_START[: len(line)]):
            return  # empty, or the machine lost power
        header = _parse_header(line)
        if header is None:
            raise ConfigError(
                f"{self.path} is not what an interrupted command leaves; move it, or replace it"
                " with --fresh"
            )
        _check_identity(self.path, header["identity"], self._identity)
        self.conditions = header["conditions"]
        self.payload_bytes = header["payload_bytes"]
        self._header_bytes = len(line)
        # The checksum comes last, over all that is before it.
        self._record_type = np.dtype(
            [
                ("index", "<u8"),
                ("kind", "<u4"),
                ("payload", f"V{self._payload_capacity}"),
                ("checksum", "<u4"),
            ]
        )
        self._count_records()

    def _count_records(self) -> None:
        """Count the records that are whole, and cut off what follows them."""
        self.done = 0
        self.failed = 0
        for row in self._whole_rows():
            self.done += 1
            self.failed += int(row["kind"] == _FAILED)
        end = self._header_bytes + self.done * self._record_type.itemsize
        self._opened.truncate(end)
        self._opened.seek(end)

    def _whole_rows(self) -> Iterator[np.void]:
        """Yield rows up to the first that is not as it was written."""
        index = 0
        for rows in self._chunks():
            for row in rows:
                if row["index"] != index or row["checksum"] != zlib.crc32(row.tobytes()[:-4]):
                    return
                yield row
                index += 1

    def _chunks(self) -> Iterator[npt.NDArray[np.void]]:
        """Yield all rows that have their full length, some at a time."""
        size = self._record_type.itemsize
        position = self._header_bytes
        while content := os.pread(self._opened.fileno(), size * _READ_TOGETHER, position):
            whole = len(content) // size
            if not whole:
                return
            yield np.frombuffer(content, self._record_type, whole)
            position += whole * size

    def _parse(self, row: np.void) -> Record:
        payload = row["payload"].tobytes()
        if row["kind"] == _FAILED:
            return Record(b"", payload.rstrip(b"\0").decode(errors="ignore"))
        return Record(payload[: self.payload_bytes])


def _parse_header(line: bytes) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
        if line.endswith(b"\n") and header["format"] == _FORMAT:
            return dict(header)
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _check_identity(path: Path, begun: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise `ConfigError` where two runs differ, naming what does."""
    names = sorted(begun.keys() | asked.keys())
    changed = [name for name in names if begun.get(name) != asked.get(name)]
    if not changed:
        return
    differences = ", ".join(_difference(name, begun.get(name), asked.get(name)) for name in changed)
    raise ConfigError(
        f"{path} has results of an interrupted run from which this one differs: {differences}. Give"
        " the command as it was, or forget these results with --fresh"
    )


def _difference(name: str, begun: Any, asked: Any) -> str:
    if isinstance(begun, str | int) and isinstance(asked, str | int):
        return f"{name} (it was {begun}, now it is {asked})"
    return name
