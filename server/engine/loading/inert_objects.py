"""Metadata that training scripts store beside weights, read without running any code of it.

`torch.load` in its weights-only mode refuses every class that it is not given. The objects named
here are plain data, and the server needs none of them: stand-ins take their place. Neither their
modules nor their constructors are ever called.
"""

from __future__ import annotations

from typing import Any


class InertObject:
    """Stands in for an object of a checkpoint; takes and forgets whatever it is made of."""

    def __init__(self, *arguments: Any) -> None:
        pass

    def __new__(cls, *arguments: Any) -> InertObject:
        """Return an empty object."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Forget ``state``."""


def _empty_dict(*arguments: Any) -> dict[Any, Any]:
    """Stand in for a dictionary with more abilities: what follows in the file fills it."""
    return {}


def _empty_list(*arguments: Any) -> list[Any]:
    """As `_empty_dict`, for lists with more abilities."""
    return []


class _EmptyDict:
    """As `_empty_dict`, for classes that pickle creates with ``__new__``."""

    def __new__(cls, *arguments: Any) -> Any:
        return {}


_OBJECTS = (
    "argparse.Namespace",
    "builtins.bool",
    "builtins.dict",
    "builtins.float",
    "builtins.frozenset",
    "builtins.int",
    "builtins.list",
    "builtins.str",
    "builtins.tuple",
    "datetime.date",
    "datetime.datetime",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "fractions.Fraction",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    "omegaconf.base.ContainerMetadata",
    "omegaconf.base.Metadata",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    "omegaconf.nodes.AnyNode",
    "omegaconf.nodes.BooleanNode",
    "omegaconf.nodes.FloatNode",
    "omegaconf.nodes.IntegerNode",
    "omegaconf.nodes.StringNode",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.Path",
    "pathlib._local.PosixPath",
    "pathlib._local.PurePosixPath",
    "pathlib._local.PureWindowsPath",
    "pathlib._local.WindowsPath",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "typing.Any",
    "uuid.UUID",
)
_DICTS_BY_CALL = ("collections.defaultdict",)
_LISTS_BY_CALL = ("collections.deque",)
_DICTS_BY_NEW = (
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)

# As `torch.serialization.safe_globals` takes them: what stands in, and for what.
STAND_INS: list[Any] = [
    *((InertObject, name) for name in _OBJECTS),
    *((_empty_dict, name) for name in _DICTS_BY_CALL),
    *((_empty_list, name) for name in _LISTS_BY_CALL),
    *((_EmptyDict, name) for name in _DICTS_BY_NEW),
]
