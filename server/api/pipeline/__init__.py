"""The way of an image through the API process: admission, body, decoding, inference, answer."""
