"""The command line, ``tome-serve``: a server, commands without one, and its clients.

Commands import what they need when they run: ``--help`` and a wrong flag then answer at once.
"""

from __future__ import annotations

import importlib
import logging
import platform
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from server import logs
from server.commands.flags import (
    ClassifyCommand,
    EmbedCommand,
    EvaluateCommand,
    ModelsCommand,
    TuneCommand,
    VisualizeCommand,
)
from server.commands.settings_command import settings_command
from server.commands.text.flags import TextCommand
from server.errors import ConfigError, EngineStartError, RequestError
from server.settings import VERSION, ModelSettings, Settings

log = logging.getLogger("tome.server")

# What each command does, in the order of the help: it is shown without an import of the clients.
_COMMANDS = (
    ("serve", "start the HTTP server"),
    (
        "models",
        "list the models that would be served, with the cost of each level of r; --check NAME says"
        " whether merging supports a model of timm",
    ),
    (
        "classify FILE...",
        "classify images, sounds or videos here, without a server; - is standard input; with -o all"
        " pictures of a folder or a list, into a CSV file",
    ),
    (
        "embed FOLDER",
        "write the features of all pictures of a folder or a list to one file, without a server",
    ),
    (
        "visualize FILE",
        "draw which patches of an image, a sound's spectrogram or a video are merged",
    ),
    (
        "evaluate [DATA]",
        "measure accuracy and speed for each r, over a folder of labelled images, sounds or videos,"
        " or the Fashion-MNIST files; with --task embed what r costs embeddings, without labels",
    ),
    (
        "tune MODEL FOLDER",
        "measure on pictures without labels how often each r keeps the class of r=0, how fast it"
        " is, and which rule of merging is best; write the model's profile",
    ),
    (
        "text MODEL LABELS",
        "write the vectors of labels, by the text tower of a CLIP or SigLIP, for zero-shot"
        " classification",
    ),
    ("load [FILE]", "send requests to a server; report latency, goodput and the r that was used"),
    ("top", "watch a server: throughput by r, latency, speed-up, queue, refusals"),
)

_EXIT_FAILURE = 1
_EXIT_INTERRUPTED = 130  # 128 + SIGINT


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code.

    The code is 0, 1 for a failure that stderr explains, 2 for wrong usage, or 130 after Ctrl-C.
    """
    if arguments is None:
        arguments = sys.argv[1:]
    try:
        code: int = tome_serve.main(arguments or ["--help"], "tome-serve", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (ConfigError, EngineStartError, RequestError) as error:
        print(f"tome-serve: {error}", file=sys.stderr)
        return _EXIT_FAILURE
    except (click.Abort, KeyboardInterrupt):
        return _EXIT_INTERRUPTED
    return code


def _serve(settings: Settings) -> int:
    logs.configure(settings.log_level)
    log.info("tome-serve %s starts on Python %s", VERSION, platform.python_version())
    # Nothing is read yet that a reload would read again.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from server.api_keys import Secrets, read_keys
    from server.supervision.lifecycle import run

    # Until the server installs its own handler no request is accepted, so a stop is a clean exit.
    signal.signal(signal.SIGTERM, _exit_cleanly)
    return run(settings, read_keys(Secrets()))


def _exit_cleanly(signal_number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _import_pytorch(command: ModelSettings) -> None:
    """Import what the commands without a server need, which takes seconds, and log it."""
    logs.configure_terminal(command.log_level)
    with logs.log_step(log, "importing PyTorch and timm"):
        importlib.import_module("server.commands.offline")


def _models(command: ModelsCommand) -> int:
    _import_pytorch(command)
    if command.check is not None:
        from server.commands.check_model import check_model

        return check_model(command.check)
    from server.commands.offline import print_models

    return print_models(command, command.queue_limit)


def _classify(command: ClassifyCommand) -> int:
    _import_pytorch(command)
    if command.output is not None:
        from server.commands.folders.command import classify_folder

        return classify_folder(command, command.output)
    from server.commands.classify import classify

    return classify(
        command,
        command.files,
        command.r,
        command.model,
        command.top_k,
        confidence=command.confidence,
        confidence_r=command.confidence_r,
        windows=command.windows,
        clips=command.clips,
        crops=command.crops,
        text=command.text,
        as_json=command.json_lines,
    )


def _embed(command: EmbedCommand) -> int:
    _import_pytorch(command)
    from server.commands.folders.command import embed_folder

    return embed_folder(command)


def _visualize(command: VisualizeCommand) -> int:
    _import_pytorch(command)
    from server.commands.offline import visualize

    return visualize(
        command,
        command.file,
        command.r,
        command.model,
        command.output,
        clips=command.clips,
        crops=command.crops,
    )


def _evaluate(command: EvaluateCommand) -> int:
    _import_pytorch(command)
    from server.catalog.profiles import cascade_rows, profiled_model, read_profile
    from server.commands.datasets import check_folder
    from server.commands.evaluate import evaluate
    from server.commands.fidelity import evaluate_embeddings
    from server.commands.plotting import plot_profiles
    from server.commands.profile_files import write_accuracies

    _check_folders(command.profile, command.plot)
    other_profiles = {}
    if command.beside is not None:
        other_name = profiled_model(command.beside)
        other_profiles[other_name] = read_profile(command.beside)
    check_folder(command.data)
    if command.task == "embed":
        return evaluate_embeddings(command, other_profiles)
    rows, conditions = evaluate(
        command,
        command.data,
        command.limit,
        command.r.split() or None,
        command.model,
        command.batch,
        rules=command.rules,
        clips=command.clips,
        crops=command.crops,
        text=command.text,
    )
    if command.profile is not None:
        write_accuracies(command.profile, rows, conditions)
    if command.plot is not None:
        curves = {}
        for rule in dict.fromkeys(row.merging for row in rows):
            name = f"{conditions['model']} by {rule}"
            of_rule = [row for row in rows if row.merging == rule]
            curves[name] = of_rule
            if cascades := cascade_rows(of_rule):
                curves[f"{name}, confidence=auto"] = cascades
        plot_profiles(curves | other_profiles, command.plot)
    return 0


def _tune(command: TuneCommand) -> int:
    _check_folders(command.profile, command.plot)
    _import_pytorch(command)
    from server.commands.tuning.command import tune

    return tune(command)


def _text(command: TextCommand) -> int:
    logs.configure_terminal(command.log_level)
    with logs.log_step(log, "importing PyTorch"):
        from server.commands.text.command import write_text
    return write_text(command)


def _check_folders(*written: Path | None) -> None:
    """Check before the work that there is a folder for each file that is written after it."""
    for path in written:
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"cannot write {path}: there is no folder {path.parent}")


class _Commands(click.Group):
    """The commands; the clients are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.commands, "load", "top"]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name == "load":
            from tome_load.command import LoadCommand, load

            return settings_command(cmd_name, LoadCommand, load, repeated="r")
        if cmd_name == "top":
            from tome_top.command import TopCommand, top

            return settings_command(cmd_name, TopCommand, top)
        return super().get_command(ctx, cmd_name)


@click.group(
    "tome-serve",
    cls=_Commands,
    commands=[
        settings_command("serve", Settings, _serve, help_text="Start the HTTP server."),
        settings_command("models", ModelsCommand, _models),
        settings_command("classify", ClassifyCommand, _classify),
        settings_command("embed", EmbedCommand, _embed),
        settings_command("visualize", VisualizeCommand, _visualize),
        settings_command("evaluate", EvaluateCommand, _evaluate, repeated="r"),
        settings_command("tune", TuneCommand, _tune, repeated="r"),
        settings_command("text", TextCommand, _text),
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, "-V", "--version", message="%(prog)s %(version)s")
def tome_serve() -> None:
    """Token-merged Vision Transformers over HTTP.

    Every request chooses r, the number of tokens merged away in each block. Every flag is also an
    environment variable: --max-batch is TOME_MAX_BATCH.
    """
