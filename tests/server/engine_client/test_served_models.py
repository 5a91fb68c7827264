"""Models that several engines serve."""

from server.engine_client.served_models import combine, device_independent
from server.ipc.messages import ModelInfo
from server.media.transforms import ImageTransform

TRANSFORM = ImageTransform((3, 32, 32), "bilinear", 1.0, "center")


def model(name: str, device: str, dtype: str = "float32") -> ModelInfo:
    return ModelInfo(name, "vit", TRANSFORM, ("a", "b"), 17, 1, 2, device, dtype, (), (4, 4))


def test_a_model_is_listed_once_with_the_devices_of_all_engines() -> None:
    first = (model("m", "cuda:0"), model("n", "cuda:0"))
    second = (model("m", "cuda:1"), model("n", "cuda:1"))
    combined = combine([first, second])
    assert [(one.name, one.device) for one in combined] == [
        ("m", "cuda:0,cuda:1"),
        ("n", "cuda:0,cuda:1"),
    ]


def test_models_of_several_engines_may_differ_in_the_device_only() -> None:
    expected = device_independent((model("m", "cpu"),))
    assert device_independent((model("m", "cuda:0", "bfloat16"),)) == expected
    assert device_independent((model("n", "cpu"),)) != expected
