"""The fenced code blocks of Markdown files, and what the comment before each says of it.

A block is run as it stands, unless a comment right before its fence says otherwise:

    <!-- not run: why -->     it cannot be
    <!-- output -->           it is what the block before it printed
    <!-- needs: litserve -->  it is run where that Python package is installed
    <!-- server: URL -->      in examples/: it runs until the end of its file; the next block waits
                              until the URL answers with 200

A server may need a package too: ``<!-- server: URL, needs: litserve -->``.

JSON of an output must have the members and types of what was printed; other text must be that text,
in examples/ but for the last digit of decimal numbers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

OUTPUT = "<!-- output -->"
_FENCE = re.compile(r"^(\s*)(`{3,}|~{3,})\s*([\w+-]*)[^`]*$")
_NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
_SERVER = re.compile(r"^<!-- server: ([^ ,]+)(?:, needs: \w+)? -->$")
_NEEDS = re.compile(r"^<!-- (?:server: [^ ,]+, )?needs: (\w+) -->$")


@dataclass(frozen=True)
class Block:
    """One block.

    Attributes:
        comment: the line before the fence, if it is a comment.
    """

    file: str
    line: int
    language: str
    text: str
    comment: str = ""

    @property
    def reason(self) -> str:
        """Why it is not run; empty if it is."""
        found = _NOT_RUN.match(self.comment)
        return found[1].strip() if found else ""

    @property
    def is_output(self) -> bool:
        return self.comment == OUTPUT

    @property
    def server(self) -> str:
        """The URL at which it serves; empty if it starts no server."""
        found = _SERVER.match(self.comment)
        return found[1] if found else ""

    @property
    def needs(self) -> str:
        """The Python package that it is not run without; empty if there is none."""
        found = _NEEDS.match(self.comment)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def read_blocks(text: str, file: str) -> list[Block]:
    """All blocks of a Markdown text. A fence that is never closed is an error."""
    blocks = []
    lines = iter(enumerate(text.splitlines(), 1))
    comment = ""
    for number, line in lines:
        opening = _FENCE.match(line)
        if not opening:
            # A blank line between a comment and its block changes nothing.
            comment = line.strip() if line.strip() else comment
            continue
        indent, fence, language = opening.groups()
        content = []
        for _, inner in lines:
            if re.fullmatch(rf"\s*{re.escape(fence[0])}{{{len(fence)},}}\s*", inner):
                break
            content.append(inner.removeprefix(indent))
        else:
            raise ValueError(f"{file}:{number}: the block is never closed")
        is_comment = comment.startswith("<!--")
        blocks.append(
            Block(file, number, language, "\n".join(content) + "\n", comment if is_comment else "")
        )
        comment = ""
    return blocks


def read_files(paths: list[Path], root: Path) -> list[Block]:
    return [
        block
        for path in paths
        for block in read_blocks(path.read_text("utf-8"), str(path.relative_to(root)))
    ]
