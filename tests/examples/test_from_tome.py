from tests.examples.recipes import Recipe


def test_readme(tmp_path):
    with Recipe("from-tome", tmp_path).run():
        pass
