"""Zero-shot classification, from ``tome-serve text`` to answers over HTTP, beside transformers."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
import tritonclient.http as triton
from PIL import Image

from server.commands.cli import main
from tests.server.conftest import RunningServer
from tests.server.tiny_pairs import (
    BIRDS,
    COLOURS,
    WIDTH,
    images,
    logits_per_image,
    make_pair,
    normalised,
    probabilities,
)
from tome_client import Classification, Client, ProblemError

# `main` configures logging.
pytestmark = pytest.mark.usefixtures("restored_logging")

PICTURES = images(4)


def png(pixels: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(pairs_folder: Path) -> Path:
    return pairs_folder


@pytest.fixture(scope="module")
def url(pairs_server: RunningServer) -> str:
    return pairs_server.url


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


def expected(kind: str, labels: tuple[str, ...]) -> torch.Tensor:
    model = make_pair(kind)
    return probabilities(model, logits_per_image(model, normalised(PICTURES, kind), labels))


def by_label(answer: dict[str, Any]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in answer["predictions"]}


def assert_same(answer: dict[str, Any], row: torch.Tensor, labels: tuple[str, ...]) -> None:
    found = by_label(answer)
    np.testing.assert_allclose([found[label] for label in labels], row.numpy(), atol=1e-4, rtol=0)
    scores = [each["score"] for each in answer["predictions"]]
    assert scores == sorted(scores, reverse=True)
    assert all(labels[each["index"]] == each["label"] for each in answer["predictions"])


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_probabilities_are_those_of_transformers(http: httpx.Client, kind: str) -> None:
    rows = expected(kind, BIRDS)
    assert rows.std() > 0.01
    for pixels, row in zip(PICTURES, rows, strict=True):
        answer = http.post(f"/classify?model={kind}&top_k=6", content=png(pixels)).json()
        assert_same(answer, row, BIRDS)
    assert answer["r"] == "0"


def test_a_request_names_a_label_set(http: httpx.Client) -> None:
    query = {"model": "clip", "text": "colours"}
    answer = http.post("/classify", params=query, content=png(PICTURES[0])).json()
    assert_same(answer, expected("clip", COLOURS)[0], COLOURS)
    empty = http.post("/classify?model=clip&text=", content=png(PICTURES[0])).json()
    assert set(by_label(empty)) <= set(BIRDS)
    merged = http.post("/classify?text=colours&r=4&confidence=1", content=png(PICTURES[0])).json()
    assert [each["r"] for each in merged["passes"]] == ["4", "0"]
    assert by_label(merged) == pytest.approx(by_label(answer), abs=1e-5)


def test_multipart_gives_each_file_its_labels(http: httpx.Client) -> None:
    files = [("file", ("a.png", png(pixels))) for pixels in PICTURES]
    answer = http.post("/classify?model=clip&text=colours", files=files).json()
    for result, row in zip(answer["results"], expected("clip", COLOURS), strict=True):
        assert_same(result, row, COLOURS)


@pytest.mark.parametrize(
    ("query", "detail"),
    [
        ("model=clip&text=fish", "text='fish' is not allowed; clip has birds, colours"),
        ("model=siglip&text=birds", "text='birds' is not allowed; siglip has default"),
        ("model=clip&text=colours&top_k=3", "top_k='3' is not allowed; allowed are 1 to 2"),
        ("model=clip&text=a&text=b", "text is given 2 times"),
        ("model=siglip&confidence=0.5", "the scores of siglip are no probabilities of classes"),
        ("model=features", "features has no classifier"),
    ],
)
def test_mistakes_are_named(http: httpx.Client, query: str, detail: str) -> None:
    answer = http.post(f"/classify?{query}", content=png(PICTURES[0]))
    assert answer.status_code == 422
    assert detail in answer.json()["detail"]


def test_text_is_of_classify_alone(http: httpx.Client) -> None:
    answer = http.post("/embed?model=clip&text=birds", content=png(PICTURES[0]))
    assert answer.status_code == 422
    assert answer.json()["parameter"] == "text"


def test_models_list_the_label_sets(http: httpx.Client) -> None:
    clip, siglip, cosine, features = http.get("/models").json()["models"]
    sets = [{"name": "birds", "labels": 6}, {"name": "colours", "labels": 2}]
    assert (clip["label_sets"], clip["activation"], clip["classes"]) == (sets, "softmax", 6)
    assert (siglip["label_sets"], siglip["activation"]) == (
        [{"name": "default", "labels": 6}],
        "sigmoid",
    )
    assert cosine["activation"] == "cosine"
    assert (features["label_sets"], features["classes"]) == ([], 0)


def test_the_embedding_is_that_which_labels_are_compared_with(http: httpx.Client) -> None:
    model = make_pair("clip")
    with torch.no_grad():
        embeds = model.get_image_features(normalised(PICTURES[:1], "clip")).pooler_output[0]
    answer = http.post("/embed?model=clip", content=png(PICTURES[0])).json()
    assert (
        len(answer["embedding"])
        == WIDTH
        == http.get("/models").json()["models"][0]["embedding_dim"]
    )
    np.testing.assert_allclose(answer["embedding"], embeds.numpy(), atol=1e-4)
    # The cosines of the model without an activation follow from it.
    scores = by_label(http.post("/classify?model=cosine&top_k=6", content=png(PICTURES[0])).json())
    logits = logits_per_image(model, normalised(PICTURES[:1], "clip"), BIRDS)[0]
    cosines = logits / model.logit_scale.exp()
    np.testing.assert_allclose([scores[bird] for bird in BIRDS], cosines.numpy(), atol=1e-5)
    # Without text, a CLIP gives the features before its projection.
    plain = http.post("/embed?model=features", content=png(PICTURES[0])).json()
    assert len(plain["embedding"]) == 32


def test_triton_s_client_gets_labels_and_scores(url: str) -> None:
    values = normalised(PICTURES, "clip").numpy()
    tensor = triton.InferInput("pixel_values", values.shape, "FP32")
    tensor.set_data_from_numpy(values)
    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        result = client.infer("clip", [tensor], parameters={"text": "colours", "top_k": 2})
    labels = result.as_numpy("labels")
    scores = result.as_numpy("scores")
    for names, row, exact in zip(labels, scores, expected("clip", COLOURS), strict=True):
        found = dict(zip((name.decode() for name in names), row, strict=True))
        assert [found[colour] for colour in COLOURS] == pytest.approx(exact.tolist(), abs=1e-4)


def test_the_client_names_a_label_set(url: str) -> None:
    with Client(url) as client:
        best = client.classify(png(PICTURES[0]), model="clip", text="colours")
        assert {each.label for each in best.predictions} == set(COLOURS)
        first, _ = client.classify_many([png(PICTURES[0])] * 2, model="clip", text="colours")
        assert isinstance(first, Classification)
        assert first.predictions[0].label == best.predictions[0].label
        assert client.models()[0].label_sets == {"birds": 6, "colours": 2}
        with pytest.raises(ProblemError, match="birds, colours"):
            client.classify(png(PICTURES[0]), model="clip", text="fish")


def options(folder: Path, text: str) -> list[str]:
    model = ["--config", str(folder / "models.toml"), "--model", "clip", "--text", text]
    machine = ["--device", "cpu", "--dtype", "float32", "--threads", "1"]
    return [*model, *machine, "--log-level", "error"]


def test_the_command_classifies_with_a_label_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "0.png"
    picture.write_bytes(png(PICTURES[0]))
    assert main(["classify", str(picture), "--json", *options(folder, "colours")]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert_same(answer, expected("clip", COLOURS)[0], COLOURS)
    table = tmp_path / "labels.csv"
    arguments = ["classify", str(tmp_path), "-o", str(table), "--top", "1"]
    assert main([*arguments, *options(folder, "colours")]) == 0
    (row,) = table.read_text().splitlines()[1:]
    assert row.split(",")[1] == answer["predictions"][0]["label"]
    assert main(["classify", str(picture), *options(folder, "fish")]) == 1
    assert "has no label set 'fish'; there are birds, colours" in capsys.readouterr().err


def test_evaluate_counts_the_labels_of_a_set(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = expected("clip", COLOURS).argmax(dim=1).tolist()
    labels[0] = 1 - labels[0]  # one is wrong
    for number, pixels in enumerate(PICTURES):
        own = tmp_path / COLOURS[labels[number]]
        own.mkdir(exist_ok=True)
        (own / f"{number}.png").write_bytes(png(pixels))
    assert main(["evaluate", str(tmp_path), "-r", "0", *options(folder, "colours")]) == 0
    assert "75.00" in capsys.readouterr().out
