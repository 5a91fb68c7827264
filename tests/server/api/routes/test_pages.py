import base64
import hashlib
import tomllib

import pytest

from server.api.routes.pages import STATIC_FOLDER, Page, content_security_policy, load_assets
from tests.server.conftest import ROOT


def hash_source(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_inline_scripts_and_styles_of_a_page_are_allowed_and_no_others():
    policy = content_security_policy(
        "<style>\nb {}\n</style><script>\n1 < 2\n</script><script type=x>ü</script>"
    )
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert (
        directives["script-src"] == f"{hash_source(chr(10) + '1 < 2' + chr(10))} {hash_source('ü')}"
    )
    assert directives["style-src"] == hash_source("\nb {}\n")
    assert (
        directives["default-src"]
        == directives["frame-ancestors"]
        == directives["base-uri"]
        == "'none'"
    )


def test_a_page_without_scripts_allows_none():
    assert "script-src 'none'" in content_security_policy("<p>text</p>")


def test_a_page_that_loads_files_allows_those_of_this_server():
    html = '<link rel="icon" href=i><script>1</script><script type="module" src="a.js"></script>'
    directives = dict(part.split(" ", 1) for part in content_security_policy(html).split("; "))
    assert directives["script-src"] == f"{hash_source('1')} 'self'"
    assert directives["style-src"] == "'none'"
    assert "style-src 'self'" in content_security_policy('<link rel="stylesheet" href="s.css">')


@pytest.mark.parametrize("name", ["docs.html", "page/index.html"])
def test_pages_have_security_headers(name):
    headers = Page(name).response().headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "'unsafe-inline'" not in headers["content-security-policy"]


ASSETS = load_assets(STATIC_FOLDER / "page")


def test_a_known_asset_is_not_sent_again():
    asset = ASSETS["page.js"]
    first = asset.response()
    assert first.body == (STATIC_FOLDER / "page/page.js").read_bytes()
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    assert first.headers["x-content-type-options"] == "nosniff"
    for if_none_match in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = asset.response(if_none_match)
        assert (again.status_code, again.body, again.headers["etag"]) == (
            304,
            b"",
            first.headers["etag"],
        )
    assert asset.response('"other"').status_code == 200


def test_the_example_images_are_those_of_the_repository():
    packaged = {
        path.name: path.read_bytes() for path in (STATIC_FOLDER / "page/examples").iterdir()
    }
    files = [path for path in (ROOT / "examples").iterdir() if path.is_file()]
    media = {path.name: path.read_bytes() for path in files if path.suffix != ".md"}
    assert packaged == media
    assert all(f"examples/{name}" in ASSETS for name in packaged)


def test_the_page_is_small():
    text = [path for path in (STATIC_FOLDER / "page").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in text) < 60 * 1024


def test_the_wheel_has_all_static_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-data"
    ]["server"]
    found = {path for pattern in patterns for path in (ROOT / "server").glob(pattern)}
    assert {path for path in STATIC_FOLDER.rglob("*") if path.is_file()} <= found
