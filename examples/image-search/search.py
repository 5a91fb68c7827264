"""Find the pictures of an index that are most like one picture.

python examples/image-search/search.py features.safetensors examples/bag.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from index import Index

from tome_client import Client


def main() -> None:
    """Print the nearest pictures with their cosines, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="written by tome-serve embed --normalize")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    args = parser.parse_args()

    index = Index.read(args.index)
    with Client(args.server) as client:
        # Vectors are compared with those of the same model and the same r.
        query = client.embed(args.picture, model=index.model, r=index.r, normalize=True)
    for path, cosine in index.nearest(query, args.count):
        print(f"{cosine:.2f} {path}")


if __name__ == "__main__":
    main()
