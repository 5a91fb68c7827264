"""The same search with faiss: a graph of neighbours, of which a query visits a small part.

pip install faiss-cpu
python examples/image-search/search_faiss.py features.safetensors examples/bag.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import faiss
from index import Index

from tome_client import Client

NEIGHBOURS = 32  # of each picture in the graph: more find better, and take more memory


def main() -> None:
    """Print the nearest pictures with their cosines, best first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("index", type=Path, help="written by tome-serve embed --normalize")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    args = parser.parse_args()

    index = Index.read(args.index)
    # A service builds the graph once, and keeps it with faiss.write_index.
    graph = faiss.IndexHNSWFlat(index.vectors.shape[1], NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    graph.add(index.vectors)

    with Client(args.server) as client:
        query = client.embed(args.picture, model=index.model, r=index.r, normalize=True)
    cosines, rows = graph.search(query[None], args.count)  # (1, count) each
    for cosine, row in zip(cosines[0], rows[0], strict=True):
        print(f"{cosine:.2f} {index.paths[row]}")


if __name__ == "__main__":
    main()
