import pytest

from tests.examples.recipes import Recipe


@pytest.mark.slow
def test_readme(default_server, tmp_path):
    Recipe("image-search", tmp_path, running=default_server).test()
