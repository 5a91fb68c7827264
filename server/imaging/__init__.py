"""Images: formats, decoding, orientation, resizing, and the picture of merged regions. No torch."""
