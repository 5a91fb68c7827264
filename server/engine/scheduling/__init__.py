"""Which jobs run next, in which batches and under which schedules. Pure: no torch, no clock."""
