import pytest

from tests.docs.blocks import read_blocks

TEXT = """# Title
```bash
curl x
```

<!-- output -->

~~~json
{"a": "```"}
~~~
<!-- not run: needs a GPU -->
```
nothing
```
* a list
  ```python
  if 1:
      pass
  ```
"""


def test_blocks_with_their_comments():
    bash, output, skipped, python = read_blocks(TEXT, "x.md")
    assert (str(bash), bash.language, bash.text, bash.comment) == ("x.md:2", "bash", "curl x\n", "")
    assert (output.language, output.text, output.is_output) == ("json", '{"a": "```"}\n', True)
    assert (skipped.language, skipped.reason) == ("", "needs a GPU")
    assert (python.text, python.reason) == ("if 1:\n    pass\n", "")


def test_a_comment_is_for_the_next_block_alone():
    blocks = read_blocks(
        "<!-- not run: why -->\n```\n```\n```\n```\n<!-- output -->\ntext\n```\n```\n", "x.md"
    )
    assert [block.comment for block in blocks] == ["<!-- not run: why -->", "", ""]


def test_a_fence_that_is_never_closed():
    with pytest.raises(ValueError, match=r"x\.md:1: the block is never closed"):
        read_blocks("```bash\ncurl\n", "x.md")


@pytest.mark.parametrize(
    ("comment", "server", "needs"),
    [
        ("server: http://127.0.0.1:8000/readyz", "http://127.0.0.1:8000/readyz", ""),
        ("server: http://127.0.0.1:8001/, needs: litserve", "http://127.0.0.1:8001/", "litserve"),
        ("needs: faiss", "", "faiss"),
        ("output", "", ""),
    ],
)
def test_what_a_block_serves_and_needs(comment, server, needs):
    (block,) = read_blocks(f"<!-- {comment} -->\n```\n```\n", "x.md")
    assert (block.server, block.needs) == (server, needs)
