"""The API process: HTTP, admission, decoding, responses. Imports no torch."""
