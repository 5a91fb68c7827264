"""A sample of what `make coverage-models` checks for all: every 12th model, and one of each class."""

import pytest

from tests.tome_core.registry import TABLE, judge, names

ALWAYS = {"deit_tiny_distilled_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224"}
SAMPLE = sorted({*names()[::12], *ALWAYS})


@pytest.mark.filterwarnings("ignore::UserWarning")  # timm's, about models that have been renamed
@pytest.mark.parametrize("name", SAMPLE)
def test_a_model_of_timm_is_exact_or_refused(name: str) -> None:
    verdict = judge(name)
    says = f"| `{name}` | {verdict.kind} | {verdict.refusal or 'exact'} |"
    assert says in TABLE.read_text("utf-8").splitlines(), "run `make coverage-models`"
