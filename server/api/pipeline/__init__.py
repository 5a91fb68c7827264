"""The way of an image through the API process: admission, body, decode, submit, response."""
