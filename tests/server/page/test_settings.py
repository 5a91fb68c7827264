"""The page before servers of other settings: keys, several models, metrics on a port of their own,
a path in front.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.support.select import Select

from tests.server.conftest import eventually, free_port
from tests.server.page import browser as browsers
from tests.server.page.conftest import UNKNOWN
from tests.server.test_outputs import ENTRY, write_model
from tests.server.wire import SNEAKER

KEY = "the-right-key"


@pytest.fixture(scope="module")
def models(browser, tmp_path_factory) -> Path:
    """The TOML file of two tiny models, of which one gives logits and one features."""
    folder = tmp_path_factory.mktemp("models")
    text = ""
    for name, classes, activation in (("logits", 7, "none"), ("bare", 0, "softmax")):
        write_model(folder / f"{name}.safetensors", classes)
        text += ENTRY.format(name=name, classes=classes, activation=activation)
    (folder / "models.toml").write_text(text)
    return folder / "models.toml"


@pytest.fixture(scope="module")
def guarded(models, start_server):
    """A server of these models that asks for keys and keeps its metrics elsewhere."""
    with start_server(
        config=models, api_keys=KEY, metrics_port=free_port(), levels="0,2"
    ) as server:
        yield server


@pytest.fixture
def let_in(page, guarded):
    page.open(f"{guarded.url}/")
    page.until(lambda: page.shown("access"), "the field for a key")
    assert not page.shown("problem")
    for key in ("a-wrong-key", KEY):
        page.at("key").clear()
        page.at("key").send_keys(key + "\n")
        if key != KEY:
            page.until(lambda: page.shown("problem"), "that the key is wrong")
            assert "key" in page.text("problem")
    page.until_tokens("3 of 9 tokens")  # r is cut to what the model can do
    return page


def test_a_key_is_asked_for_and_kept(let_in):
    assert not let_in.shown("access")
    assert not let_in.shown("problem")
    let_in.browser.refresh()
    let_in.until_tokens("3 of 9 tokens")
    assert not let_in.shown("access")


def test_logits_are_no_percentages(let_in):
    scores = [
        line.text.splitlines()[-1]
        for line in let_in.at("labels").find_elements("css selector", "li")
    ]
    assert len(scores) == 5
    assert all(re.fullmatch(r"-?\d+\.\d\d", score) for score in scores)


def test_models_are_chosen_and_one_may_have_no_classes(let_in):
    assert [option.text for option in Select(let_in.at("model")).options] == ["logits", "bare"]
    Select(let_in.at("model")).select_by_value("bare")
    let_in.until(lambda: let_in.text("agreement").startswith("cosine to r = 0: "), "its features")
    assert let_in.text("labels") == "32 features; this model has no classifier"
    assert -1 <= float(let_in.text("agreement").rpartition(" ")[2]) <= 1.0001
    let_in.until_regions("4")


def test_metrics_elsewhere_are_not_asked_for_again(let_in):
    let_in.until(lambda: "port of their own" in let_in.text("live-note"), "why there is no chart")
    assert not let_in.shown("throughput")


@contextlib.contextmanager
def merging(server) -> Iterator[None]:
    """Others ask for more, with r=auto, than ``server`` does in its target time; it merges for
    everyone who lets it.
    """
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            httpx.post(
                f"{server.url}/classify?r=auto", files=[("f", ("f", SNEAKER))] * 32, timeout=30
            )

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        eventually(lambda: server.metric('tome_images_total{model="fashion-mnist",r="8"}') >= 1)
        yield
    finally:
        done.set()
        asking.join()


def test_the_r_that_the_server_chooses_is_what_is_drawn_and_timed(page, start_server):
    with start_server(levels="0,8", target_ms=20, max_batch=4) as server:
        page.open(f"{server.url}/")
        page.until_tokens("11 of 197 tokens")
        page.slide(8000, "deadline")
        with merging(server):
            page.at("auto").click()
            page.until_tokens("101 of 197 tokens")
        assert page.text("r-value") == "r = 8, chosen for 8000 ms"
        assert page.at("r").get_attribute("value") == "16"
        page.until_regions("8")
        assert page.text("forward-r") == "r = 8"
        chosen = page.at("level-rows").find_element("css selector", "[aria-current=true]")
        assert chosen.get_attribute("data-r") == "8"
        page.browser.get("about:blank")  # it goes on asking for metrics


@pytest.fixture
def prefix(server) -> Iterator[str]:
    """The address of a proxy that has ``server`` below ``/models/try/``."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward()

        def do_POST(self) -> None:
            self.forward()

        def forward(self) -> None:
            if not self.path.startswith("/models/try/"):
                return self.send_error(404)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix("/models/try")
            answer = httpx.request(self.command, server.url + path, content=body, timeout=30)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy", "x-content-type-options"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        yield f"http://127.0.0.1:{proxy.server_port}/models/try/"
        proxy.shutdown()


def test_below_a_path_of_a_proxy(page, prefix):
    page.open(prefix)
    page.until_tokens("11 of 197 tokens")
    page.until_regions("16")
    page.until(lambda: page.text("throughput-now") != UNKNOWN, "the metrics")
    page.browser.get("about:blank")  # it goes on asking for metrics
    assert browsers.complaints(page.browser) == []


def test_while_models_load_it_says_so_and_goes_on(page, models, start_server):
    with start_server(wait=False, config=models, levels="0") as server:
        page.until(server.engines, "that an engine is started")
        server.signal_engine(signal.SIGSTOP)  # so that it does not get ready meanwhile
        page.until(lambda: listens(server), "that it listens")
        page.open(f"{server.url}/")
        page.until(lambda: "Trying again" in page.text("problem"), "that it is not ready")
        server.signal_engine(signal.SIGCONT)
        page.at("examples").find_element(
            "tag name", "button"
        ).click()  # which gives up what was asked before
        page.until_tokens("3 of 9 tokens")
        assert not page.shown("problem")


def listens(server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False
