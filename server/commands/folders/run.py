"""Runs a model over all pictures of a folder or a list, and goes on where it was interrupted."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from server.catalog.entries import ModelSpec
from server.commands.console import make_progress
from server.commands.flags import FolderSettings
from server.commands.folders.decoding import ParallelDecoder, Picture
from server.commands.folders.listing import digest_paths, list_pictures
from server.commands.folders.results import Results, Task
from server.commands.folders.working_file import Record, WorkingFile
from server.commands.offline import (
    label_set_versions,
    load_runner,
    parse_schedule,
    pick_model,
)
from server.engine.device.placement import pick_device
from server.engine.execution.in_flight import BatchInFlight
from server.engine.execution.runner import Runner
from server.engine.loading.model_loader import find_checkpoint
from server.errors import ConfigError
from server.hardware import usable_cores
from server.logs import log_step
from server.media.transforms import ImageTransform
from server.settings import VERSION
from server.system.files import check_writable, replacing
from tome_core.schedule import Schedule

log = logging.getLogger("tome.server")

_CPU_BATCH = 32
_GPU_BATCH = 128
# Pictures that are decoded before they are needed, as a multiple of a batch.
_BATCHES_AHEAD = 2
_FAILURES_PRINTED = 20


def run_folder(settings: FolderSettings, source: Path, task: Task, text: str = "") -> int:
    """Compute and write the results for all pictures of ``source``; return the exit code.

    It is 1 if no picture has a result, else 0.

    Args:
        settings: how.
        source: a folder, or a text file with one path a line.
        task: what.
        text: see `pick_model`.

    Raises:
        ConfigError: a setting or file is wrong, or an interrupted run differs from this one.
        KeyboardInterrupt: what was found so far is kept, and the log says so.
    """
    output = task.output
    check_writable(output)
    _check_source(source, output)
    spec = pick_model(settings, settings.model, text=text)
    paths = list_pictures(source, recursive=settings.recursive)
    task.check_list(paths)
    working_file = WorkingFile(
        output.with_name(f"{output.name}.partial"),
        _identity(settings, spec, paths, task),
        fresh=settings.fresh,
    )
    try:
        results = _run(settings, spec, paths, task, working_file)
        return _finish(task, results, working_file)
    except KeyboardInterrupt:
        if working_file.done:
            log.warning(
                "interrupted; %s keeps %s of %s pictures: the same command goes on from there,"
                " with --fresh it starts again",
                working_file.path,
                f"{working_file.done:,}",
                f"{len(paths):,}",
            )
        raise
    finally:
        working_file.close()


def _check_source(source: Path, output: Path) -> None:
    """Check that a list is not written over: those of an earlier run are lists as well."""
    written = [output, output.with_suffix(".paths.txt"), _failures_file(output)]
    if source.resolve() in [path.resolve() for path in written]:
        raise ConfigError(f"{source} would be written over; name another output than {output}")


def _failures_file(output: Path) -> Path:
    return output.with_name(f"{output.name}.failed.csv")


def _identity(
    settings: FolderSettings, spec: ModelSpec, paths: list[str], task: Task
) -> dict[str, Any]:
    """Return all that the results depend on, by names for people."""
    checkpoint = find_checkpoint(spec)
    weights = ""
    if checkpoint is not None:
        stat = checkpoint.stat()
        weights = f"{checkpoint}, {stat.st_size} bytes of {stat.st_mtime_ns}"
    entry = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return {
        "version of tome-serve": VERSION,
        "model": spec.name,
        "the model's entry": [hashlib.sha256(entry.encode()).hexdigest()],
        "weights": weights,
        "the label sets": label_set_versions(spec),
        "r": settings.r,
        "--device": str(pick_device(settings.device)),
        "--dtype": settings.dtype,
        "--cpu-isa": settings.cpu_isa,
        "the list of files": [len(paths), digest_paths(paths)],
        **task.identity(),
    }


def _run(
    settings: FolderSettings,
    spec: ModelSpec,
    paths: list[str],
    task: Task,
    working_file: WorkingFile,
) -> Results:
    """Compute what ``working_file`` does not have, and return all results."""
    conditions = working_file.conditions
    if conditions:
        log.info("going on from %s; --fresh starts again", working_file.path)
        # `auto` chooses by measuring, and could choose another one now.
        settings = settings.model_copy(update={"dtype": conditions["dtype"]})
    runner = load_runner(settings, spec)
    transform = runner.model.transform
    if not isinstance(transform, ImageTransform):
        noun = transform.modality.noun
        raise ConfigError(f"{spec.name} takes {noun}s; folders and lists are for pictures")
    task.check_model(runner)
    schedule = parse_schedule(runner, settings.r)
    blank = np.zeros(transform.size, transform.dtype)
    (answer,) = runner.run([task.ask(blank, schedule)])
    working_file.begin(len(task.payload(answer)), {"dtype": runner.dtype})
    on_gpu = runner.device.type != "cpu"
    batch = settings.batch or (_GPU_BATCH if on_gpu else _CPU_BATCH)
    cores = usable_cores()
    decoder = ParallelDecoder(
        transform,
        settings.decode_threads or cores,
        _BATCHES_AHEAD * batch,
        # Threads that decode would take cores from a model that computes on all of them, and each
        # of its steps would wait for the slowest core.
        pauses=not on_gpu and torch.get_num_threads() >= cores,
    )
    remaining = len(paths) - working_file.done
    with log_step(log, f"running {remaining:,} of {len(paths):,} pictures in batches of {batch}"):
        _Pass(runner, schedule, task, working_file, decoder, batch).run(paths)
    return Results(runner, schedule, paths, working_file)


@dataclass
class _Launched:
    """A batch on the device, and the pictures in whose order its records are written.

    Attributes:
        pictures: of the list, with those among them that cannot be decoded.
        in_flight: None if all of them cannot.
    """

    pictures: list[Picture]
    in_flight: BatchInFlight | None


@dataclass
class _Pass:
    """One pass over the pictures that have no record yet."""

    runner: Runner
    schedule: Schedule
    task: Task
    working_file: WorkingFile
    decoder: ParallelDecoder
    batch: int

    def run(self, paths: list[str]) -> None:
        """Append a record for each picture.

        Raises:
            ConfigError: the device has too little memory, or the working file cannot be written.
        """
        launched: _Launched | None = None
        with self.decoder, make_progress() as progress:
            bar = progress.add_task("pictures", total=len(paths), completed=self.working_file.done)
            decoded = self.decoder.decode(paths[self.working_file.done :])
            try:
                for pictures in self._batches(decoded):
                    following = self._launch(pictures)
                    # A GPU computes the next batch while the results of this one are written.
                    self._collect(launched)
                    progress.update(bar, completed=self.working_file.done)
                    launched = following
                self._collect(launched)
            except torch.OutOfMemoryError as error:
                raise ConfigError(
                    f"a batch of {self.batch} does not fit in the device's memory; name a smaller"
                    " --batch: the same command goes on with it"
                ) from error

    def _batches(self, decoded: Iterator[Picture]) -> Iterator[list[Picture]]:
        """Yield as many pictures as a batch has, or fewer in the last; some may be undecodable."""
        while pictures := list(itertools.islice(decoded, self.batch)):
            yield pictures

    def _launch(self, pictures: list[Picture]) -> _Launched:
        inputs = [
            self.task.ask(picture.pixels, self.schedule)
            for picture in pictures
            if picture.pixels is not None
        ]
        if not inputs:
            return _Launched(pictures, None)
        with self.decoder.paused():
            return _Launched(pictures, self.runner.launch(inputs))

    def _collect(self, launched: _Launched | None) -> None:
        if launched is None:
            return
        answers = iter(launched.in_flight.collect() if launched.in_flight is not None else ())
        records = []
        for picture in launched.pictures:
            if picture.pixels is None:
                records.append(Record(b"", picture.reason))
                continue
            answer = next(answers)
            if answer.finite:
                records.append(Record(self.task.payload(answer)))
            else:
                records.append(Record(b"", "the model's output is not finite"))
        self.working_file.append(records)


def _finish(task: Task, results: Results, working_file: WorkingFile) -> int:
    """Write the output and the list of failures, remove the working file, return the exit code."""
    failed = working_file.failed
    failures = _failures_file(task.output)
    if failed:
        _write_failures(failures, results)
        _print_failures(failures, results, failed)
    else:
        failures.unlink(missing_ok=True)  # of an earlier run
    if not len(results):
        working_file.remove()
        print(f"no picture could be read; {task.output} is not written")
        return 1
    print(f"{task.output}: {task.write(results)}, r={results.r}; {failed:,} files failed")
    working_file.remove()
    return 0


def _write_failures(path: Path, results: Results) -> None:
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows(results.failures())
        text.detach()


def _print_failures(path: Path, results: Results, count: int) -> None:
    shown: Sequence[tuple[str, str]] = list(itertools.islice(results.failures(), _FAILURES_PRINTED))
    for name, reason in shown:
        line = f"tome-serve: {name}: {reason}"
        print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)
    print(f"tome-serve: {count:,} files failed; {path} lists them", file=sys.stderr)
