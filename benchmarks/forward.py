"""Runs the cases: builds every contender, compares their answers, and times them in turns."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import tome_core
from benchmarks.bound import Gemm, bound_seconds, fastest_gemm, gemms, model_macs
from benchmarks.cases import DTYPES, Case, Setup
from benchmarks.contenders import Contender, Forward, Ours
from benchmarks.measure import Plan, alternate
from benchmarks.results import Result, Run

# Less than this at r=0, and a contender computes something else. bfloat16 gives 0.999 and more.
MIN_SIMILARITY = 0.98


class DifferentAnswer(Exception):
    """A contender's logits at r=0 are not those of the timm model."""


@dataclass(frozen=True)
class Entry:
    """One contender at one r: what is timed, and what is known of it beforehand."""

    contender: str
    r: str
    macs: int
    similarity: float
    run: Callable[[], object]


@dataclass
class Bench:
    """A run in progress.

    Attributes:
        say: takes each line that the user should see at once.
        on_turn: called after each timed turn.
    """

    run: Run
    contenders: Sequence[Contender]
    device: torch.device
    threads: int
    plan: Plan
    say: Callable[[str], object]
    on_turn: Callable[[], object] = lambda: None

    def measure(self, cases: Iterable[Case]) -> Iterator[Case]:
        """Measure all ``cases`` into ``run``; gives each one back when it is done."""
        present = [one for one in self.contenders if not self._skip(one, one.missing(self.device))]
        chosen: dict[str, Gemm] = {}
        for case in cases:
            if case.dtype not in chosen:
                self.say(f"looking for the fastest {case.dtype} matrix product")
                chosen[case.dtype] = gemm = fastest_gemm(
                    gemms(DTYPES[case.dtype], self.device), self.synchronize
                )
                self.run.gemms[case.dtype] = gemm.name
            with torch.inference_mode():
                self.run.results += self._case(
                    case, [one for one in present if case.dtype in one.dtypes], chosen
                )
            gc.collect()
            yield case

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _skip(self, contender: Contender, reason: str | None) -> bool:
        if reason is not None:
            line = f"{contender.name} is skipped: {reason}"
            self.run.skipped.append(line)
            self.say(line)
        return reason is not None

    def _case(
        self, case: Case, present: Sequence[Contender], chosen: dict[str, Gemm]
    ) -> list[Result]:
        torch.manual_seed(0)
        # Built outside inference mode, which would mark the weights as unfit for what compilers do
        # with them.
        with torch.inference_mode(False):
            vit = timm.create_model(case.model.timm).eval().requires_grad_(False).to(self.device)
            setup = Setup(vit, case, self.device, self.threads)
            images = torch.randn(setup.shape, device=self.device)
            reference = tome_core.patch(vit)
        entries = []
        for contender in present:
            self.say(f"{case}: preparing {contender.name}")
            try:
                with torch.inference_mode(False):
                    forward = contender.build(setup)
                entries += list(_entries(contender, forward, case, images, reference))
            except (
                Exception
            ) as error:  # a peer that cannot run this case must not end the others' run
                if contender.name == "ours":
                    raise
                self._skip(contender, f"in {case}: {_first_line(error)}")
        gemm = chosen[case.dtype]
        self.say(f"{case}: measuring")
        times = alternate(
            [gemm.run, *(entry.run for entry in entries)], self.plan, self.synchronize, self.on_turn
        )
        rate = gemm.flops / statistics.median(times[0])
        return [
            Result.of(
                seconds,
                model=case.model.timm,
                dtype=case.dtype,
                batch=case.batch,
                contender=entry.contender,
                r=entry.r,
                bound_seconds=bound_seconds(entry.macs, rate),
                gflop=2 * entry.macs / 1e9,
                similarity=entry.similarity,
            )
            for entry, seconds in zip(entries, times[1:], strict=True)
        ]


def levels(contender: Contender, case: Case) -> dict[str, int | list[int]]:
    """What a contender runs at, by name: r=0 alone if it cannot merge, and mixed r if it can."""
    if not contender.merges:
        return {"0": 0}
    if not (isinstance(contender, Ours) and case.mixed):
        return {str(r): r for r in case.r}
    return {**{str(r): r for r in sorted({*case.r, *case.mixed})}, "mixed": case.mixed_r}


def _entries(
    contender: Contender,
    forward: Forward,
    case: Case,
    images: Tensor,
    reference: tome_core.MergedViT,
) -> Iterator[Entry]:
    """One for each r, each called once already. Raises `DifferentAnswer`."""
    tokens = reference.input_tokens(images)
    for name, r in levels(contender, case).items():
        each = r if isinstance(r, list) else [r] * case.batch
        # A copy, since some of the compiled return the same buffer again; the first image is enough
        # for a look.
        logits = torch.as_tensor(forward(images, r))[:1].float().clone()
        similarity = F.cosine_similarity(logits, reference(images[:1], r=each[0])).item()
        if name == "0" and not similarity >= MIN_SIMILARITY:
            raise DifferentAnswer(
                f"its logits at r=0 are not the timm model's (cosine {similarity:.3f})"
            )
        yield Entry(
            contender.name,
            name,
            model_macs(reference, tokens, each),
            similarity,
            partial(forward, images, r),
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
