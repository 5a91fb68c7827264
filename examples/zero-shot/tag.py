"""Tag the pictures of a folder: the best label of each label set, if the model is sure of it.

python examples/zero-shot/tag.py tagging/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tome_client import Client, ProblemError


def main() -> None:
    """Print each picture with its tags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--at-least", type=float, default=0.5, help="probability of a tag")
    parser.add_argument("--r", type=int, default=4, help="tokens merged away in each block")
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    args = parser.parse_args()

    paths = sorted(path for path in args.folder.iterdir() if path.is_file())
    tags: dict[Path, list[str]] = {path: [] for path in paths}
    with Client(args.server) as client:
        model = client.models()[0]
        for name in model.label_sets:
            answers = client.classify_many(paths, model=model.name, text=name, r=args.r, top_k=1)
            for path, answer in zip(paths, answers, strict=True):
                if isinstance(answer, ProblemError):
                    print(f"{path}: {answer}")
                elif answer.predictions[0].score >= args.at_least:
                    tags[path].append(answer.label)
    for path, found in tags.items():
        print(path.name, *found)


if __name__ == "__main__":
    main()
