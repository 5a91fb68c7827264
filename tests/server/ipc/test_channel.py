"""Messages over a real socket pair."""

import asyncio
import fcntl
import resource
import socket
import threading

import pytest

from server.ipc.channel import AsyncChannel, Channel, ChannelClosed, pack
from server.ipc.messages import Cancel, StartFailed


def test_messages_arrive_in_order_however_the_stream_is_split() -> None:
    api_end, engine_end = socket.socketpair()
    messages = [("text", 1), b"x" * 200_000, {"a": [1, 2]}]
    stream = b"".join(map(pack, messages))

    def send_in_pieces() -> None:
        for start in range(0, len(stream), 7_001):
            api_end.sendall(stream[start : start + 7_001])
        api_end.close()

    sender = threading.Thread(target=send_in_pieces)
    sender.start()
    channel = Channel(engine_end)
    received = []
    with pytest.raises(ChannelClosed):
        while True:
            received += channel.receive_all(timeout=None)
    sender.join()
    engine_end.close()
    assert received == messages


def test_receiving_one_message_keeps_the_others() -> None:
    api_end, engine_end = socket.socketpair()
    with api_end, engine_end:
        api_end.sendall(pack(1) + pack(2) + pack(3))
        channel = Channel(engine_end)
        assert channel.receive() == 1
        assert channel.receive_all(timeout=0) == [2, 3]
        assert channel.receive_all(timeout=0) == []


def test_messages_cross_in_both_directions() -> None:
    api_end, engine_end = socket.socketpair()

    async def main() -> None:
        channel = await AsyncChannel.open(api_end)
        channel.send(Cancel(1))
        await asyncio.sleep(0)
        engine = Channel(engine_end)
        assert await asyncio.to_thread(engine.receive) == Cancel(1)
        engine.send(StartFailed("to the API"))
        assert await channel.receive() == StartFailed("to the API")
        engine_end.close()
        with pytest.raises(ChannelClosed):
            await channel.receive()
        channel.close()

    asyncio.run(main())


def test_receiving_from_a_closed_end_raises_channel_closed() -> None:
    api_end, engine_end = socket.socketpair()
    with engine_end:
        api_end.close()
        with pytest.raises(ChannelClosed):
            Channel(engine_end).receive()


@pytest.mark.parametrize("timeout", [0.0, 0.0001, 0.002, None])
def test_descriptors_may_be_larger_than_select_takes(timeout: float | None) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    large = 1500
    if hard != resource.RLIM_INFINITY and hard <= large:
        pytest.skip("the limit on open files is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, large + 1), hard))
    api_end, engine_end = socket.socketpair()
    try:
        moved = socket.socket(fileno=fcntl.fcntl(engine_end, fcntl.F_DUPFD_CLOEXEC, large))
        with api_end, engine_end, moved:
            channel = Channel(moved)
            assert channel.receive_all(timeout=0) == []
            api_end.sendall(pack(1))
            assert channel.receive_all(timeout) == [1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
