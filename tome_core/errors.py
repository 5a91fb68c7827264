"""The one error of the core that is not a plain ``ValueError`` or ``TypeError``."""


class UnsupportedModelError(ValueError):
    """The model, or a part of it, is not one that the core understands in full; the message names the part.

    A model is exact or refused: half a patch would give wrong answers silently.
    """
