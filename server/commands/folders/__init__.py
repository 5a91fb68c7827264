"""Embeddings and labels of all pictures of a folder or a list, without a server."""
