from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from server.api.contract.allowed_schedules import clamp, faster
from server.api.contract.params import parse_params
from server.errors import InvalidParameter, NotFound
from server.imaging.transform import Transform
from server.ipc.messages import Level, ModelInfo, OutputKind
from tome_core.schedule import Schedule

LEVELS = tuple(
    Level(str(r), 197 - 12 * r, 1 - r / 30, None, accuracy)
    for r, accuracy in ((0, 90.88), (4, 90.93), (8, 90.88), (12, None), (16, 90.77))
)


def model(name="small", tokens=197, depth=12, classes=10, levels=()) -> ModelInfo:
    transform = Transform((3, 224, 224), "bicubic", 0.9, "center")
    labels = tuple(f"class {index}" for index in range(classes))
    return ModelInfo(
        name, "vit", transform, labels, tokens, 1, depth, "cpu", "float32", levels, (14, 14)
    )


MODELS = {
    "small": model(levels=LEVELS),
    "tiny": model("tiny", tokens=17, depth=4, classes=3),
    "bare": model("bare", classes=0),
    "unknown": model("unknown", levels=tuple(replace(level, accuracy=None) for level in LEVELS)),
}


def parse(query: str, default_r: str = "0", want: OutputKind = "classes"):
    return parse_params(QueryParams(query), MODELS, default_r, 100.0, want)


def test_defaults():
    params = parse("")
    assert params.model.name == "small"
    assert (params.choices, params.requested) == ((Schedule.constant(0),), "0")
    assert (params.top_k, params.deadline) == (5, None)
    assert parse("model=tiny").top_k == 3


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("16", Schedule.constant(16)),
        ("98", Schedule.constant(98)),
        ("16:-1", Schedule.linear(16, -1)),
        ("98:0.5", Schedule.linear(98, 0.5)),
        ("30,0,5,20", Schedule.per_layer([30, 0, 5, 20])),
        (",".join(["98"] * 12), Schedule.per_layer([98] * 12)),
    ],
)
def test_r(text, schedule):
    params = parse(f"r={text}")
    assert params.choices == (schedule,)
    assert params.requested == text


@pytest.mark.parametrize(
    ("query", "parameter", "says"),
    [
        ("r=", "r", "0 to 98"),
        ("r=x", "r", "30,0,5,20"),
        ("r=-1", "r", "0 to 98"),
        ("r=1.5", "r", "0 to 98"),
        ("r=1_6", "r", "0 to 98"),
        ("r=99", "r", "0 to 98"),
        ("r=99:-1", "r", "0 to 98"),
        ("r=16:2", "r", "-1 to 1"),
        ("r=16:nan", "r", "-1 to 1"),
        ("r=16:1:1", "r", "-1 to 1"),
        ("r=1,99", "r", "0 to 98"),
        ("r=1,,2", "r", "one per block"),
        (f"r={','.join('1' * 13)}", "r", "12 blocks"),
        ("model=tiny&r=9", "r", "0 to 8"),
        (f"r={'9' * 5000}", "r", "0 to 98"),
        ("r_max=8", "r_max", "with r=0 there is nothing to choose"),
        ("r=8&min_accuracy=90", "min_accuracy", "with r=8 there is nothing to choose"),
        ("r=auto&r_max=99", "r_max", "0 to 98"),
        ("r=auto&r_max=x", "r_max", "0 to 98"),
        ("r=auto&r_max=-1", "r_max", "0 to 98"),
        ("r=auto&min_accuracy=101", "min_accuracy", "0 to 100"),
        ("r=auto&min_accuracy=nan", "min_accuracy", "0 to 100"),
        ("r=auto&min_accuracy=99", "min_accuracy", "reaches 90.93%"),
        ("r=auto&r_max=0&min_accuracy=90.9", "min_accuracy", "reaches 90.88%"),
        ("r=auto&model=unknown&min_accuracy=1", "min_accuracy", "has no profile"),
        ("top_k=0", "top_k", "1 to 10"),
        ("top_k=11", "top_k", "1 to 10"),
        ("top_k=-1", "top_k", "1 to 10"),
        ("top_k=x", "top_k", "1 to 10"),
        ("top_k=%C2%B2", "top_k", "1 to 10"),
        ("model=tiny&top_k=4", "top_k", "1 to 3"),
        ("deadline_ms=0", "deadline_ms", "positive"),
        ("deadline_ms=-5", "deadline_ms", "positive"),
        ("deadline_ms=nan", "deadline_ms", "positive"),
        ("deadline_ms=inf", "deadline_ms", "positive"),
        ("deadline_ms=soon", "deadline_ms", "positive"),
        ("topk=3", "topk", "r, model, top_k, deadline_ms, r_max, min_accuracy"),
        ("r=1&r=2", "r", "2 times"),
    ],
)
def test_refused(query, parameter, says):
    with pytest.raises(InvalidParameter) as info:
        parse(query)
    assert info.value.extensions["parameter"] == parameter
    assert says in info.value.detail
    assert len(info.value.detail) < 300


def test_unknown_model_lists_the_known():
    with pytest.raises(NotFound, match="small, tiny, bare, unknown"):
        parse("model=big")


def test_deadline_counts_from_the_arrival():
    assert parse("deadline_ms=250").deadline == 100.25


@pytest.mark.parametrize(
    ("default", "used"),
    [("16", "8"), ("16:-1", "8:-1"), ("3,4,5,6,7", "3,4,5,6"), ("20,1", "8,1"), ("8", "8")],
)
def test_default_is_cut_to_what_the_model_can_do(default, used):
    params = parse("model=tiny", default_r=default)
    assert params.text == used
    assert params.requested == default
    assert str(clamp(Schedule.parse(default), MODELS["small"])) == default


@pytest.mark.parametrize(
    ("query", "allowed"),
    [
        ("", [0, 4, 8, 12, 16]),
        ("&r_max=", [0, 4, 8, 12, 16]),
        ("&r_max=98", [0, 4, 8, 12, 16]),
        ("&r_max=11", [0, 4, 8]),
        ("&r_max=0", [0]),
        ("&min_accuracy=90.8", [0, 4, 8]),  # 12 is not in the profile
        ("&min_accuracy=90.9", [4]),
        ("&min_accuracy=0&r_max=16", [0, 4, 8, 16]),
    ],
)
def test_auto_allows_the_levels_within_its_bounds(query, allowed):
    choices = tuple(map(Schedule.constant, allowed))
    for params in (parse(f"r=auto{query}"), parse(query.removeprefix("&"), default_r="auto")):
        assert (params.choices, params.requested, params.text) == (choices, "auto", "auto")


@pytest.mark.parametrize(
    ("speedups", "query", "allowed"),
    [
        ((1.0, 1.2, 1.4, 1.6, 2.0), "", (0, 4, 8, 12, 16)),
        ((1.0, 0.8, 0.95, 1.1, 1.3), "", (0, 12, 16)),  # slower than r=0
        ((1.0, 1.2, 1.5, 1.5, 1.4), "", (0, 4, 8)),  # no faster than r=8, which merges less
        ((1.0, 0.8, 0.9, 0.9, 0.95), "", (0,)),
        ((1.0, 0.8, 0.9, 1.2, 1.4), "&r_max=8", (0,)),
        ((1.0, 0.8, 0.9, 1.2, 1.4), "&min_accuracy=90.9", (4,)),  # only this one is accurate enough
        ((1.0, None, None, 0.9, 1.4), "", (0, 4, 8, 16)),
    ],
)
def test_auto_skips_levels_that_gain_nothing(speedups, query, allowed):
    levels = tuple(
        replace(level, speedup=speedup) for level, speedup in zip(LEVELS, speedups, strict=True)
    )
    params = parse_params(
        QueryParams(f"r=auto{query}"), {"m": model("m", levels=levels)}, "0", 100.0, "classes"
    )
    assert params.choices == tuple(map(Schedule.constant, allowed))
    named = parse_params(
        QueryParams("r=4"), {"m": model("m", levels=levels)}, "0", 100.0, "classes"
    )
    assert named.choices == (Schedule.constant(4),)


@given(st.lists(st.none() | st.floats(0.1, 10), min_size=1, max_size=8))
def test_what_auto_may_take_is_faster_than_all_that_merges_less(speedups):
    levels = [
        Level(str(r), 197 - 12 * r, 1 - r / 30, speedup) for r, speedup in enumerate(speedups)
    ]
    kept = faster(levels[::-1])
    assert kept[0] == levels[0]
    measured = [level.speedup for level in kept if level.speedup is not None]
    assert measured == sorted(set(measured))
    for level in levels:
        milder = [one.speedup for one in levels[: levels.index(level)] if one.speedup is not None]
        assert (level in kept) == (level.speedup is None or level.speedup > max(milder, default=0))


def test_a_named_r_comes_before_a_default_of_auto():
    assert parse("r=3", default_r="auto").choices == (Schedule.constant(3),)


@pytest.mark.parametrize("want", ["features", "source"])
def test_only_classes_are_counted(want):
    params = parse("r=8", want=want)
    assert (params.want, params.top_k) == (want, 0)
    with pytest.raises(
        InvalidParameter,
        match="no parameter 'top_k' here; there are r, model, deadline_ms, r_max, min_accuracy",
    ):
        parse("top_k=3", want=want)


def test_a_model_without_a_classifier_gives_everything_else():
    with pytest.raises(
        InvalidParameter, match="bare has no classifier; it serves /embed and /visualize only"
    ) as info:
        parse("model=bare")
    assert info.value.extensions["parameter"] == "model"
    assert parse("model=bare", want="features").model.name == "bare"
