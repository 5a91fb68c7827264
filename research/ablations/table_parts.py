"""What a table of the report is made of: lines, and claims about them.

A claim says which row is above which. Whether it holds is worked out from our numbers in `report`,
and ``why`` is said only where it does not, so no sentence can contradict them.
"""

from __future__ import annotations

from dataclasses import dataclass

from research.ablations.variants import VARIANTS


@dataclass(frozen=True)
class Line:
    """One row; ``paper`` is its accuracy there by column, empty where the paper has none."""

    label: str
    variant: str
    paper: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no variant {self.variant!r}")


@dataclass(frozen=True)
class Claim:
    """``above`` has the higher accuracy, or the same as ``below`` where ``even``.

    Attributes:
        why: the likely reason, should it not hold on our model and data; continues a sentence.
    """

    text: str
    above: str
    below: str
    why: str
    even: bool = False


@dataclass(frozen=True)
class Table:
    """One ablation.

    Attributes:
        note: what the rows are, where their names do not say it.
        columns: the models of the paper that its numbers are of; the last is the one most like
            ours. None for what is not in the paper.
        unmerged: their accuracy without merging.
    """

    title: str
    lines: tuple[Line, ...]
    claims: tuple[Claim, ...]
    note: str
    columns: tuple[str, ...] = ("ViT-L MAE",)
    unmerged: tuple[float, ...] = (85.96,)
