"""The spoken-language model: its recordings, its training and its evaluation."""
