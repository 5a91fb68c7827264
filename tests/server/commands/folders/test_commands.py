"""`embed` and `classify` of a folder or a list, against tome_core, and after a SIGKILL."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import timm
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file

import tome_core
from server.commands.folders import embeddings, run
from server.commands.folders.working_file import WorkingFile
from server.commands.inputs import read_inputs
from server.media.transforms import ImageTransform
from tests.server.commands.conftest import Run
from tests.server.conftest import ROOT
from tests.server.engine.tiny import ARGUMENTS, write_tiny

R = "4:-0.5"
TRANSFORM = ImageTransform((3, 32, 32), "bilinear", 1.0, "center")
BROKEN = {
    "broken.jpg": "the image is corrupt or truncated",
    "empty.png": "it is empty",
    "notes.png": "the body is not an image of a supported format",
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen pictures, and those of `BROKEN`."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(24):
        path = folder / f"{'in/' if number % 3 else ''}{number:02}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(exist_ok=True)
        shape = (40 + number, 50, 3)
        Image.fromarray(random.integers(0, 256, shape, np.uint8)).save(path)
    (folder / "broken.jpg").write_bytes((folder / "03.jpg").read_bytes()[:300])
    (folder / "empty.png").touch()
    (folder / "notes.png").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def expected(config: Path, pictures: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The pooled features of each picture by tome_core alone, in the order of the output."""
    vit = timm.create_model("vit_tiny_patch16_224", **ARGUMENTS)
    vit.load_state_dict(load_file(config.parent / "tiny.safetensors"))
    network = tome_core.patch(vit.eval())
    features = {}
    for path in sorted(map(str, pictures.rglob("*.*"))):
        if os.path.basename(path) not in BROKEN:
            pixels = read_inputs(Path(path).read_bytes(), TRANSFORM).rows[0]
            image = (torch.from_numpy(pixels)[None] / 255 - 0.5) / 0.25
            with torch.inference_mode():
                outputs = network.outputs(image, r=tome_core.Schedule.parse(R))
            features[path] = outputs.features[0].numpy()
    assert len(features) == 24
    return features


Command = tuple[str, ...]


def command(name: str, source: Path, output: Path, config: Path, *flags: str) -> Command:
    options = ("-r", R, "--config", str(config), "--dtype", "float32", "--batch", "5")
    return (name, str(source), "-o", str(output), *options, *flags)


def read_numpy(output: Path) -> tuple[list[str], npt.NDArray[Any]]:
    return output.with_suffix(".paths.txt").read_text("utf-8").splitlines(), np.load(output)


def read_safetensors(output: Path) -> tuple[list[str], npt.NDArray[Any]]:
    with safe_open(output, "np") as file:
        metadata = file.metadata()
        assert {key: metadata[key] for key in ("model", "r")} == {"model": "tiny", "r": R}
        return json.loads(metadata["paths"]), file.get_tensor("embeddings")


def read_parquet(output: Path) -> tuple[list[str], npt.NDArray[Any]]:
    table = parquet.read_table(output)
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[32]"
    return table["path"].to_pylist(), np.array(table["embedding"].to_pylist(), np.float32)


FORMATS = {".npy": read_numpy, ".safetensors": read_safetensors, ".parquet": read_parquet}


def check_close(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> None:
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("suffix", FORMATS)
def test_embeddings_are_those_of_tome_core(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    pictures: Path,
    expected: dict[str, npt.NDArray[np.float32]],
    suffix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings, "_ROWS_TOGETHER", 7)
    output = tmp_path / f"features{suffix}"
    result = tome_serve(*command("embed", pictures, output, config))
    assert result.returncode == 0
    assert result.stdout == f"{output}: 24 embeddings of 32, r={R}; 3 files failed\n"
    paths, found = FORMATS[suffix](output)
    assert paths == list(expected)
    check_close(found, np.stack(list(expected.values())))
    failures = tmp_path / f"features{suffix}.failed.csv"
    with failures.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(pictures / name) for name in sorted(BROKEN)]
    for row in rows:
        assert BROKEN[os.path.basename(row["path"])] in row["reason"]
        assert f"tome-serve: {row['path']}: {row['reason']}" in result.stderr
    assert f"3 files failed; {failures} lists them" in result.stderr
    expected_files = {output, failures} | set(tmp_path.glob("*.paths.txt"))
    assert set(tmp_path.iterdir()) == expected_files


def test_a_list_is_embedded_in_its_order_and_normalised(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    expected: dict[str, npt.NDArray[np.float32]],
) -> None:
    names = list(expected)[8:2:-1]
    source = tmp_path / "list.txt"
    source.write_text("\n".join(names))
    output = tmp_path / "features.npy"
    old_failures = tmp_path / "features.npy.failed.csv"
    old_failures.touch()
    result = tome_serve(*command("embed", source, output, config, "--normalize"))
    assert (result.returncode, old_failures.exists()) == (0, False)
    paths, found = read_numpy(output)
    assert paths == names
    wanted = np.stack([expected[name] / np.linalg.norm(expected[name]) for name in names])
    check_close(found, wanted)


def test_labels_are_those_of_classify_for_each_file(
    tome_serve: Run, tmp_path: Path, config: Path, pictures: Path
) -> None:
    output = tmp_path / "labels.csv"
    result = tome_serve(*command("classify", pictures, output, config, "--top", "2"))
    assert result.stdout == f"{output}: the labels of 24 pictures, r={R}; 3 files failed\n"
    with output.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "label", "score", "label_2", "score_2", "r"]
    single = tome_serve(
        "classify", *(row[0] for row in rows[1:]), "--json", "-r", R, "--top-k", "2",
        "--config", str(config), "--dtype", "float32",
    )  # fmt: skip
    for row, line in zip(rows[1:], single.stdout.splitlines(), strict=True):
        answer = json.loads(line)
        first, second = answer["predictions"]
        assert row == [
            answer["file"],
            first["label"],
            row[2],
            second["label"],
            row[4],
            R,
        ]
        assert [float(row[2]), float(row[4])] == pytest.approx(
            [first["score"], second["score"]], abs=1e-5
        )


def test_without_one_picture_nothing_is_written(
    tome_serve: Run, tmp_path: Path, config: Path, pictures: Path
) -> None:
    source = tmp_path / "list.txt"
    source.write_text(f"{pictures}/notes.png\n{pictures}/none.png\n")
    output = tmp_path / "features.npy"
    result = tome_serve(*command("embed", source, output, config))
    assert result.returncode == 1
    assert result.stdout == f"no picture could be read; {output} is not written\n"
    failures = (tmp_path / "features.npy.failed.csv").read_text()
    assert "none.png,cannot be read: No such file" in failures
    assert not output.exists()
    assert not output.with_name("features.npy.partial").exists()


def test_after_ctrl_c_the_same_command_goes_on_and_another_is_refused(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    pictures: Path,
    expected: dict[str, npt.NDArray[np.float32]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "features.npy"
    output.write_bytes(b"old")
    partial = tmp_path / "features.npy.partial"
    append = WorkingFile.append

    def interrupted(self: WorkingFile, records: Any) -> None:
        append(self, records)
        if self.done == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(WorkingFile, "append", interrupted)
        result = tome_serve(*command("embed", pictures, output, config))
    assert result.returncode == 130
    assert f"interrupted; {partial} keeps 10 of 27 pictures: the same command" in result.stderr
    assert output.read_bytes() == b"old"
    kept = partial.read_bytes()
    changed = {
        "--normalize (it was False, now it is True)": ("--normalize",),
        "r (it was 4:-0.5, now it is 8)": ("-r", "8"),
        "the list of files": ("--no-recursive",),
    }
    for difference, flags in changed.items():
        refused = tome_serve(*command("embed", pictures, output, config, *flags))
        assert refused.returncode == 1
        assert f"from which this one differs: {difference}. " in refused.stderr
        assert "--fresh" in refused.stderr
    weights = config.parent / "tiny.safetensors"
    status = weights.stat()
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    refused = tome_serve(*command("embed", pictures, output, config))
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "differs: weights (it was " in refused.stderr
    assert partial.read_bytes() == kept
    result = tome_serve(*command("embed", pictures, output, config))
    assert f"going on from {partial}; --fresh starts again" in result.stderr
    assert "running 17 of 27 pictures in batches of 5" in result.stderr
    paths, found = read_numpy(output)
    assert paths == list(expected)
    check_close(found, np.stack(list(expected.values())))
    assert not partial.exists()


def test_after_sigkill_every_file_is_there_exactly_once(
    tmp_path: Path,
    config: Path,
    expected: dict[str, npt.NDArray[np.float32]],
) -> None:
    large = tmp_path / "large.png"  # takes long enough to be interrupted
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500, 3), np.uint8)
    Image.fromarray(noise).save(large, compress_level=1)
    names = [*list(expected)[:12], *[str(large)] * 30, *list(expected)[12:]]
    source = tmp_path / "list.txt"
    source.write_text("\n".join(names))
    output = tmp_path / "features.npy"
    partial = tmp_path / "features.npy.partial"
    arguments = command("embed", source, output, config, "--threads", "1", "--decode-threads", "1")
    process = [sys.executable, "-m", "server", *arguments, "--batch", "2"]
    with subprocess.Popen(process, cwd=ROOT, stderr=subprocess.DEVNULL) as running:
        wait_for_bytes(partial, 2500, running)
        running.send_signal(signal.SIGKILL)
    assert not output.exists()
    resumed = subprocess.run(process, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"going on from {partial}" in resumed.stderr
    assert f"of {len(names)} pictures in batches of 2" in resumed.stderr
    paths, found = read_numpy(output)
    assert paths == names
    of_large = found[12]
    wanted = [expected.get(name, of_large) for name in names]
    check_close(found, np.stack(wanted))
    assert not partial.exists()


def wait_for_bytes(path: Path, size: int, running: subprocess.Popen[bytes]) -> None:
    """Wait until a file has ``size`` bytes, while a process runs that writes it."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_size < size:
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("embed", "examples"), "name the file to write: -o features.npy"),
        (("embed", "examples", "-o", "a.txt"), "a.txt must end in .npy or .safetensors or .parq"),
        (("embed", "examples", "-o", "none/a.npy"), "there is no folder none"),
        (("embed", "none", "-o", "{folder}/a.npy"), "cannot read none: No such file"),
        (("embed", "examples", "-o", "{folder}/a.npy", "-r", "fast"), "'fast' is not a schedule"),
        (("classify", "examples", "-o", "a.npy"), "a.npy must end in .csv"),
        (("classify", "examples"), "examples is a folder; -o labels.csv classifies its pictures"),
        (("classify", "a", "b", "-o", "a.csv"), "-o takes one folder, or one text file"),
        (("classify", "examples", "-o", "a.csv", "--json"), "--json is for single files"),
    ],
)
def test_mistakes_say_what_to_do(
    tome_serve: Run, tmp_path: Path, arguments: Command, reason: str
) -> None:
    result = tome_serve(*(argument.format(folder=tmp_path) for argument in arguments))
    assert result.returncode == 1
    assert reason in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_more_paths_than_a_safetensors_header_can_have_are_refused(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embeddings, "_MAX_SAFETENSORS_HEADER", 10_500)
    output = tmp_path / "features.safetensors"
    result = tome_serve(*command("embed", pictures, output, config))
    assert "27 pictures do not fit in a safetensors file; name an .npy or" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_many_failures_are_listed_in_the_file_alone(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(run, "_FAILURES_PRINTED", 1)
    output = tmp_path / "labels.csv"
    result = tome_serve(*command("classify", pictures, output, config))
    assert f"{pictures}/broken.jpg: " in result.stderr
    assert f"{pictures}/empty.png: " not in result.stderr
    assert (tmp_path / "labels.csv.failed.csv").read_text().count("\n") == 4


@pytest.mark.parametrize(
    ("name", "source", "output"),
    [
        ("embed", "features.paths.txt", "features.npy"),
        ("embed", "features.npy.failed.csv", "features.npy"),
        ("classify", "labels.csv", "labels.csv"),
    ],
)
def test_a_list_is_not_written_over(
    tome_serve: Run, tmp_path: Path, config: Path, name: str, source: str, output: str
) -> None:
    path = tmp_path / source
    path.write_text("a.png\n")
    result = tome_serve(*command(name, path, tmp_path / output, config))
    assert result.returncode == 1
    assert f"{path} would be written over; name another output than" in result.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_where_an_array_cannot_be_written_the_old_paths_stay(
    tome_serve: Run,
    tmp_path: Path,
    config: Path,
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "features.npy"
    names = tmp_path / "features.paths.txt"
    names.write_text("old")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(np.lib.format, "write_array_header_1_0", refuse)
        result = tome_serve(*command("embed", pictures, output, config))
    assert result.returncode == 1
    assert f"cannot write {output}: No space left on device" in result.stderr
    assert names.read_text() == "old"
    assert tome_serve(*command("embed", pictures, output, config)).returncode == 0
    assert len(read_numpy(output)[0]) == 24
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.partial"))
