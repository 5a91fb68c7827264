import asyncio
import socket
import threading

import pytest

from server.ipc.channel import AsyncChannel, Channel, ChannelClosed, pack


def test_messages_arrive_in_order_whatever_the_pieces() -> None:
    ours, theirs = socket.socketpair()
    messages = [("text", 1), b"x" * 200_000, {"a": [1, 2]}]
    stream = b"".join(map(pack, messages))

    def dribble() -> None:
        for start in range(0, len(stream), 7_001):
            ours.sendall(stream[start : start + 7_001])
        ours.close()

    sender = threading.Thread(target=dribble)
    sender.start()
    channel = Channel(theirs)
    received = []
    with pytest.raises(ChannelClosed):
        while True:
            received += channel.receive_all(timeout=None)
    sender.join()
    theirs.close()
    assert received == messages


def test_one_at_a_time_keeps_the_rest() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pack(1) + pack(2) + pack(3))
        channel = Channel(theirs)
        assert channel.receive() == 1
        assert channel.receive_all(timeout=0) == [2, 3]
        assert channel.receive_all(timeout=0) == []


def test_both_ends_talk() -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        channel = await AsyncChannel.open(ours)
        channel.send("to the engine")
        await asyncio.sleep(0)
        engine = Channel(theirs)
        assert await asyncio.to_thread(engine.receive) == "to the engine"
        engine.send("to the API")
        assert await channel.receive() == "to the API"
        theirs.close()
        with pytest.raises(ChannelClosed):
            await channel.receive()
        channel.close()

    asyncio.run(main())


def test_a_closed_end_is_noticed() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(ChannelClosed):
            Channel(theirs).receive()
