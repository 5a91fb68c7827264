import httpx
import pytest

from tests.examples.recipes import Recipe
from tests.server.wire import EXAMPLES


@pytest.mark.slow
def test_readme_and_both_answer_the_same(tmp_path):
    recipe = Recipe("from-litserve", tmp_path)
    with recipe.run():
        recipe.skip_if_incomplete()
        for name, picture in EXAMPLES.items():
            files = {"image": picture}
            theirs = httpx.post(f"{recipe.url('8001')}/predict", files=files, timeout=60).json()
            ours = httpx.post(f"{recipe.url('8000')}/classify", files=files, timeout=60).json()
            best = ours["results"][0]["predictions"][0]
            assert best["label"] == theirs["label"], name
            assert best["score"] == pytest.approx(theirs["score"], abs=0.02), name
