"""The control channel of the parent and of API processes, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import uvloop

from server.ipc.channel import Channel, ChannelClosed
from server.ipc.control import Detached, EngineAttached
from server.ipc.control_channel import ControlChannel
from server.ipc.packing import BadMessage, WithDescriptor, pack

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
Make = Callable[[], asyncio.AbstractEventLoop]
Main = Callable[[ControlChannel, ControlChannel], Coroutine[Any, Any, None]]


def run(make_loop: Make, main: Main) -> None:
    """Run ``main`` with both ends of a channel, and close them."""
    one, other = map(ControlChannel, socket.socketpair())
    try:
        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(asyncio.wait_for(main(one, other), 30))
    finally:
        one.close()
        other.close()


def a_pair() -> tuple[socket.socket, int]:
    """One end, and a descriptor of the other."""
    kept, given = socket.socketpair()
    return kept, given.detach()


@pytest.mark.parametrize("make_loop", LOOPS)
def test_messages_and_descriptors_cross_in_both_directions(make_loop: Make) -> None:
    async def main(one: ControlChannel, other: ControlChannel) -> None:
        for sender, receiver in ((one, other), (other, one)):
            receiving = asyncio.create_task(receiver.receive())
            await asyncio.sleep(0)
            sender.send(Detached(1))
            assert await receiving == (Detached(1), None)
            kept, given = a_pair()
            sender.send(EngineAttached(2), given)
            os.close(given)
            sender.send(Detached(3))
            message, connection = await receiver.receive()
            assert message == EngineAttached(2)
            assert connection is not None
            assert not os.get_inheritable(connection.fileno())
            with kept, connection:
                kept.sendall(b"hello")
                assert connection.recv(10) == b"hello"
            assert await receiver.receive() == (Detached(3), None)

    run(make_loop, main)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_what_the_kernel_does_not_take_is_sent_later_with_its_descriptors(make_loop: Make) -> None:
    sizes = [700_000, 100, 200_000, 100]

    async def main(one: ControlChannel, other: ControlChannel) -> None:
        ends = []
        for size in sizes:
            kept, given = a_pair()
            one.send(bytes(size), given)
            os.close(given)
            ends.append(kept)
        for size, kept in zip(sizes, ends, strict=True):
            message, connection = await other.receive()
            assert message == bytes(size)
            assert connection is not None
            with kept, connection:
                kept.sendall(b"hello")
                assert connection.recv(10) == b"hello"
        one.send(1)
        assert await other.receive() == (1, None)

    run(make_loop, main)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_a_peer_that_does_not_read_counts_as_closed(make_loop: Make) -> None:
    async def main(one: ControlChannel, other: ControlChannel) -> None:
        receiving = asyncio.create_task(one.receive())
        kept, given = a_pair()
        one.send(bytes(3_000_000))  # a single message may be as long as it is
        one.send(1, given)  # is one too many
        one.send(2)
        os.close(given)
        with pytest.raises(ChannelClosed):
            await receiving
        with kept:
            assert kept.recv(1) == b""  # no copy of its other end is left

    run(make_loop, main)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_the_end_of_the_other_process_comes_after_its_messages(make_loop: Make) -> None:
    async def main(one: ControlChannel, other: ControlChannel) -> None:
        one.send(1)
        receiving = asyncio.create_task(other.receive())
        one.close()
        assert await receiving == (1, None)
        with pytest.raises(ChannelClosed):
            await other.receive()
        other.send(2)  # is dropped

    run(make_loop, main)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_closing_wakes_the_task_that_receives(make_loop: Make) -> None:
    async def main(one: ControlChannel, other: ControlChannel) -> None:
        receiving = asyncio.create_task(one.receive())
        await asyncio.sleep(0)
        one.close()
        with pytest.raises(ChannelClosed):
            await receiving
        one.send(1)  # is dropped
        with pytest.raises(ChannelClosed):
            await other.receive()

    run(make_loop, main)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_receiving_can_be_cancelled_and_tried_again(make_loop: Make) -> None:
    async def main(one: ControlChannel, other: ControlChannel) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(one.receive(), 0.01)
        other.send(1)
        assert await one.receive() == (1, None)

    run(make_loop, main)


def test_one_channel_may_be_used_in_several_event_loops() -> None:
    one, other = map(ControlChannel, socket.socketpair())
    for make_loop, number in zip(LOOPS * 2, range(4), strict=True):
        with asyncio.Runner(loop_factory=make_loop) as runner:
            other.send(number)  # without a running event loop
            assert runner.run(one.receive()) == (number, None)
    one.close()
    other.close()


def test_garbage_is_refused() -> None:
    one, other = socket.socketpair()
    channel = ControlChannel(one)
    with other:
        other.sendall(b"\0\0\0\3abc")
        with pytest.raises(BadMessage):
            asyncio.run(channel.receive())
    channel.close()


def test_received_sockets_that_nobody_took_are_closed() -> None:
    one, other = map(ControlChannel, socket.socketpair())
    kept, given = a_pair()
    other.send(1)
    other.send(2, given)
    os.close(given)
    assert asyncio.run(one.receive()) == (1, None)
    with suppress(ChannelClosed):
        one.close()
    with kept:
        assert kept.recv(1) == b""
    other.close()


def test_it_talks_to_the_channel_of_an_engine() -> None:
    engine_end, parent_end = socket.socketpair()
    parent = ControlChannel(parent_end)
    with engine_end:
        kept, given = a_pair()
        parent.send("attach", given)
        os.close(given)
        engine = Channel(engine_end, descriptors=True)
        received = engine.receive()
        assert isinstance(received, WithDescriptor)
        received.connection.close()
        kept.close()
        engine.send("detached")
        assert asyncio.run(parent.receive()) == ("detached", None)
        engine_end.sendall(pack(1)[:3])
    with pytest.raises(ChannelClosed):  # in the middle of a message
        asyncio.run(parent.receive())
    parent.close()
