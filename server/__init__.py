"""An HTTP server for token-merged Vision Transformers."""
