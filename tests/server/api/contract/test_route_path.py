import pytest

from server.api.contract.route_path import route_path


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ({"path": "/classify"}, "/classify"),
        ({"path": "/vision/classify", "root_path": "/vision"}, "/classify"),
        ({"path": "/vision/vision/classify", "root_path": "/vision"}, "/vision/classify"),
        ({"path": "/classify", "root_path": "/vision"}, "/classify"),
    ],
)
def test_the_path_of_a_route_has_no_proxy_prefix(scope, path):
    assert route_path(scope) == path
