"""How the processes of one host find each other and share memory, before any memory is shared.

Hosts are told apart by the kernel's boot id and the process-id namespace, exchanged through the
process group; that they really share memory is proved by a handshake over it, never by an
environment variable. Descriptors travel over abstract Unix sockets, which exist nowhere in the file
system and end with their processes; the memory is anonymous (memfd) and ends with its last user.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

_LENGTH = struct.Struct("<I")
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class RendezvousError(RuntimeError):
    """The processes of this host could not agree on shared memory."""


@dataclass(frozen=True)
class Place:
    """Where a rank runs and how its host's leader is reached."""

    boot_id: str
    pid_namespace: str
    pid: int
    start_time: int
    uid: int
    socket_name: str
    key: str

    @property
    def host(self) -> tuple[str, str]:
        """What is equal for ranks that may share memory."""
        return (self.boot_id, self.pid_namespace)


def anonymous_memory(size: int) -> int:
    """File descriptor of `size` zero bytes that no one can shrink; OSError if there is no room."""
    fd = os.memfd_create("lepton", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        # Memory that is missing is missed now, not as a bus error in the middle of a step.
        os.posix_fallocate(fd, 0, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def send(channel: socket.socket, message: Any, fd: int | None = None) -> None:
    """Send a JSON value, and a file descriptor with it."""
    body = json.dumps(message).encode()
    data = _LENGTH.pack(len(body)) + body
    if fd is None:
        channel.sendall(data)
    else:
        sent = socket.send_fds(channel, [data], [fd])
        channel.sendall(data[sent:])


def receive(channel: socket.socket) -> tuple[Any, int | None]:
    """Receive what `send` sent; EOFError if the other end has closed."""
    head, fds, _, _ = socket.recv_fds(channel, _LENGTH.size, 1)
    head += _exactly(channel, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    return json.loads(_exactly(channel, length)), (fds[0] if fds else None)


def _exactly(channel: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = channel.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return data


class HostGroup:
    """The ranks of a process group that run on this host, and a channel to their leader.

    `ranks` are group ranks in rising order; the first is the leader.
    """

    def __init__(
        self,
        ranks: list[int],
        places: list[Place],
        index: int,
        channels: list[socket.socket],
        timeout: float,
    ) -> None:
        self.ranks = ranks
        self.places = places
        self.index = index
        self._channels = channels  # the leader: one to each member; a member: one to the leader
        self._timeout = timeout

    def share(self, size: int, purpose: str) -> int:
        """Descriptor of one anonymous memory on all ranks; collective.

        Raises:
            RendezvousError: on every rank, if a rank asks for another size, has died or memory
                is short.
        """
        request = [purpose, size]
        fd: int | None = None
        error: str | None = None
        if self.index == 0:
            try:
                fd = anonymous_memory(size)
            except OSError as reason:
                error = f"cannot allocate {size} bytes of shared memory: {reason}"
            error = self._agree(request, fd, error)
        else:
            (asked, error), fd = self._talk(0, lambda c: receive(c))
            if error is None and asked != request:
                error = (
                    f"rank {self.ranks[0]} asks for {asked[1]} bytes ({asked[0]}), "
                    f"rank {self.ranks[self.index]} for {size} ({purpose})"
                )
            self._talk(0, lambda c: send(c, error))
            # The leader finds out first who does not answer, and says so.
            error, _ = self._talk(0, lambda c: receive(c), seconds=2 * self._timeout)
        if error is not None or fd is None:
            if fd is not None:
                os.close(fd)
            raise RendezvousError(error or "no descriptor came with the message")
        return fd

    def _agree(self, request: list[Any], fd: int | None, error: str | None) -> str | None:
        """The leader's part: the first error of any rank, which all that live are told."""
        deadline = time.monotonic() + self._timeout
        living = list(range(1, len(self._channels) + 1))

        def ask(peer: int, action: Callable[[socket.socket], Any]) -> Any:
            nonlocal error
            try:
                return self._talk(peer, action, seconds=deadline - time.monotonic())
            except RendezvousError as gone:
                living.remove(peer)
                error = error or str(gone)
                return None

        for peer in list(living):
            ask(peer, lambda c: send(c, [request, error], fd))
        for peer in list(living):
            answer = ask(peer, lambda c: receive(c))
            error = error or (answer[0] if answer else None)
        for peer in list(living):
            ask(peer, lambda c: send(c, error))
        return error

    def _talk(
        self, peer: int, action: Callable[[socket.socket], Any], seconds: float | None = None
    ) -> Any:
        channel = self._channels[peer - 1 if self.index == 0 else 0]
        seconds = self._timeout if seconds is None else seconds
        channel.settimeout(max(seconds, 0.001))
        try:
            return action(channel)
        except (EOFError, ConnectionError):
            raise RendezvousError(f"rank {self.ranks[peer]} has gone") from None
        except TimeoutError:
            raise RendezvousError(
                f"rank {self.ranks[peer]} did not answer within {self._timeout} s"
            ) from None

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            channel.close()
        self._channels = []


def boot_id() -> str:
    """What tells one boot of one machine from every other."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def find_host_group(group: dist.ProcessGroup | None, start_time: int, timeout: float) -> HostGroup:
    """Find the ranks of `group` on this host and connect them to their leader; collective."""
    rank = dist.get_rank(group)
    key = secrets.token_hex(16)
    name = f"lepton-{secrets.token_hex(16)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + name)
        listener.listen(128)
        mine = Place(
            boot_id=boot_id(),
            pid_namespace=str(Path("/proc/self/ns/pid").readlink()),
            pid=os.getpid(),
            start_time=start_time,
            uid=os.getuid(),
            socket_name=name,
            key=key,
        )
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, asdict(mine), group=group)
        everyone = [Place(**place) for place in gathered]
        ranks = [r for r, place in enumerate(everyone) if place.host == mine.host]
        places = [everyone[r] for r in ranks]
        index = ranks.index(rank)
        if index == 0:
            channels = _accept_members(listener, places, timeout)
        else:
            channels = [_join_leader(places[0], index, timeout)]
    return HostGroup(ranks, places, index, channels, timeout)


def _accept_members(
    listener: socket.socket, places: list[Place], timeout: float
) -> list[socket.socket]:
    deadline = time.monotonic() + timeout
    by_index: dict[int, socket.socket] = {}
    while len(by_index) < len(places) - 1:
        listener.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            channel, _ = listener.accept()
            channel.settimeout(timeout)
            _check_user(channel, places[0])
            (key, index), _ = receive(channel)
        except TimeoutError:
            missing = [i for i in range(1, len(places)) if i not in by_index]
            raise RendezvousError(
                f"processes {[places[i].pid for i in missing]} have this host's boot id but did "
                f"not connect within {timeout} s"
            ) from None
        except (EOFError, ConnectionError, ValueError):
            continue  # a stranger, or a rank that died: the time-out tells
        if key != places[0].key or index in by_index:
            channel.close()
            continue
        by_index[index] = channel
    return [by_index[i] for i in sorted(by_index)]


def _join_leader(leader: Place, index: int, timeout: float) -> socket.socket:
    channel = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    channel.settimeout(timeout)
    try:
        channel.connect("\0" + leader.socket_name)
        _check_user(channel, leader)
        send(channel, [leader.key, index])
    except OSError as reason:
        channel.close()
        raise RendezvousError(
            f"process {leader.pid} has this host's boot id but cannot be reached: {reason}"
        ) from None
    return channel


def _check_user(channel: socket.socket, leader: Place) -> None:
    credentials = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, uid, _ = struct.unpack("iII", credentials)
    if uid != leader.uid:
        raise ConnectionError(f"the other end belongs to user {uid}")
