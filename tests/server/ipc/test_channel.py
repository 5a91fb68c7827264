"""Messages over a real socket pair."""

import fcntl
import os
import resource
import socket
import tempfile
import threading

import pytest

from server.ipc import channel as channel_module
from server.ipc.channel import Channel, ChannelClosed
from server.ipc.packing import BadMessage, WithDescriptor, pack
from tests.server.descriptors import descriptors_of


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


def test_descriptors_arrive_with_their_messages() -> None:
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end:
        channel = Channel(engine_end, descriptors=True)
        kept = []
        for number in (1, 3):
            ours, theirs = socket.socketpair()
            socket.send_fds(parent_end, [pack(number, has_descriptor=True)], [theirs.fileno()])
            theirs.close()
            kept.append(ours)
            parent_end.sendall(pack(number + 1))
        first, second, third, fourth = [channel.receive() for _ in range(4)]
        assert (second, fourth) == (2, 4)
        for ours, received, number in zip(kept, (first, third), (1, 3), strict=True):
            assert isinstance(received, WithDescriptor)
            assert received.message == number
            assert not os.get_inheritable(received.connection.fileno())
            with ours, received.connection as connection:
                ours.sendall(b"for %d" % number)
                assert connection.recv(100) == b"for %d" % number


def test_a_message_without_its_descriptor_is_refused() -> None:
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end:
        parent_end.sendall(pack(1, has_descriptor=True))
        with pytest.raises(BadMessage, match="without its descriptor"):
            Channel(engine_end, descriptors=True).receive()


def test_a_descriptor_that_is_no_socket_is_refused_and_closed() -> None:
    parent_end, engine_end = socket.socketpair()
    with parent_end, engine_end, tempfile.TemporaryFile() as file:
        socket.send_fds(parent_end, [pack(1, has_descriptor=True)], [file.fileno()])
        with pytest.raises(BadMessage, match="no socket"):
            Channel(engine_end, descriptors=True).receive()
        assert descriptors_of(os.fstat(file.fileno())) == {file.fileno()}


def test_a_channel_that_takes_no_descriptors_drops_them() -> None:
    parent_end, engine_end = socket.socketpair()
    ours, theirs = socket.socketpair()
    with parent_end, engine_end, ours, theirs:
        socket.send_fds(parent_end, [pack(1, has_descriptor=True)], [theirs.fileno()])
        theirs.close()
        with pytest.raises(BadMessage, match="without its descriptor"):
            Channel(engine_end).receive()
        assert ours.recv(1) == b""  # the other end is open nowhere


def test_what_a_peer_does_not_read_is_kept_without_waiting() -> None:
    api_end, engine_end = socket.socketpair()
    with api_end, engine_end:
        engine = Channel(engine_end)
        messages = [bytes([number]) * 100_000 for number in range(50)]
        for message in messages:
            engine.post(pack(message))
        assert engine.has_unsent
        api = Channel(api_end)
        received: list[bytes] = []
        while len(received) < len(messages):
            received += api.receive_all(timeout=0)
            engine.flush()
        assert received == messages
        assert not engine.has_unsent


def test_a_peer_that_does_not_read_for_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "_MOST_UNSENT_BYTES", 1000)
    api_end, engine_end = socket.socketpair()
    with api_end, engine_end:
        engine = Channel(engine_end)
        engine.post(pack(bytes(4_000_000)))  # a single message may be as long as it is
        with pytest.raises(ChannelClosed):
            engine.post(pack(1))


def test_sending_waits_until_the_peer_has_room() -> None:
    api_end, engine_end = socket.socketpair()
    with api_end, engine_end:
        message = bytes(range(256)) * 10_000
        sender = threading.Thread(target=Channel(engine_end).send, args=(message,))
        sender.start()
        assert Channel(api_end).receive() == message
        sender.join(30)
        assert not sender.is_alive()


def test_sending_to_a_closed_end_raises_channel_closed() -> None:
    api_end, engine_end = socket.socketpair()
    with engine_end:
        api_end.close()
        for send in (Channel(engine_end).send, Channel(engine_end).post):
            with pytest.raises(ChannelClosed):
                send(pack(1))
