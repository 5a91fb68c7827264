import pytest
from starlette.datastructures import QueryParams

from server.api.params import clamp, parse_params
from server.errors import InvalidParameter, NotFound
from server.messages import ModelInfo, Transform, Want
from tome_core.schedule import Schedule


def model(name="small", tokens=197, depth=12, classes=10) -> ModelInfo:
    transform = Transform((3, 224, 224), "bicubic", 0.9, "center")
    labels = tuple(f"class {index}" for index in range(classes))
    return ModelInfo(name, "vit", transform, labels, tokens, 1, depth, "cpu", "float32", (), (14, 14))


MODELS = {"small": model(), "tiny": model("tiny", tokens=17, depth=4, classes=3), "bare": model("bare", classes=0)}


def parse(query: str, default_r: str = "0", want: Want = "classes"):
    return parse_params(QueryParams(query), MODELS, default_r, 100.0, want)


def test_defaults():
    params = parse("")
    assert params.model.name == "small"
    assert (params.schedule, params.requested) == (Schedule.constant(0), "0")
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
    assert params.schedule == schedule
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
        ("r=auto", "r", "not available yet"),
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
        ("topk=3", "topk", "r, model, top_k, deadline_ms"),
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
    with pytest.raises(NotFound, match="small, tiny, bare"):
        parse("model=big")


def test_deadline_counts_from_the_arrival():
    assert parse("deadline_ms=250").deadline == 100.25


@pytest.mark.parametrize(
    ("default", "used"), [("16", "8"), ("16:-1", "8:-1"), ("3,4,5,6,7", "3,4,5,6"), ("20,1", "8,1"), ("8", "8")]
)
def test_default_is_cut_to_what_the_model_can_do(default, used):
    params = parse("model=tiny", default_r=default)
    assert str(params.schedule) == used
    assert params.requested == default
    assert str(clamp(Schedule.parse(default), MODELS["small"])) == default


@pytest.mark.parametrize("want", ["features", "source"])
def test_only_classes_are_counted(want):
    params = parse("r=8", want=want)
    assert (params.want, params.top_k) == (want, 0)
    with pytest.raises(InvalidParameter, match="no parameter 'top_k' here; there are r, model, deadline_ms"):
        parse("top_k=3", want=want)


def test_a_model_without_a_classifier_gives_everything_else():
    with pytest.raises(InvalidParameter, match="bare has no classifier; it serves /embed and /visualize only") as info:
        parse("model=bare")
    assert info.value.extensions["parameter"] == "model"
    assert parse("model=bare", want="features").model.name == "bare"
