"""Text towers of transformers and open_clip: vectors of texts in the space shared with images."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from server.catalog.entries import LOCAL_FOLDER
from server.engine.loading.checkpoints import read_json
from server.errors import ConfigError

OPEN_CLIP_CONFIG = "open_clip_config.json"

_HUB = "hf-hub:"  # open_clip's prefix for names of the hub
# Of transformers; of both, the server can serve the image tower.
_TYPES = ("clip", "siglip")


class TextTower(Protocol):
    """A text tower, and how its model turns cosines into logits.

    Attributes:
        scale: by which cosines are multiplied.
        bias: added to the product; None for a model that was trained with a softmax.
    """

    scale: float
    bias: float | None

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of ``texts``, float32 ``(texts, D)`` on the CPU, of any length."""


def load_tower(model: str, library: str, device: torch.device) -> TextTower:
    """Load the text tower of ``model``, a folder or a name of the hub.

    Args:
        library: ``transformers``, ``open_clip``, or ``auto``.

    Raises:
        ConfigError: the package is missing, the model cannot be loaded, or has no text tower.
    """
    name = model.removeprefix(LOCAL_FOLDER)
    folder = Path(name) if Path(name).is_dir() else None
    if folder is None and (model.startswith(LOCAL_FOLDER) or name.startswith((".", "/", "~"))):
        raise ConfigError(f"there is no folder {name}")
    if library == "auto":
        library = "transformers" if folder is None else _library_of(folder)
    if library == "open_clip":
        return OpenClipTower(name, folder, device)
    return TransformersTower(name, folder, device)


def _library_of(folder: Path) -> str:
    config = folder / "config.json"
    if config.is_file() and "model_type" in read_json(config):
        return "transformers"
    if (folder / OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    raise ConfigError(
        f"{folder} is no folder of transformers (config.json with model_type) or open_clip"
        f" ({OPEN_CLIP_CONFIG})"
    )


class TransformersTower:
    """The text tower of a CLIP or SigLIP of transformers.

    Args:
        name: on the hub, or of ``folder``.
        folder: None for the hub.

    Raises:
        ConfigError: see `load_tower`.
    """

    def __init__(self, name: str, folder: Path | None, device: torch.device) -> None:
        transformers = _import("transformers", "tome-serve[text]")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        is_local = folder is not None
        try:
            config = transformers.AutoConfig.from_pretrained(name, local_files_only=is_local)
        except Exception as error:  # transformers and the hub raise many types
            raise _not_loaded(name, error) from error
        if config.model_type not in _TYPES:
            raise ConfigError(
                f"{name} is a model of type {config.model_type!r}; supported are"
                f" {' and '.join(_TYPES)}, with both towers"
            )
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(
                name, local_files_only=is_local
            )
            model, found = transformers.AutoModel.from_pretrained(
                name, local_files_only=is_local, dtype=torch.float32, output_loading_info=True
            )
        except Exception as error:  # as above
            raise _not_loaded(name, error) from error
        if missing := sorted(found["missing_keys"]):
            raise ConfigError(
                f"{name} lacks {missing[0]}: name a model with both towers, such as CLIPModel and"
                " SiglipModel of transformers save"
            )
        self._model = model.eval().to(device)
        self._device = device
        self._length = config.text_config.max_position_embeddings
        # SigLIP was trained on texts padded to one length, without a mask.
        self._is_padded = config.model_type == "siglip"
        self.scale = float(model.logit_scale.detach().exp())
        self.bias = float(model.logit_bias.detach()) if self._is_padded else None

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See `TextTower`."""
        tokens = self._tokenizer(
            list(texts),
            padding="max_length" if self._is_padded else True,
            truncation=True,
            max_length=self._length,
            return_tensors="pt",
        )
        if self._is_padded:
            arguments = {"input_ids": tokens["input_ids"]}
        else:
            arguments = {name: tokens[name] for name in ("input_ids", "attention_mask")}
        on_device = {name: value.to(self._device) for name, value in arguments.items()}
        embedded: Any = self._model.get_text_features(**on_device)
        # A tensor before version 5 of transformers.
        vectors: Tensor = getattr(embedded, "pooler_output", embedded)
        return vectors.float().cpu()


class OpenClipTower:
    """The text tower of a model of open_clip; the arguments are those of `TransformersTower`."""

    def __init__(self, name: str, folder: Path | None, device: torch.device) -> None:
        # It logs by functions of `logging`, which print all of this process where no handler is.
        logging.getLogger().addHandler(logging.NullHandler())
        open_clip = _import("open_clip", "open_clip_torch")
        full_name = name if name.startswith(_HUB) else f"{_HUB}{name}"
        if folder is not None:
            full_name = f"{LOCAL_FOLDER}{folder}"
        try:
            model = open_clip.create_model(full_name, precision="fp32", device=device)
            self._tokenize = open_clip.get_tokenizer(full_name)
        except Exception as error:  # open_clip and the hub raise many types
            raise _not_loaded(name, error) from error
        self._model = model.eval()
        self._device = device
        self.scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.bias = None if bias is None else float(bias.detach())

    @torch.inference_mode()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """See `TextTower`."""
        tokens = self._tokenize(list(texts)).to(self._device)
        vectors: Tensor = self._model.encode_text(tokens)
        return vectors.float().cpu()


def _import(name: str, requirement: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"the text tower needs {name} ({error}); run: pip install '{requirement}'"
        ) from error


def _not_loaded(name: str, error: Exception) -> ConfigError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    return ConfigError(f"cannot load the text tower of {name}: {reason}")
