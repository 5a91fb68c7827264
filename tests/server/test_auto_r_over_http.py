"""Adaptive r (``r=auto``) over HTTP, with the bundled model, whose levels are 0 and 16."""

from __future__ import annotations

import io
import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

from server.catalog.profiles import ProfileRow, write_profile
from tests.server.engine.tiny import write_tiny
from tests.server.wire import SNEAKER, assert_problem

RAW = {"Accept": "application/octet-stream"}


@pytest.mark.parametrize("path", ["/classify", "/embed"])
def test_an_idle_server_serves_the_exact_model(client, path):
    answer = client.post(f"{path}?r=auto&deadline_ms=20000", content=SNEAKER).json()
    assert (answer["r"], answer["r_requested"]) == ("0", "auto")
    assert answer["tokens"] == {"input": 197, "output": 197}
    exact = client.post(f"{path}?r=0", content=SNEAKER).json()
    assert set(answer) == set(exact)
    if path == "/classify":
        assert [each["label"] for each in answer["predictions"]] == [
            each["label"] for each in exact["predictions"]
        ]


def test_responses_without_json_report_the_schedule_in_a_header(client):
    picture = client.post("/visualize?r=auto&deadline_ms=20000", content=SNEAKER)
    assert picture.headers["x-tome-r"] == "0"
    assert Image.open(io.BytesIO(picture.content)).format == "PNG"
    auto = client.post("/embed?r=auto&deadline_ms=20000", content=SNEAKER, headers=RAW)
    assert auto.headers["x-tome-r"] == "0"
    assert client.post("/embed?r=16:1", content=SNEAKER, headers=RAW).headers["x-tome-r"] == "16:1"


@pytest.mark.parametrize(
    ("query", "used"), [("r_max=0", "0"), ("r_max=15", "0"), ("min_accuracy=90.8", "0")]
)
def test_an_idle_server_uses_the_smallest_r_within_the_bounds(client, query, used):
    for _ in range(3):
        assert (
            client.post(f"/classify?r=auto&deadline_ms=20000&{query}", content=SNEAKER).json()["r"]
            == used
        )


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("r=8&r_max=4", "r_max"),
        ("min_accuracy=90", "min_accuracy"),
        ("r=auto&min_accuracy=99.5", "min_accuracy"),
    ],
)
def test_bounds_that_leave_no_choice_are_rejected(client, query, parameter):
    problem = assert_problem(
        client.post(f"/classify?{query}", content=SNEAKER), 422, "invalid-parameter"
    )
    assert problem["parameter"] == parameter


def test_a_deadline_that_no_r_can_meet_is_refused_at_once(client):
    # A deadline this close may pass, on a busy machine, before the server looks at the clock.
    answers = (client.post("/classify?r=auto&deadline_ms=1", content=SNEAKER) for _ in range(100))
    refused = next(answer for answer in answers if answer.status_code != 504)
    problem = assert_problem(refused, 503, "overloaded")
    assert problem["reason"] == "deadline"
    assert re.fullmatch(
        r"the answer would take \S+ s, and the deadline is in \S+ s", problem["detail"]
    )
    assert int(refused.headers["retry-after"]) >= 1


def test_under_load_requests_that_name_r_keep_it(server):
    """More images arrive at once than r=0 can serve within the deadline; most of them name r."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        client.post("/classify", content=SNEAKER)
        files = [("f", ("f", SNEAKER))]
        queries = ["r=auto", "r=0", "r=16", "r=3"] * 6
        used: dict[str, set[str]] = {query: set() for query in queries}

        def ask(name: str, deadline_ms: int) -> None:
            query = f"{name}&deadline_ms={deadline_ms}" if name == "r=auto" else name
            answer = client.post(f"/classify?{query}", files=files * 8)
            assert answer.status_code == 200 or (
                "deadline" in query and answer.status_code in (503, 504)
            )
            results = answer.json()["results"] if answer.status_code == 200 else []
            used[name] |= {result["r"] for result in results if "r" in result}

        # On a busy machine a round may answer no request that has so close a deadline.
        for deadline_ms in (400, 800, 1600, 3200, 6400, 12_800):
            with ThreadPoolExecutor(len(queries)) as pool:
                list(pool.map(ask, queries, [deadline_ms] * len(queries)))
            if all(used.values()):
                break
    assert (used["r=0"], used["r=16"], used["r=3"]) == ({"0"}, {"16"}, {"3"})
    assert used["r=auto"]
    assert used["r=auto"] <= {"0", "16"}


def test_without_a_deadline_a_target_that_r_0_misses_makes_it_merge(start_server):
    """Even one image takes longer than the target. ``r=auto`` is the default here."""
    with start_server(default_r="auto", target_ms=1, max_batch=4) as server:
        files = [("f", ("f", SNEAKER))] * 32
        results = httpx.post(f"{server.url}/classify", files=files, timeout=30).json()["results"]
        assert {result["r_requested"] for result in results} == {"auto"}
        assert "16" in {result["r"] for result in results}
        assert server.metric('tome_images_total{model="fashion-mnist",r="16"}') >= 1
        named = httpx.post(f"{server.url}/classify?r=3", content=SNEAKER, timeout=30).json()
        assert (named["r"], named["r_requested"]) == ("3", "3")


def test_bounds_need_a_profile_that_has_them(start_server, tmp_path):
    """That of ``tune``, without labels: it has the agreement alone."""
    config = write_tiny(tmp_path)
    labels = 'labels = "labels.txt"'
    config.write_text(config.read_text().replace(labels, f'{labels}\nprofile = "p.json"'))
    rows = [
        ProfileRow("0", None, 17, 1, 100.0, 1.0, agreement=100, merging="paper", prop_attn=True),
        ProfileRow("4", None, 9, 0.7, 130.0, 1.3, agreement=97, agreement_low=95),
    ]
    write_profile(tmp_path / "p.json", rows, {})
    with start_server(config=config, levels="0,4", dtype="float32", target_ms=20_000) as server:
        (model,) = httpx.get(f"{server.url}/models").json()["models"]
        agreement = [(level["agreement"], level["agreement_low"]) for level in model["levels"]]
        assert agreement == [(100, None), (97, 95)]
        image = io.BytesIO()
        Image.new("RGB", (32, 32)).save(image, "PNG")
        refused = httpx.post(
            f"{server.url}/classify?r=auto&min_accuracy=50", content=image.getvalue(), timeout=30
        )
        assert "has no profile" in assert_problem(refused, 422, "invalid-parameter")["detail"]
        refused = httpx.post(
            f"{server.url}/embed?r=auto&min_fidelity=0.5", content=image.getvalue(), timeout=30
        )
        problem = assert_problem(refused, 422, "invalid-parameter")
        assert problem["parameter"] == "min_fidelity"
        assert "no profile of its fidelity" in problem["detail"]
        for query in ("r=auto", "r=auto&min_agreement=96", "r=auto&min_agreement=100"):
            answer = httpx.post(
                f"{server.url}/classify?{query}", content=image.getvalue(), timeout=30
            )
            assert answer.json()["r"] == "0"
