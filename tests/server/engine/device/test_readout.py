import pytest
import torch

from server.engine.device.readout import read_out
from tome_core import Outputs

NAN = float("nan")
LOGITS = torch.tensor(
    [
        [0.5, 2.0, -1.0, 1.0],
        [3.0, NAN, 0.0, 1.0],
    ]
)
FEATURES = torch.ones(2, 2)
SCORES = {
    "softmax": LOGITS.softmax(dim=-1),
    "sigmoid": LOGITS.sigmoid(),
    "none": LOGITS,
}


@pytest.mark.parametrize("activation", SCORES)
def test_a_row_has_the_best_scores_their_classes_and_whether_all_is_finite(activation: str) -> None:
    outputs = Outputs(LOGITS, FEATURES, None)
    first, second = read_out(outputs, activation, top=2).best
    best_classes = [1, 3]
    scores = SCORES[activation][0]
    torch.testing.assert_close(first[:2], scores[best_classes])
    assert first[2:4].tolist() == best_classes
    assert first[4] == 1
    assert second[4] == 0


def test_features_that_are_not_finite_are_reported() -> None:
    features = FEATURES.clone()
    features[0, 1] = float("inf")
    outputs = Outputs(LOGITS[:1], features[:1], None)
    (row,) = read_out(outputs, "softmax", top=2).best
    assert row[-1] == 0


def test_all_classes_are_read_out_if_there_are_fewer_than_top() -> None:
    readout = read_out(Outputs(LOGITS, FEATURES, None), "softmax", top=9)
    assert readout.top == 4
    assert readout.best.shape == (2, 2 * 4 + 1)


def test_the_first_images_are_views() -> None:
    source = torch.zeros(2, 5, dtype=torch.int64)
    readout = read_out(Outputs(LOGITS, FEATURES, source), "none", top=2)
    first = readout.first(1)
    assert first.best.data_ptr() == readout.best.data_ptr()
    assert first.best.shape == (1, 5)
    assert first.outputs.logits.shape == (1, 4)
    assert first.outputs.features.shape == (1, 2)
    assert first.outputs.source is not None
    assert first.outputs.source.shape == (1, 5)
