"""Every Vision Transformer that timm registers is exact or refused; there is no third state.

`python -m tests.tome_core.registry` checks all of them and writes docs/models.json and models.md;
`test_registry.py` checks a sample.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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
    "beit",
    "cait",
    "deit",
    "eva",
    "hiera",
    "naflexvit",
    "swin_transformer",
    "swin_transformer_v2",
    "vision_transformer",
    "vision_transformer_hybrid",
    "vision_transformer_relpos",
    "vision_transformer_sam",
    "volo",
    "xcit",
)
DOCS = Path(__file__).parents[2] / "docs"
VERDICTS = DOCS / "models.json"
TABLE = DOCS / "models.md"
# What a family's merged tokens keep, beside the paper's rules.
HOW_MERGED = {
    "VisionTransformer": "class and register tokens are protected; pooling is weighted by size",
    "VisionTransformerDistilled": "class and distillation tokens are protected",
    "Eva": "a merged token keeps the rotary position of its destination",
    "Beit": "a merged token keeps the relative position of its destination",
    "VisionTransformerRelPos": "a merged token keeps the relative position of its destination",
}
# Networks of `tome_core.networks`: their names, and the same.
BESIDE_TIMM = {
    "Audio Spectrogram Transformer": (
        "ast_*",
        "class and distillation tokens are protected",
    ),
    "VideoMAE, MAE-ST, ViViT": (
        "video_vit_*",
        "tubelets merge within frames and across time; pooling is weighted by size",
    ),
    "V-JEPA 2": (
        "vjepa2_*",
        "a merged token keeps the rotary position, in time and space, of its destination, and"
        " counts by its size in every attention of the pooler",
    ),
}
PAGE = """# Models

<!-- Written by `make coverage-models`. -->

Of the {models} Vision Transformers that timm {version} registers, {exact} are supported and
{refused} are refused. `tome-serve models --check NAME` answers for one model, by its name in timm.
The verdicts of all models are in [models.json](models.json).

*Supported* means, in float64 on a small copy with random weights: `r=0` equals timm to 1e-9, and
with merging a batch of one `r` or of several equals its images one by one. `make test` checks
{sampled} of the models: every 12th, and the first of each class and verdict. Independent oracles,
written as loops, check the results of merging for each kind of block, position and pooling.

## Supported

| class in timm | models | names | merging |
| --- | --- | --- | --- |
{supported_rows}

## Refused

| class in timm | models | names | reason |
| --- | --- | --- | --- |
{refused_rows}

## What timm lacks

These networks are built from timm's parts (`tome_core/networks/`). [checkpoints.md](checkpoints.md)
says which files of them load.

| network | names | merging |
| --- | --- | --- |
{other_rows}
"""
R: list[int] = [0, 3, 1]


@dataclass(frozen=True)
class Verdict:
    """Whether a model is exact or refused.

    ``refusal`` is the error message of the core, empty for a model that is exact.
    """

    name: str
    model_type: str
    refusal: str = ""


def names() -> list[str]:
    """The registered models of `MODULES`."""
    return [name for name in timm.list_models() if _model_to_module[name] in MODULES]


def sample(rows: Iterable[Verdict]) -> list[str]:
    """What the tests check of the models in the table: every 12th, and the first of each class and
    verdict.
    """
    everyone = list(rows)
    first = {(row.model_type, row.refusal): row.name for row in reversed(everyone)}
    return sorted({*(row.name for row in everyone[::12]), *first.values()})


def read_verdicts() -> list[Verdict]:
    """The verdicts of docs/models.json."""
    document = json.loads(VERDICTS.read_text("utf-8"))
    return [Verdict(**row) for row in document["models"]]


def judge(name: str) -> Verdict:
    """Refused by name, or exact. Raises `AssertionError` on anything else."""
    with torch.device("meta"):  # no memory: enough to be refused
        shape = timm.create_model(name)
    model_type = type(shape).__name__
    try:
        adapt(shape)
    except UnsupportedModelError as error:
        return Verdict(name, model_type, str(error))
    vit = create_small(name, shape)
    generator = torch.Generator().manual_seed(0)
    for parameter in vit.parameters():
        parameter.data.normal_(std=0.2, generator=generator)
    check(vit.double().eval(), generator)
    return Verdict(name, model_type)


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


def write(verdicts: list[Verdict]) -> None:
    """Write docs/models.json, all verdicts, and docs/models.md, a table of families."""
    rows = [asdict(verdict) for verdict in verdicts]
    document = {"timm": timm.__version__, "models": rows}
    VERDICTS.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    TABLE.write_text(families_page(verdicts), "utf-8")


def families_page(verdicts: list[Verdict]) -> str:
    """The text of docs/models.md: one row per class and verdict."""
    exact = sum(not verdict.refusal for verdict in verdicts)
    families: dict[tuple[str, str], list[str]] = {}
    for verdict in verdicts:
        families.setdefault((verdict.model_type, verdict.refusal), []).append(verdict.name)
    supported = [
        f"| {model_type} | {len(names)} | {prefixes(names)} | {HOW_MERGED[model_type]} |"
        for (model_type, refusal), names in families.items()
        if not refusal
    ]
    refused = [
        f"| {model_type} | {len(names)} | {prefixes(names)} | {refusal} |"
        for (model_type, refusal), names in families.items()
        if refusal
    ]
    others = [
        f"| {network} | `{names}` | {merging} |"
        for network, (names, merging) in BESIDE_TIMM.items()
    ]
    return PAGE.format(
        version=timm.__version__,
        models=len(verdicts),
        exact=exact,
        refused=len(verdicts) - exact,
        sampled=len(sample(verdicts)),
        supported_rows="\n".join(supported),
        refused_rows="\n".join(refused),
        other_rows="\n".join(others),
    )


def prefixes(names: list[str]) -> str:
    """The first words of ``names``, as ``eva02_*``."""
    first_words = sorted({name.split("_")[0] for name in names})
    return ", ".join(f"`{word}_*`" for word in first_words)


def main() -> None:
    """Command line."""
    argparse.ArgumentParser(
        prog="python -m tests.tome_core.registry", description=__doc__
    ).parse_args()
    verdicts = [judge(name) for name in track(names(), "models")]
    write(verdicts)
    exact = sum(not verdict.refusal for verdict in verdicts)
    print(f"{exact} exact, {len(verdicts) - exact} refused: {TABLE}")  # noqa: T201
