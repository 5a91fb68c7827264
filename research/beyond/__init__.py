"""Ideas beyond the rule "pairs", measured at equal schedules and at equal FLOPs.

The core knows none of them: they come in through `tome_core.merging.Merging`, or as a
`tome_core.execution.Strategy` where they read more than a metric.
"""
