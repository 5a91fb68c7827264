"""The error for models that the core does not support."""


class UnsupportedModelError(ValueError):
    """The core does not fully understand the model; the message names the part.

    A model gives exact results or is refused. A model patched in part would give wrong results
    without notice.
    """
