"""The paper's ablations (arXiv 2210.09461, table 1, figure 3) on the bundled model and its twin.

Every alternative here comes in through the seam of the core, `tome_core.merging.Merging`: a metric,
a matcher, a way to combine. Of them the core knows the rule "pairs" alone.
"""
