"""Scheduling: which jobs run next, in which batches, under which schedules. No torch, no clock."""
