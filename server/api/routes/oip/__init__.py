"""The Open Inference Protocol, version 2, over HTTP: routes, JSON, and binary tensors."""
