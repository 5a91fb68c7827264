import pytest

from tests.examples.recipes import Recipe

pytestmark = pytest.mark.slow


def test_readme(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra text")
    Recipe("zero-shot", tmp_path).test()
