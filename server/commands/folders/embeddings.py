"""Embeddings of pictures, in a file of numpy, safetensors or Parquet."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from server.commands.folders.results import Result, Results, Task
from server.commands.inputs import Row
from server.engine.execution.image_input import ImageInput
from server.engine.execution.image_output import ImageOutput
from server.engine.execution.runner import Runner
from server.errors import ConfigError
from server.system.files import replacing
from tome_core.schedule import Schedule

# Its readers refuse a longer header (`MAX_HEADER_SIZE` of the format).
_MAX_SAFETENSORS_HEADER = 100_000_000
_HEADER_WITHOUT_PATHS = 10_000  # more than it has
_SAFETENSORS_ALIGNMENT = 8  # bytes
_ROWS_TOGETHER = 4096


@dataclass(frozen=True)
class Embed(Task):
    """The pooled features of each picture, float32, as ``/embed`` gives them.

    Attributes:
        normalize: whether they are divided by their Euclidean norm.
    """

    output: Path
    normalize: bool

    def __post_init__(self) -> None:
        """Raise `ConfigError` if the suffix names no format, or its library is missing."""
        if self.output.suffix not in _WRITERS:
            raise ConfigError(f"{self.output} must end in {' or '.join(_WRITERS)}")
        if self.output.suffix == ".parquet":
            _import_pyarrow()

    def identity(self) -> dict[str, Any]:
        """See `Task.identity`."""
        return {"--normalize": self.normalize}

    def check_list(self, paths: list[str]) -> None:
        """See `Task.check_list`."""
        if self.output.suffix != ".safetensors":
            return
        if len(_paths_in_header(paths)) + _HEADER_WITHOUT_PATHS > _MAX_SAFETENSORS_HEADER:
            raise ConfigError(
                f"the paths of {len(paths):,} pictures do not fit in a safetensors file; name an"
                " .npy or .parquet file"
            )

    def check_model(self, runner: Runner) -> None:
        """Every model has features."""

    def ask(self, pixels: Row, schedule: Schedule) -> ImageInput:
        """See `Task.ask`."""
        return ImageInput(pixels, schedule, top_k=0, output_kind="features")

    def payload(self, answer: ImageOutput) -> bytes:
        """Return the little-endian float32 of the features."""
        features = np.frombuffer(answer.features, "<f4")
        if self.normalize:
            norm = np.linalg.norm(features.astype(np.float64))
            features = (features / max(norm, np.finfo(np.float32).tiny)).astype("<f4")
        return features.tobytes()

    def write(self, results: Results) -> str:
        """See `Task.write`."""
        _WRITERS[self.output.suffix](self.output, results, self.normalize)
        return f"{len(results):,} embeddings of {_size(results)}"


def _size(results: Results) -> int:
    """Return the D of the embeddings ``(n, D)``."""
    return results.payload_bytes // np.dtype("<f4").itemsize


def _write_numpy(output: Path, results: Results, normalize: bool) -> None:
    """Write an array ``float32 (n, D)``, and beside it its paths, one a line."""
    header = {
        "descr": "<f4",
        "fortran_order": False,
        "shape": (len(results), _size(results)),
    }
    # Neither file is replaced before both are written.
    with replacing(output.with_suffix(".paths.txt")) as names, replacing(output) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for result in results:
            file.write(result.payload)
            names.write(f"{result.path}\n".encode())


def _write_safetensors(output: Path, results: Results, normalize: bool) -> None:
    """Write a tensor ``embeddings``, with the paths as a JSON array among the metadata."""
    tensor = {
        "dtype": "F32",
        "shape": [len(results), _size(results)],
        "data_offsets": [0, len(results) * results.payload_bytes],
    }
    paths = json.dumps([result.path for result in results])
    metadata = _metadata(results, normalize) | {"paths": paths}
    header = json.dumps({"__metadata__": metadata, "embeddings": tensor}).encode()
    header += b" " * (-len(header) % _SAFETENSORS_ALIGNMENT)
    with replacing(output) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for result in results:
            file.write(result.payload)


def _paths_in_header(paths: list[str]) -> str:
    """Return the paths as they are in the header: a JSON array within JSON."""
    return json.dumps(json.dumps(paths))


def _write_parquet(output: Path, results: Results, normalize: bool) -> None:
    """Write the columns ``path`` and ``embedding``, a list of D float32."""
    arrow, parquet = _import_pyarrow()
    size = _size(results)
    schema = arrow.schema(
        [("path", arrow.string()), ("embedding", arrow.list_(arrow.float32(), size))],
        metadata=_metadata(results, normalize),
    )
    with replacing(output) as file, parquet.ParquetWriter(file, schema) as writer:
        for rows in _parts(results):
            embeddings = _array(rows, size)
            columns = [
                arrow.array([row.path for row in rows], arrow.string()),
                arrow.FixedSizeListArray.from_arrays(arrow.array(embeddings.ravel()), size),
            ]
            writer.write_table(arrow.table(columns, schema=schema))


def _parts(results: Results) -> Iterator[list[Result]]:
    remaining = iter(results)
    while rows := list(itertools.islice(remaining, _ROWS_TOGETHER)):
        yield rows


def _array(rows: list[Result], size: int) -> npt.NDArray[np.float32]:
    content = b"".join(row.payload for row in rows)
    return np.frombuffer(content, "<f4").reshape(len(rows), size)


def _metadata(results: Results, normalize: bool) -> dict[str, str]:
    return {"model": results.model, "r": results.r, "normalize": json.dumps(normalize)}


def _import_pyarrow() -> tuple[Any, Any]:
    with suppress(ImportError):
        import pyarrow
        import pyarrow.parquet

        return pyarrow, pyarrow.parquet
    raise ConfigError("a .parquet file needs pyarrow: pip install 'tome-serve[parquet]'")


_WRITERS: dict[str, Callable[[Path, Results, bool], None]] = {
    ".npy": _write_numpy,
    ".safetensors": _write_safetensors,
    ".parquet": _write_parquet,
}
