"""What clients of OpenAI's API speak: ``/v1/embeddings`` and ``/v1/models``."""
