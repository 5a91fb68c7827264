"""The Open Inference Protocol, version 2, over HTTP: its paths, its JSON, and its binary tensors."""
