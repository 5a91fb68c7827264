"""The command line as a user sees it; a test of imports needs a process of its own."""

import io
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from server.catalog.entries import BUNDLED
from server.catalog.profiles import weights_digest
from tests.server.commands.conftest import Run
from tests.server.conftest import ROOT

TUNE = ("tune", "fashion-mnist", "examples")


def test_help_needs_neither_torch_nor_the_clients() -> None:
    code = (
        "import sys; from server.commands.cli import main; main(['--help']);"
        " print(*sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Usage: tome-serve [OPTIONS] COMMAND" in result.stdout
    imported = set(result.stderr.split())
    assert "server.commands.cli" in imported
    assert not imported & {"torch", "aiohttp", "rich", "tome_load", "tome_top"}


def test_help_says_in_full_what_each_command_does(tome_serve: Run) -> None:
    text = " ".join(tome_serve("--help").stdout.split())
    assert "classify FILE... classify images, sounds or videos here, without a server; - is" in text
    kinds = "images, sounds or videos"
    assert f"a folder of labelled {kinds}, or the Fashion-MNIST files; with --task embed" in text
    assert "what r costs embeddings, without labels tune MODEL FOLDER measure on" in text
    assert text.endswith("top watch a server: throughput by r, latency, speed-up, queue, refusals")


@pytest.mark.parametrize(
    "command",
    [
        "serve",
        "models",
        "classify",
        "embed",
        "visualize",
        "evaluate",
        "tune",
        "text",
        "load",
        "top",
    ],
)
def test_each_command_has_help(tome_serve: Run, command: str) -> None:
    result = tome_serve(command, "--help")
    assert result.returncode == 0
    assert f"Usage: tome-serve {command}" in result.stdout


def test_classify_prints_the_best_classes(tome_serve: Run) -> None:
    result = tome_serve("classify", "examples/ankle-boot.png", "--r", "16", "--top-k", "3")
    lines = result.stdout.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("Ankle boot")
    assert lines[-1] == "r=16: 11 of 197 tokens left"
    lines = result.stderr.splitlines()
    steps = re.findall(r"^(.*): done in \d+\.\d s$", result.stderr, re.MULTILINE)
    assert steps[0] == "tome-serve: importing PyTorch and timm"
    assert "fashion-mnist: loading vit_tiny_patch16_224 with" in steps[1]
    # Each step has a line of its own before it begins.
    assert set(steps) <= set(lines)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return pipe


def test_classify_takes_several_files_and_standard_input(
    tome_serve: Run, piped: Callable[[bytes], None]
) -> None:
    piped((ROOT / "examples/sneaker.jpg").read_bytes())
    files = ["examples/bag.png", "-", "examples/t-shirt-top.jpg"]
    result = tome_serve("classify", *files, "--top-k", "1", "--log-level", "warning")
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0::2] == [
        "examples/bag.png:",
        "-:",
        "examples/t-shirt-top.jpg:",
        "r=0: 197 of 197 tokens left",
    ]
    assert [line.split(maxsplit=1)[1] for line in lines[1::2]] == ["Bag", "Sneaker", "T-shirt/top"]


def test_classify_prints_json_and_goes_on_after_a_file_that_fails(
    tome_serve: Run, piped: Callable[[bytes], None]
) -> None:
    piped(b"")
    files = ["none.png", "-", "README.md", "examples/bag.png"]
    result = tome_serve("classify", *files, "--r", "16", "--top-k", "2", "--json")
    assert result.returncode == 1
    *failed, classified = map(json.loads, result.stdout.splitlines())
    assert [answer["file"] for answer in failed] == files[:3]
    reasons = ("cannot read none.png", "standard input is empty", "not an image of a supported")
    for answer, reason in zip(failed, reasons, strict=True):
        assert reason in answer["error"]
        assert reason in result.stderr
    labels = [each.pop("label") for each in classified["predictions"]]
    assert labels[0] == "Bag"
    assert classified["predictions"][0]["score"] > 0.99
    assert (classified["file"], classified["model"]) == ("examples/bag.png", "fashion-mnist")
    assert (classified["r"], classified["tokens"]) == ("16", {"input": 197, "output": 11})


def test_classify_runs_uncertain_images_again(tome_serve: Run) -> None:
    file = "examples/bag.png"
    command = ("classify", file, "--r", "20", "--confidence-r", "4", "--json")
    again = json.loads(tome_serve(*command, "--confidence", "1").stdout)
    assert again["passes"] == [{"r": "20"}, {"r": "4"}]
    assert (again["r"], again["predictions"][0]["label"]) == ("4", "Bag")
    certain = json.loads(tome_serve(*command, "--confidence", "0").stdout)
    assert (certain["passes"], certain["confident"]) == ([{"r": "20"}], True)
    exact = json.loads(tome_serve("classify", file, "--json", "--confidence", "1").stdout)
    assert (exact["passes"], exact["confident"]) == ([{"r": "0"}], True)
    failed = tome_serve("classify", file, "--r", "4", "--confidence", "1", "--confidence-r", "8")
    assert failed.returncode == 1
    assert "--confidence-r must merge less than -r" in failed.stderr


def test_the_version_is_that_of_the_project(tome_serve: Run) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for flag in ("--version", "-V"):
        result = tome_serve(flag)
        assert (result.returncode, result.stdout) == (0, f"tome-serve {project['version']}\n")


def test_visualize_draws_merged_regions(tome_serve: Run, tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    result = tome_serve("visualize", "examples/ankle-boot.png", "--r", "16", "-o", str(picture))
    assert result.stdout == f"{picture}: r=16: 11 of 197 tokens left\n"
    with Image.open(picture) as image:
        assert (image.format, image.size) == ("PNG", (224, 224))
        colours = image.getcolors()
    assert colours is not None
    # The image is grey, so only outlines have a hue: one for each region of merged patches.
    hues = [colour for _, colour in colours if isinstance(colour, tuple) and len(set(colour)) > 1]
    assert len(hues) == 10


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["fly"], 2, "No such command 'fly'"),
        (["serve", "--fly"], 2, "No such option '--fly'"),
        (["serve", "--port"], 2, "Option '--port' requires an argument"),
        (["serve", "--port", "x"], 1, "port: Input should be a valid integer"),
        (["serve", "--config", "none.toml"], 1, "cannot read none.toml: No such file"),
        (["classify", "none.png"], 1, "cannot read none.png"),
        (["classify", "README.md"], 1, "not an image of a supported format"),
        (["classify", "examples/bag.png", "--r", "fast"], 1, "'fast' is not a schedule"),
        (
            ["classify", "examples/bag.png", "--model", "m"],
            1,
            "there is no model 'm'; there are fashion-mnist",
        ),
        (["visualize", "none.png"], 1, "cannot read none.png"),
        (
            ["visualize", "examples/bag.png", "-o", "none/x.png"],
            1,
            "cannot write none/x.png: No such file",
        ),
        (
            ["visualize", "examples/bag.png", "-o", "x.pictures"],
            1,
            "x.pictures has no suffix of a picture file; use .png",
        ),
        (["evaluate", "examples"], 1, "has no sub-folder of images"),
        (["evaluate", "examples", "--merging=paper best"], 1, "'best' is not a rule"),
        (
            ["evaluate", "examples", "--profile", "none/p.json"],
            1,
            "cannot write none/p.json: there is no folder none",
        ),
        (["tune"], 2, "Missing argument 'MODEL'"),
        (["tune", "fashion-mnist", "none"], 1, "none is not a folder"),
        (["tune", "fashion-mnist", "server/catalog"], 1, "catalog holds no picture"),
        (["tune", "cats", "examples"], 1, "there is no model 'cats'"),
        (
            ["tune", "fashion-mnist", "examples", "--profile", "none/p.json"],
            1,
            "cannot write none/p.json: there is no folder none",
        ),
        (
            [*TUNE, "--profile", "server/bundled/fashion-mnist.profile.json"],
            1,
            "has accuracies that tome-serve evaluate measured; name another --profile",
        ),
        (["load", "none.png"], 1, "cannot read none.png: No such file"),
        (["load", "tests"], 1, "tests holds no image file"),
        (["load", "--rate", "0"], 1, "rate must be above 0, got 0"),
        (
            ["load", "--rate", "5", "--connections", "5"],
            1,
            "either a rate (open loop) or a number of connections",
        ),
        (
            ["load", "--requests", "5", "--duration", "5"],
            1,
            "either a duration or a number of requests",
        ),
        (["load", "--url", "localhost"], 1, "'localhost' is not the URL of a server"),
        (
            ["load", "--url", "http://127.0.0.1:9"],
            1,
            "http://127.0.0.1:9 gives no answer: Connection refused",
        ),
        (
            ["load", "--arrivals", "never"],
            1,
            "arrivals: Input should be 'poisson', 'constant' or 'bursty'",
        ),
        (["load", "--api-key-file", "none"], 1, "cannot read the API key in none: No such file"),
        (
            ["top", "--url", "http://127.0.0.1:9"],
            1,
            "http://127.0.0.1:9: no answer: Connection refused",
        ),
        (["top", "--url", "localhost"], 1, "'localhost' is not the URL of a server"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    tome_serve: Run, arguments: list[str], code: int, sentence: str
) -> None:
    result = tome_serve(*arguments)
    assert result.returncode == code
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_models_lists_the_cost_of_each_level(tome_serve: Run) -> None:
    output = tome_serve("models").stdout
    assert "fashion-mnist" in output
    assert "197, 100%" in output
    assert re.search(r"11, \d\d%", output)
    assert re.search(r"slots: 256 of [\d,]+ bytes, \d+ MB at most", output)


def test_evaluate_measures_over_a_labelled_folder(tome_serve: Run, tmp_path: Path) -> None:
    data = tmp_path / "data"
    labels = (BUNDLED.parent / "fashion-mnist.labels.txt").read_text().splitlines()[:10]
    for index, label in enumerate(labels):
        folder = data / label.replace("/", "-")
        folder.mkdir(parents=True)
        Image.new("L", (28, 28), 10 * index).save(folder / "one.png")
    profile = tmp_path / "profile.json"
    plot = tmp_path / "plot.png"
    # The entry already names the profile that is about to be written.
    entry = BUNDLED.read_text().replace('"fashion-mnist.', f'"{BUNDLED.parent}/fashion-mnist.')
    config = tmp_path / "models.toml"
    config.write_text(re.sub(r"(?m)^profile = .*$", 'profile = "profile.json"', entry))
    files = ["--config", str(config), "--profile", str(profile), "--plot", str(plot)]
    rules = "--merging=nearest paper"
    result = tome_serve("evaluate", str(data), "--r=8 16:-1", rules, "--batch=4", *files)
    assert result.returncode == 0, result.stderr
    assert "accuracy %" in result.stdout
    written = json.loads(profile.read_text())
    rows = written["levels"]
    assert (written["images"], written["compared_with"]) == (10, "r=0")
    assert written["weights"] == weights_digest(BUNDLED.with_name("fashion-mnist.safetensors"))
    assert [row["r"] for row in rows] == ["0", "8", "16:-1"] * 2
    assert all(row["accuracy"] % 10 == 0 and row["images_per_s"] > 0 for row in rows)
    assert rows[0]["agreement"] == rows[0]["agreement_low"] == 100
    assert [row["merging"] for row in rows] == ["paper"] * 3 + ["nearest"] * 3
    assert all(row["prop_attn"] for row in rows)
    assert rows[0]["margin"] is rows[3]["margin"] is None
    for row in (*rows[1:3], *rows[4:]):
        # Ten images show no more than 74% (0.05 ** 0.1), and that only if none differs.
        assert row["margin_agreement"] == pytest.approx(74.113)
        assert 0 <= row["margin"] <= 1
        assert 0 <= row["second_passes"] <= 100
        assert row["cascade_accuracy"] % 10 == 0
    assert "Agreement of the best class with r=0" in " ".join(result.stdout.split())
    with Image.open(plot) as picture:
        assert picture.size[0] > 500

    classify = ("classify", "examples/bag.png", "--config", str(config), "--confidence", "auto")
    answer = json.loads(tome_serve(*classify, "--r", "8", "--json").stdout)
    assert answer["confident"]
    unknown = tome_serve(*classify, "--r", "4")
    assert unknown.returncode == 1
    assert "has no margin for r=4" in unknown.stderr

    profile.write_text("{}")
    failed = tome_serve("evaluate", str(data), "--beside", str(profile), "--plot", str(plot))
    assert failed.returncode == 1
    assert "that tome-serve evaluate or tune wrote" in failed.stderr
