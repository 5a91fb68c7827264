"""The cache of options: when options are computed again, and when they are not."""

from __future__ import annotations

import pytest

from server.engine.scheduling import options
from server.engine.scheduling.options import Option, OptionsCache
from server.latency.cost import CostFeatures, CostModel
from tests.server.engine.scheduling.made_up_models import LEVELS, MadeUpModel, make_job
from tome_core.schedule import Schedule


class CountingModel(MadeUpModel):
    """Counts the schedules whose cost was asked for."""

    lookups = 0

    def option(self, schedule: Schedule) -> Option:
        self.lookups += 1
        return super().option(schedule)


def test_jobs_with_the_same_tuple_of_choices_share_their_options() -> None:
    cache = OptionsCache()
    model = CountingModel()
    first = cache.get(make_job(1, choices=LEVELS), model, images=8)
    second = cache.get(make_job(2, choices=LEVELS), model, images=8)
    assert [option.schedule for option in first] == list(LEVELS)
    assert second is first
    assert model.lookups == len(LEVELS)


def test_equal_choices_in_another_tuple_get_options_of_their_own() -> None:
    cache = OptionsCache()
    model = CountingModel()
    cache.get(make_job(1, choices=LEVELS), model, images=8)
    cache.get(make_job(2, choices=tuple(list(LEVELS))), model, images=8)
    assert model.lookups == 2 * len(LEVELS)


def test_a_new_cost_model_selects_the_useful_options_again() -> None:
    cache = OptionsCache()
    model = CountingModel()
    job = make_job(1, choices=LEVELS)
    assert len(cache.get(job, model, images=8)) == len(LEVELS)
    # With this cost model images cost nothing, so merging saves nothing.
    model.cost_model = CostModel(CostFeatures(host=1.0))
    (only,) = cache.get(job, model, images=8)
    assert only.schedule == LEVELS[0]


def test_models_do_not_share_options() -> None:
    cache = OptionsCache()
    one = cache.get(make_job(1, model="a", choices=LEVELS), MadeUpModel(), images=8)
    other = cache.get(make_job(2, model="b", choices=LEVELS), MadeUpModel(), images=8)
    assert one is not other


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_MAX_ENTRIES", 3)
    cache = OptionsCache()
    model = MadeUpModel()
    choices = [(Schedule.constant(r),) for r in range(10)]
    for number, single in enumerate(choices):
        (option,) = cache.get(make_job(number, choices=single), model, images=8)
        assert option.schedule == single[0]
        assert len(cache._entries) <= 3
