"""Every Vision Transformer that timm registers is exact or refused; there is no third state.

`python -m tests.tome_core.registry` checks all of them and writes docs/models.md;
`test_registry.py` checks a sample.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.progress import track
from timm.models._registry import _model_to_module

from tome_core import UnsupportedModelError, patch
from tome_core.adapters import adapt

# timm's modules of Vision Transformers: models that keep one sequence of patch tokens through all
# blocks, and those close enough to them that a user might try.
MODULES = (
    "beit", "cait", "deit", "eva", "hiera", "naflexvit", "swin_transformer", "swin_transformer_v2",
    "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "volo",
    "xcit",
)  # fmt: skip
TABLE = Path(__file__).parents[2] / "docs" / "models.md"
R: list[int] = [0, 3, 1]


@dataclass(frozen=True)
class Verdict:
    """``refusal`` is the core's sentence, empty for a model that is exact."""

    name: str
    kind: str
    refusal: str = ""


def names() -> list[str]:
    """The registered models of `MODULES`."""
    return [name for name in timm.list_models() if _model_to_module[name] in MODULES]


def sample(rows: Iterable[Verdict]) -> list[str]:
    """What the tests check of the models in the table: every 12th, and the first of each class and
    verdict.
    """
    everyone = list(rows)
    first = {(row.kind, row.refusal): row.name for row in reversed(everyone)}
    return sorted({*(row.name for row in everyone[::12]), *first.values()})


def read_table() -> list[Verdict]:
    """The verdicts that docs/models.md gives."""
    rows = (
        line.strip("| ").split(" | ")
        for line in TABLE.read_text("utf-8").splitlines()
        if line.startswith("| `")
    )
    return [
        Verdict(name.strip("`"), kind, "" if says == "exact" else says) for name, kind, says in rows
    ]


def judge(name: str) -> Verdict:
    """Refused by name, or exact. Raises `AssertionError` on anything else."""
    with torch.device("meta"):  # no memory: enough to be refused
        shape = timm.create_model(name)
    kind = type(shape).__name__
    try:
        adapt(shape)
    except UnsupportedModelError as error:
        return Verdict(name, kind, str(error))
    vit = create_small(name, shape)
    generator = torch.Generator().manual_seed(0)
    for parameter in vit.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    check(vit.double().eval(), generator)
    return Verdict(name, kind)


def create_small(name: str, shape: Any) -> Any:
    """``name`` with two narrow blocks and few patches, or as narrow as its own options allow."""
    errors = []
    for options in variations(shape):
        try:
            vit = timm.create_model(name, num_classes=5, **options)
            with torch.no_grad():
                vit(torch.zeros(2, vit.in_chans, *vit.patch_embed.img_size))
            if vit.patch_embed.num_patches >= 9:
                return vit
        except (AssertionError, RuntimeError, TypeError) as error:
            errors.append(error)
    raise AssertionError(f"{name} cannot be created small: {errors}")


def variations(shape: Any) -> Iterator[dict[str, Any]]:
    """Arguments to try, smallest first."""
    patch_size = shape.patch_embed.patch_size[0]
    for size in (4 * patch_size, 64, 224):
        for width in ({"embed_dim": 64, "num_heads": 4}, {}):
            yield {"depth": 2, "img_size": size, **width}
            yield {"depth": 2, "img_size": size, **width, "num_kv_heads": (4, 2)}


def check(vit: Any, generator: torch.Generator) -> None:
    """Exact at r=0; finite, right counts, and mixed = single images at r>0."""
    model = patch(vit)
    size = (vit.in_chans, *vit.patch_embed.img_size)
    images = torch.randn(len(R), *size, dtype=torch.float64, generator=generator)
    with torch.no_grad():
        assert_close(model(images), vit(images))
        mixed = model(images, r=R)
        assert mixed.isfinite().all()
        assert_close(mixed, torch.cat([model(images[i : i + 1], r=r) for i, r in enumerate(R)]))
        tokens = model.input_tokens(images)
        trace = model.trace(images, r=3)
        assert_close(trace.logits, torch.cat([model(image[None], r=3) for image in images]))
    assert trace.tokens[0].shape[0] == model.token_counts(3, tokens)[-1] < tokens
    assert all(int(sizes.sum()) == tokens for sizes in trace.sizes)


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal to 1e-9 of the largest number."""
    torch.testing.assert_close(
        actual, expected, rtol=0, atol=1e-9 * max(1.0, float(expected.abs().max()))
    )


def write_table(verdicts: list[Verdict]) -> None:
    """docs/models.md."""
    counts = Counter(bool(verdict.refusal) for verdict in verdicts)
    lines = [
        "# Models",
        "",
        (
            f"Generated by `make coverage-models` with timm {timm.__version__}. Of {len(verdicts)}"
            " Vision Transformers"
        ),
        (
            f"that timm registers, {counts[False]} are exact and {counts[True]} are refused with"
            " the sentence given here."
        ),
        (
            "Exact means, in float64 on a small copy with random weights: r=0 equals timm to 1e-9,"
            " and with merging a"
        ),
        "batch of one `r` or of several equals its images one by one.",
        "",
        (
            f"`make test` checks {len(sample(verdicts))} of them: every 12th, and the first of each"
            " class and verdict."
        ),
        (
            "Oracles that are written in loops, for each kind of block, position and pool, check"
            " what merging gives."
        ),
        "",
        "| model | class | |",
        "| --- | --- | --- |",
        *(
            f"| `{v.name}` | {v.kind} | {v.refusal.replace('|', '/') or 'exact'} |"
            for v in verdicts
        ),
    ]
    TABLE.write_text("\n".join(lines) + "\n", "utf-8")


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(
        prog="python -m tests.tome_core.registry", description=__doc__
    ).parse_args()
    verdicts = [judge(name) for name in track(names(), "models")]
    write_table(verdicts)
    exact = sum(not verdict.refusal for verdict in verdicts)
    print(f"{exact} exact, {len(verdicts) - exact} refused: {TABLE}")  # noqa: T201
