"""What is not in the paper: other rules step by step, and what was tried and not built in."""

from __future__ import annotations

from research.ablations.table_parts import Line, Table
from research.ablations.variants import DEFAULT

PAIRS = Table(
    "From the paper's rule to pairs, and to nearest",
    (
        Line("**the paper's rule**", DEFAULT),
        Line("keys of all heads", "feature-all-heads"),
        Line("the most similar pairs of all tokens (greedy matching)", "greedy"),
        Line("both", "pairs-all-keys"),
        Line("both, and the mean keeps the average length: `pairs` as served", "pairs"),
        Line("the same by Euclidean distance: `nearest` as served", "nearest"),
    ),
    (),
    'The last two rows are `merging = "pairs"` and `merging = "nearest"` in the entry of a model.'
    " They compare all tokens with each other by all keys, which FLOPs count.",
    (),
    (),
)

NULLS = Table(
    "What is not built in",
    (
        Line("**the paper's rule**", DEFAULT),
        Line("queries, keys and values of all heads", "feature-qkv"),
        Line("sets that alternate by energy (PiToMe)", "partition-energy"),
        Line("Ward's cost, by which large tokens merge last", "size-cost"),
        Line("the quarter that the class token attends to merges last", "attention-protected"),
        Line("proportional attention off", "prop-attn-off"),
        Line("increasing, 0 to 2r", "schedule-increasing"),
        Line("2r in the second half of the blocks alone", "schedule-late"),
    ),
    (),
    "Energy is the mean cosine of a token's key to all others; the paper's other steps are as"
    " before, so this is a part of PiToMe (arXiv 2405.16148) alone. Ward's cost is the cosine's"
    " distance times s s' / (s + s') for tokens of s and s' patches. FLOPs count matching as the"
    " paper's. All rows remove r tokens in"
    " each block, but the last two, which have the same sum over the blocks, as far as each block"
    " can merge half of its tokens, and cost more. One model and one task decide little: on"
    " features of a DINOv2 ViT-S/14, a prototype that is no part of this repository saw no gain by"
    " queries, keys and values or by Ward's cost, none by sets by energy over the keys of all heads"
    " alone, which it tried them with, and a clear loss by protection, by proportional attention"
    " off and by both schedules. A model like ours, trained without merging, gained by protection"
    " there. `tome-serve tune` therefore measures rules on a model's own pictures.",
    (),
    (),
)

FURTHER = (PAIRS, NULLS)
