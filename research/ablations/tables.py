"""The paper's ablation tables (arXiv 2210.09461, section 4.1, appendix) and their claims.

The paper's numbers are typed in here; ours are measured.
"""

from __future__ import annotations

from research.ablations.further_tables import FURTHER
from research.ablations.table_parts import Claim, Line, Table
from research.ablations.variants import DEFAULT

FEATURES = Table(
    "What tokens are compared by",
    (
        Line("X_pre, tokens before attention", "feature-x-pre", (83.02,)),
        Line("X, tokens after attention", "feature-x", (83.70,)),
        Line("**K, mean key**", DEFAULT, (84.25,)),
        Line("Q, mean query", "feature-q", (84.04,)),
        Line("V, mean value", "feature-v", (83.80,)),
        Line("K, keys of all heads", "feature-all-heads"),
    ),
    (
        Claim(
            "keys (K) above tokens (X)",
            DEFAULT,
            "feature-x",
            "the paper prefers keys because tokens of a large model carry channels that say little;"
            " ours is narrow and has less room for such channels.",
        ),
        Claim(
            "keys (K) above tokens before attention (X_pre)",
            DEFAULT,
            "feature-x-pre",
            "as for X, a narrow model has less room for channels that say little.",
        ),
        Claim(
            "keys (K) above queries (Q)",
            DEFAULT,
            "feature-q",
            "the paper gives no reason but its numbers, and of this table these two rows are its"
            " closest.",
        ),
        Claim(
            "keys (K) above values (V)",
            DEFAULT,
            "feature-v",
            "values are what attention hands on, so little is lost where they are alike.",
        ),
    ),
    "Q, K and V are averaged over the heads. X_pre and X are read as the block's input and as what"
    " its attention branch has been added to. The paper also tries the keys of all heads side by"
    " side; its number is not given here.",
)

DISTANCES = Table(
    "How they are compared",
    (
        Line("Euclidean", "distance-euclidean", (84.26,)),
        Line("**cosine**", DEFAULT, (84.25,)),
        Line("dot product", "distance-dot", (82.78,)),
    ),
    (
        Claim(
            "cosine and Euclidean distance are even",
            DEFAULT,
            "distance-euclidean",
            "the distance sees the length of keys, too, which means something else than their"
            " direction.",
            even=True,
        ),
        Claim(
            "cosine above dot product",
            DEFAULT,
            "distance-dot",
            "the dot product favours long keys, which harms the less the more alike keys are in"
            " length.",
        ),
    ),
    "The paper also tries a softmax over dot products (82.00), which is left out here.",
)

COMBINING = Table(
    "How they become one",
    (
        Line("keep one", "combine-keep-one", (81.01,)),
        Line("maximum", "combine-max", (83.50,)),
        Line("mean", "combine-mean", (83.57,)),
        Line("**mean weighted by size**", DEFAULT, (84.25,)),
    ),
    (
        Claim(
            "weighted mean above plain mean",
            DEFAULT,
            "combine-mean",
            "the paper measures this without proportional attention; with it, as here, sizes count"
            " in either row.",
        ),
        Claim(
            "weighted mean above maximum",
            DEFAULT,
            "combine-max",
            "of nearly equal tokens, such as those of a black background, the maximum is nearly the"
            " mean.",
        ),
        Claim(
            "weighted mean above keeping one",
            DEFAULT,
            "combine-keep-one",
            "of nearly equal tokens, such as those of a black background, one says nearly what"
            " their mean says.",
        ),
    ),
    "Sizes are added up in all rows, and proportional attention uses them.",
)

PARTITIONS = Table(
    "How tokens are split into two sets",
    (
        Line("sequential, first half and second", "partition-sequential", (81.07,)),
        Line("**alternating**", DEFAULT, (84.25,)),
        Line("random", "partition-random", (83.80,)),
    ),
    (
        Claim(
            "alternating above sequential",
            DEFAULT,
            "partition-sequential",
            "sequential sets are the upper and the lower half of the picture, and clothes in the"
            " middle of a black background have their like in both halves more often than"
            " photographs do.",
        ),
        Claim(
            "alternating above random",
            DEFAULT,
            "partition-random",
            "random halves split neighbours half of the time, which is enough where tokens have"
            " many of their kind.",
        ),
    ),
    "Random sets are drawn anew for every image and block.",
)

PROP_ATTN = Table(
    "Proportional attention",
    (
        Line("off", "prop-attn-off", (84.25, 82.15)),
        Line("**on**", DEFAULT, (83.84, 83.51)),
    ),
    (
        Claim(
            "on above off, for a model trained with labels (AugReg)",
            DEFAULT,
            "prop-attn-off",
            "where merged tokens are much alike, little depends on how many patches each is.",
        ),
    ),
    "The paper switches it off for MAE models, which were pre-trained on a part of the tokens. Ours"
    " was trained with labels.",
    ("ViT-L MAE", "ViT-L AugReg"),
    (85.96, 85.82),
)

ALGORITHMS = Table(
    "How tokens are chosen",
    (
        Line("random pruning", "prune-random", (79.22,)),
        Line("pruning by the class token's attention", "prune-attention", (79.48,)),
        Line("k-means, 2 iterations", "k-means-2", (80.19,)),
        Line("k-means, 5 iterations", "k-means-5", (80.29,)),
        Line("greedy matching", "greedy", (84.36,)),
        Line("**bipartite matching**", DEFAULT, (84.25,)),
        Line("random matching", "random-matching"),
        Line("every second token merges (kth)", "kth"),
    ),
    (
        Claim(
            "bipartite matching above random pruning",
            DEFAULT,
            "prune-random",
            "patches of 2 x 2 pixels say nearly what their neighbours say, so of what is pruned"
            " much is still there.",
        ),
        Claim(
            "bipartite matching above pruning by attention",
            DEFAULT,
            "prune-attention",
            "our class token tells clothes from a black background easily, and background can be"
            " dropped.",
        ),
        Claim(
            "bipartite matching above k-means, 2 iterations",
            DEFAULT,
            "k-means-2",
            "with nearly as many clusters as tokens, k-means merges little but what is nearest, as"
            " matching does.",
        ),
        Claim(
            "bipartite matching above k-means, 5 iterations",
            DEFAULT,
            "k-means-5",
            "with nearly as many clusters as tokens, k-means merges little but what is nearest, as"
            " matching does.",
        ),
        Claim(
            "greedy matching and bipartite matching are even",
            DEFAULT,
            "greedy",
            "greedy pairs may lie in one set, which bipartite matching cannot join; bipartite"
            " matching joins any number to one token in a block, where greedy makes pairs.",
            even=True,
        ),
    ),
    "All remove r tokens in each block, but kth, which halves them in the blocks where that comes"
    " nearest to the same counts. k-means has as many clusters as tokens shall be left, over"
    " normalised keys, from centres drawn at random. Greedy merges the most similar pair of all,"
    " then of the others, r times. Random matching draws which tokens merge, each into the most"
    " similar one of the others.",
)

SCHEDULES = Table(
    "Where tokens are removed",
    (
        Line("increasing, 0 to 2r", "schedule-increasing"),
        Line("**constant**", DEFAULT, (86.5, 85.1)),
        Line("decreasing, 2r to 0", "schedule-decreasing", (86.1, 84.2)),
    ),
    (
        Claim(
            "constant above decreasing, which is cheaper",
            DEFAULT,
            "schedule-decreasing",
            "early merging takes what is alike in the picture itself, of which a black background"
            " has plenty.",
        ),
    ),
    "The paper's models of this table were fine-tuned with merging on; ViT-L takes 61.6 GFLOPs"
    " unmerged, 31.0 with a constant and 22.3 with a decreasing schedule (ViT-H: 167.4, 92.9,"
    " 72.6).",
    ("ViT-H MAE, r=7", "ViT-L MAE, r=8"),
    (86.9, 85.7),
)

PAPER_TABLES = (FEATURES, DISTANCES, COMBINING, PARTITIONS, PROP_ATTN, ALGORITHMS, SCHEDULES)
TABLES = (*PAPER_TABLES, *FURTHER)
