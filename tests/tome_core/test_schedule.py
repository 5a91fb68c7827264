from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.tome_core import oracle
from tome_core.schedule import Schedule

NUMBERS = st.integers(0, 999_999)
SCHEDULES = st.one_of(
    st.builds(Schedule.constant, NUMBERS),
    st.builds(Schedule.linear, NUMBERS, st.floats(-1, 1)),
    st.lists(NUMBERS, max_size=40).map(Schedule.per_layer),
)


@given(SCHEDULES)
@example(Schedule.per_layer([]))
@example(Schedule.per_layer([30]))
@example(Schedule.linear(16, -1 / 3))
@example(Schedule.linear(16, -0.0))
def test_the_text_form_round_trips(schedule: Schedule) -> None:
    assert Schedule.parse(str(schedule)) == schedule


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (Schedule.constant(16), "16"),
        (Schedule.constant(0), "0"),
        (Schedule.linear(16, -1), "16:-1"),
        (Schedule.linear(16, 0.5), "16:0.5"),
        (Schedule.linear(16, 0), "16"),
        (Schedule.per_layer([30, 0, 5, 20]), "30,0,5,20"),
        (Schedule.per_layer([30]), "30,"),
    ],
)
def test_schedules_have_a_text_form(schedule: Schedule, text: str) -> None:
    assert str(schedule) == text
    assert Schedule.parse(text) == schedule


@pytest.mark.parametrize("text", ["16:1", "16:+1", "016", "16:-1.0", "16:0", "16:1e-3"])
def test_other_spellings_are_read(text: str) -> None:
    r, _, inflection = text.partition(":")
    assert Schedule.parse(text) == Schedule.linear(int(r), float(inflection or 0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        "16:",
        ":1",
        "16:1:1",
        "16:2",
        "16:-1.01",
        "16:nan",
        "16:inf",
        "16:x",
        "-1",
        "-16:1",
        "+16",
        "1.5",
        "1e3",
        "16 ",
        " 16",
        "1_6",
        "٣",
        "²",
        "0x10",
        "1,,2",
        ",1",
        "1,2,,",
        "1,-2",
        "1, 2",
        "1;2",
        "[1,2]",
        "16:-1,3",
        "auto",
        "None",
        "1234567",
        "9" * 5000,
        "1,1234567",
        "16\n",
        "\x00",
        "1\x00",
    ],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a schedule") as caught:
        Schedule.parse(text)
    assert len(str(caught.value)) < 300  # the message goes to a client


@pytest.mark.parametrize("text", ["16: -1", "16:-1\n", "16:0_1", "16:\uff11", "16:-\u0660"])
def test_the_inflection_is_read_as_strictly_as_the_number(text: str) -> None:
    with pytest.raises(ValueError, match="is not a schedule"):
        Schedule.parse(text)


@given(st.text(alphabet="0123456789:,.-+ e_n", max_size=12))
def test_parse_gives_a_schedule_or_a_value_error(text: str) -> None:
    try:
        schedule = Schedule.parse(text)
    except ValueError:
        return
    assert all(count >= 0 for count in schedule.wanted(40))


@given(st.integers(0, 400), st.floats(-1, 1), st.integers(2, 48))
def test_linear_has_the_floors_of_the_paper(r: int, inflection: float, depth: int) -> None:
    assert list(Schedule.linear(r, inflection).wanted(depth)) == oracle.counts(
        (r, inflection), depth
    )


@pytest.mark.parametrize("inflection", [-1, -0.75, -0.5, -0.1, 0, 0.1, 0.3, 0.5, 1])
def test_linear_has_the_floors_of_the_paper_for_round_numbers(inflection: float) -> None:
    for depth in range(1, 33):
        for r in range(0, 66):
            assert list(Schedule.linear(r, inflection).wanted(depth)) == oracle.counts(
                (r, inflection), depth
            )


def test_known_schedules() -> None:
    assert Schedule.parse("16:-1").wanted(12) == (32, 29, 26, 23, 20, 17, 14, 11, 8, 5, 2, 0)
    assert Schedule.parse("16:1").wanted(12) == (0, 2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32)
    assert Schedule.parse("16:-1").wanted(1) == (16,)
    assert Schedule.constant(16).wanted(12) == (16,) * 12
    assert Schedule.per_layer([30, 0, 5]).wanted(5) == (30, 0, 5, 0, 0)
    assert Schedule.per_layer([]).wanted(2) == (0, 0)


def test_known_token_counts() -> None:
    # ViT/16 at 224 pixels and its paper's operating points; 11 and not 5, because half is the most
    # a block can merge.
    assert Schedule.constant(16).tokens(12, 197, 1)[-1] == 11
    assert Schedule.constant(13).tokens(12, 197, 1)[-1] == 41
    assert Schedule.linear(16, -1).tokens(12, 197, 1)[-1] == 10
    assert Schedule.constant(8).tokens(24, 197, 1)[-1] == 7
    assert Schedule.constant(0).tokens(12, 197, 1) == (197,) * 13
    assert Schedule.constant(98).tokens(3, 197, 1) == (197, 99, 50, 26)


@given(SCHEDULES, st.integers(0, 300), st.integers(0, 5))
def test_each_block_merges_r_tokens_up_to_half(
    schedule: Schedule, patches: int, prefix: int
) -> None:
    tokens = schedule.tokens(40, patches + prefix, prefix)
    assert tokens[0] == patches + prefix
    for before, after, r in zip(tokens, tokens[1:], schedule.wanted(40), strict=False):
        assert after == before - min(r, (before - prefix) // 2)


@pytest.mark.parametrize("inflection", [-1.0001, 1.5, float("nan"), float("inf")])
def test_an_inflection_out_of_range_is_refused(inflection: float) -> None:
    with pytest.raises(ValueError, match="inflection"):
        Schedule.linear(16, inflection)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="negative"):
        Schedule.constant(-1)
    with pytest.raises(ValueError, match="negative"):
        Schedule.linear(-1, 0.5)
    with pytest.raises(ValueError, match="negative"):
        Schedule.per_layer([1, -2])


@pytest.mark.parametrize("r", [True, 1.0, "1", None, [1]])
def test_an_r_that_is_no_integer_is_refused(r: Any) -> None:
    with pytest.raises(TypeError):
        Schedule.constant(r)
    with pytest.raises(TypeError):
        Schedule.of(r)
    with pytest.raises(TypeError):
        Schedule.linear(r, 0.5)
    with pytest.raises(TypeError):
        Schedule.per_layer([r])


def test_a_list_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"4 entries.*3 blocks"):
        Schedule.per_layer([1, 0, 0, 0]).wanted(3)


def test_equal_schedules_are_one_key() -> None:
    same = {
        Schedule.constant(3),
        Schedule.parse("3"),
        Schedule.of(3),
        Schedule.of(Schedule.constant(3)),
    }
    assert len(same) == 1
    assert Schedule.constant(3) != Schedule.per_layer([3])


def test_importing_schedules_does_not_import_torch() -> None:
    # The API process parses schedules, and importing torch takes seconds.
    code = (
        "import sys, tome_core.schedule; print(sorted({'torch', 'timm', 'numpy'} &"
        " set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
