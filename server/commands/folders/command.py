"""``tome-serve embed FOLDER`` and ``tome-serve classify FOLDER -o labels.csv``."""

from __future__ import annotations

from pathlib import Path

from server.commands.flags import ClassifyCommand, EmbedCommand
from server.commands.folders.embeddings import Embed
from server.commands.folders.labels import Classify
from server.commands.folders.run import run_folder
from server.errors import ConfigError

# Of `classify`, for single files.
_NOT_FOR_FOLDERS = ("confidence", "confidence_r", "windows", "clips", "crops", "json_lines")
_SINGLE_FILES = {name: ClassifyCommand.model_fields[name].default for name in _NOT_FOR_FOLDERS}


def embed_folder(command: EmbedCommand) -> int:
    """Write the features of all pictures; return the exit code. See `run_folder`."""
    assert command.output is not None, "its validator requires it"
    return run_folder(command, command.folder, Embed(command.output, command.normalize))


def classify_folder(command: ClassifyCommand, output: Path) -> int:
    """Write the best classes of all pictures; return the exit code. See `run_folder`.

    Raises:
        ConfigError: there is more than one folder or list, or an option is for single files.
    """
    if len(command.files) != 1:
        raise ConfigError("-o takes one folder, or one text file with a path a line")
    for name, default in _SINGLE_FILES.items():
        if getattr(command, name) != default:
            flag = "--json" if name == "json_lines" else f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} is for single files, without -o")
    task = Classify(output, command.top_k)
    return run_folder(command, command.files[0], task, command.text)
