import pytest

from server.api.contract.content_negotiation import prefers

RAW = "application/octet-stream"
JSON = "application/json"


@pytest.mark.parametrize(
    ("accept", "raw"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        (RAW, True),
        ("Application/Octet-Stream", True),
        (f"{RAW}, */*;q=0.1", True),
        (f"{RAW}, {JSON}", False),
        (f"{RAW};q=0.5, {JSON};q=0.9", False),
        (f"{RAW} ; q=0.9,{JSON};q=0.5", True),
        (f"*/*, {JSON};q=0.2", True),
        (f"application/*;q=0.9, {RAW};q=0", False),
        ("image/png", False),
        (f"{RAW};q=x", False),
        (f"{RAW};q=7, {JSON}", False),
        (";,;,=,q=1", False),
    ],
)
def test_the_media_type_with_the_higher_weight_is_preferred(accept, raw):
    assert prefers(accept, RAW, JSON) is raw
