"""A sample of what `make coverage-models` checks for all; see `registry.sample`."""

import pytest

from tests.tome_core.registry import judge, names, read_table, sample

VERDICTS = {verdict.name: verdict for verdict in read_table()}


def test_the_table_lists_every_model() -> None:
    assert list(VERDICTS) == names(), "run `make coverage-models`"


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's, about models that have been renamed
@pytest.mark.parametrize("name", sample(VERDICTS.values()))
def test_a_model_of_timm_is_exact_or_refused(name: str) -> None:
    assert judge(name) == VERDICTS[name], "run `make coverage-models`"
