import pytest

from tests.examples.recipes import Recipe

pytestmark = pytest.mark.slow


def test_readme(tmp_path):
    pytest.importorskip("transformers", reason="needs the extra text")
    pytest.importorskip("server.commands.text", reason="there is no tome-serve text")
    with Recipe("zero-shot", tmp_path).run():
        pass
