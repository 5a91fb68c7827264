"""Video: containers, decoding, sampling and crops, and the picture of a clip. No torch."""
