"""The page with other settings: keys, several models, a metrics port, a path prefix."""

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
from tests.server.other_models import write_other_models
from tests.server.page import browser as browsers
from tests.server.page.conftest import UNKNOWN
from tests.server.wire import SNEAKER

KEY = "the-right-key"
# So strong that it is faster than r=0 on every machine: the server chooses no level that is not.
MERGED = 24


@pytest.fixture(scope="module")
def models(browser, tmp_path_factory) -> Path:
    """The TOML file of two tiny models: one returns logits, one has no classifier."""
    return write_other_models(tmp_path_factory.mktemp("models"), ("plain", "bare"))


@pytest.fixture(scope="module")
def server_with_keys(models, start_server):
    """A server of these models that requires a key and has its own metrics port."""
    with start_server(
        config=models, api_keys=KEY, metrics_port=free_port(), levels="0,2"
    ) as server:
        yield server


@pytest.fixture
def page_with_key(page, server_with_keys):
    page.open(f"{server_with_keys.url}/")
    page.wait_until(lambda: page.is_shown("access"), "the field for a key")
    assert not page.is_shown("problem")
    for key in ("a-wrong-key", KEY):
        page.element("key").clear()
        page.element("key").send_keys(key + "\n")
        if key != KEY:
            page.wait_until(lambda: page.is_shown("problem"), "that the key is wrong")
            assert "key" in page.text("problem")
    page.wait_for_tokens("3 of 9 tokens")  # the page reduces r to what the model allows
    return page


def test_the_page_asks_for_a_key_and_keeps_it(page_with_key):
    assert not page_with_key.is_shown("access")
    assert not page_with_key.is_shown("problem")
    page_with_key.browser.refresh()
    page_with_key.wait_for_tokens("3 of 9 tokens")
    assert not page_with_key.is_shown("access")


def test_logits_are_not_shown_as_percentages(page_with_key):
    scores = page_with_key.texts("#labels b")
    assert len(scores) == 5
    assert all(re.fullmatch(r"-?\d+\.\d\d", score) for score in scores)


def test_a_model_without_classes_shows_its_features(page_with_key):
    assert page_with_key.text("model").splitlines() == ["plain", "bare"]
    page_with_key.forget_answer()
    Select(page_with_key.element("model")).select_by_value("bare")
    page_with_key.wait_until(
        lambda: page_with_key.text("agreement").startswith("cosine to r = 0: "), "its features"
    )
    assert page_with_key.text("labels") == "32 features; this model has no classifier"
    assert -1 <= float(page_with_key.text("agreement").rpartition(" ")[2]) <= 1.0001
    page_with_key.wait_for_regions("4")


def test_metrics_on_another_port_are_reported_as_missing(page_with_key):
    page_with_key.wait_until(
        lambda: "port of their own" in page_with_key.text("live-note"), "why there is no chart"
    )
    assert not page_with_key.is_shown("throughput")


@contextlib.contextmanager
def overloaded(server) -> Iterator[None]:
    """Overload ``server`` with requests of r=auto, so that it merges tokens for all of them."""
    done = threading.Event()

    def send_requests() -> None:
        while not done.is_set():
            httpx.post(
                f"{server.url}/classify?r=auto", files=[("f", ("f", SNEAKER))] * 32, timeout=30
            )

    load = threading.Thread(target=send_requests)
    load.start()
    try:
        merged = f'tome_images_total{{model="fashion-mnist",r="{MERGED}"}}'
        eventually(lambda: server.metric(merged) >= 1)
        yield
    finally:
        done.set()
        load.join()


def is_merged(page) -> bool:
    """Whether the page shows the answer at `MERGED`; if it shows another, it asks again.

    The queue may have been empty when the server chose.
    """
    tokens = page.tokens()
    if tokens == "2 of 197 tokens":
        return True
    if tokens:
        page.ask_again()
    return False


def test_the_page_draws_and_times_the_r_that_the_server_chooses(page, start_server):
    with start_server(levels=f"0,{MERGED}", target_ms=20, max_batch=4) as server:
        page.open(f"{server.url}/")
        page.wait_for_tokens("11 of 197 tokens")
        page.move_slider(8000, "deadline")
        with overloaded(server):
            page.element("auto").click()
            page.wait_until(lambda: is_merged(page), "that the server merges")
        assert page.text("r-value") == f"r = {MERGED}, chosen for 8000 ms"
        assert page.element("r").get_attribute("value") == "16"
        page.wait_for_regions(str(MERGED))
        assert page.text("forward-r") == f"r = {MERGED}"
        chosen = page.attributes("#level-rows [aria-current=true]", "data-r")
        assert chosen == [str(MERGED)]
        page.browser.get("about:blank")  # ends its requests for metrics


@pytest.fixture
def prefix(server) -> Iterator[str]:
    """The address of a proxy that serves ``server`` below ``/models/try/``."""

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


def test_it_works_below_a_path_prefix_of_a_proxy(page, prefix):
    page.open(prefix)
    page.wait_for_tokens("11 of 197 tokens")
    page.wait_for_regions("16")
    page.wait_until(lambda: page.text("throughput-now") != UNKNOWN, "the metrics")
    page.browser.get("about:blank")  # ends its requests for metrics
    assert browsers.console_messages(page.browser) == []


def test_while_models_load_it_says_so_and_retries(page, models, start_server):
    with start_server(wait=False, config=models, levels="0") as server:
        page.wait_until(server.engines, "that an engine is started")
        server.signal_engine(signal.SIGSTOP)  # so that it does not get ready before the test looks
        page.wait_until(lambda: is_listening(server), "that it listens")
        page.open(f"{server.url}/")
        page.wait_until(lambda: "Trying again" in page.text("problem"), "that it is not ready")
        server.signal_engine(signal.SIGCONT)
        # A click cancels the request that the page is retrying. It is by script, since the page
        # may draw the examples again meanwhile.
        page.run_script("document.querySelector('#examples button').click()")
        page.wait_for_tokens("3 of 9 tokens")
        assert not page.is_shown("problem")


def is_listening(server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz").status_code == 200
    except httpx.ConnectError:
        return False
