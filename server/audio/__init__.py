"""Sound: containers, decoding, log-mel spectrograms, windows, and their picture. No torch."""
