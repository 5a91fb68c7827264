"""The loop of a decode worker: tasks from the socket, one after another."""

from __future__ import annotations

import importlib
import os
import socket
import traceback
from collections.abc import Mapping

from server.decoding import memory, messages, sandbox
from server.decoding.messages import Task
from server.decoding.warm_up import Decode, warm_up
from server.errors import RequestError
from server.media.modality import Modality

Decoders = Mapping[Modality, Decode]

_DESCRIPTORS = 2  # that come with a task: of the body and of the result
_STDERR = 2


def run(connection: socket.socket, functions: Mapping[str, str], address_space: int) -> int:
    """Load decoders, give up what they do not need, and decode until the API process has ended.

    Args:
        functions: the decoders by modality, as ``module:function``.
        address_space: most bytes of memory that the process maps.

    Returns:
        The exit code.
    """
    # Libraries write there what a hostile body makes them say. What goes wrong is in the replies.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        decoders = {Modality(name): _load(function) for name, function in functions.items()}
        _warm_up(decoders)
        missing = sandbox.confine(address_space)
        _warm_up(decoders)  # nothing that they need was given up
    except Exception as error:
        _send_failure(connection, error)
        return 1
    os.dup2(nowhere, _STDERR)
    os.close(nowhere)
    connection.send(messages.pack_ready(missing))
    return _serve(connection, decoders)


def _load(function: str) -> Decode:
    """Import the function that ``function`` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _warm_up(decoders: Decoders) -> None:
    for modality, decode in decoders.items():
        warm_up(decode, modality)


def _serve(connection: socket.socket, decoders: Decoders) -> int:
    """Do tasks until the other end is closed, or one fails. Returns the exit code."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, messages.MAX_BYTES, _DESCRIPTORS)
        if not message:
            return 0
        body, result = descriptors
        try:
            reply = _do(Task.unpack(message), body, result, decoders)
        except Exception as error:  # the decoder's state is unknown
            _send_failure(connection, error)
            return 1
        finally:
            os.close(body)
            os.close(result)
        connection.send(reply)


def _do(task: Task, body: int, result: int, decoders: Decoders) -> bytes:
    """Decode the memory ``body`` into the memory ``result``; return the reply."""
    sandbox.limit_cpu(task.cpu_seconds)
    decode = decoders[task.modality]
    try:
        decoded = decode(memory.read_body(body), task.transform, task.limits)
    except RequestError as error:
        return messages.pack_refused(task.number, error)
    memory.write_inputs(result, decoded.inputs)
    return messages.pack_done(task.number, decoded)


def _send_failure(connection: socket.socket, error: Exception) -> None:
    """Say why the process ends."""
    text = "".join(traceback.format_exception(error))
    out_of_memory = isinstance(error, MemoryError)
    connection.send(messages.pack_failed(text, out_of_memory=out_of_memory))
