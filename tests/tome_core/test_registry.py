"""A sample of what `make coverage-models` checks for all; see `registry.sample`."""

import pytest

from tests.tome_core.registry import TABLE, families_page, judge, names, read_verdicts, sample

VERDICTS = {verdict.name: verdict for verdict in read_verdicts()}


def test_every_model_has_a_verdict() -> None:
    assert list(VERDICTS) == names(), "run `make coverage-models`"


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's, about models that have been renamed
@pytest.mark.parametrize("name", sample(VERDICTS.values()))
def test_a_model_of_timm_is_exact_or_refused(name: str) -> None:
    assert judge(name) == VERDICTS[name], "run `make coverage-models`"


def test_the_page_of_families_is_that_of_the_verdicts() -> None:
    assert TABLE.read_text("utf-8") == families_page(list(VERDICTS.values()))
