import base64
import hashlib

from server.api.pages import Page, content_security_policy


def allowed(text):
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def test_what_is_in_the_page_may_run_and_nothing_else():
    policy = content_security_policy("<style>\nb {}\n</style><script>\n1 < 2\n</script><script type=x>ü</script>")
    directives = dict(part.split(" ", 1) for part in policy.split("; "))
    assert directives["script-src"] == f"{allowed(chr(10) + '1 < 2' + chr(10))} {allowed('ü')}"
    assert directives["style-src"] == allowed("\nb {}\n")
    assert directives["default-src"] == directives["frame-ancestors"] == directives["base-uri"] == "'none'"


def test_a_page_without_scripts_may_run_none():
    assert "script-src 'none'" in content_security_policy("<p>text</p>")


def test_headers():
    headers = Page("docs.html").response().headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    assert "'unsafe-inline'" not in headers["content-security-policy"]
