"""A load generator that costs little: raw HTTP/1.1 on keep-alive connections, one request in flight each."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import uvloop


@dataclass(frozen=True, kw_only=True)
class Result:
    """Requests per second, failures (anything but 200), latencies in milliseconds."""

    rate: float
    failures: int
    p50: float
    p99: float
    longest: float


class Caller(asyncio.Protocol):
    """One keep-alive connection with one request in flight; `answered` hears of every answer."""

    def __init__(self) -> None:
        self.sent = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way to the server."""
        self._transport = transport

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.sent = time.perf_counter()
        self._transport.write(request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Take what came; whole, it is an answer."""
        self._buffer += data
        head, gap, body = self._buffer.partition(b"\r\n\r\n")
        if not gap:
            return
        head = head.lower()
        length = int(head.split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._buffer = b""
        self.answered(head)

    def answered(self, head: bytes) -> None:
        """An answer is there; its head in lower case."""
        raise NotImplementedError


class _Connection(Caller):
    """Sends the next request as soon as the last is answered, until `end`."""

    def __init__(self, requests: Iterator[bytes], end: float) -> None:
        super().__init__()
        self.latencies: list[float] = []
        self.failures = 0
        self.done = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._next()

    def _next(self) -> None:
        if time.perf_counter() >= self._end:
            self._transport.close()
            self.done.set_result(None)
        else:
            self.send(next(self._requests))

    def answered(self, head: bytes) -> None:
        self.latencies.append(time.perf_counter() - self.sent)
        self.failures += not head.startswith(b"http/1.1 200")
        self._next()

    def connection_lost(self, _exc: Exception | None) -> None:
        if not self.done.done():
            self.failures += 1
            self.done.set_result(None)


async def _play(port: int, requests: Sequence[bytes], connections: int, seconds: float) -> Result:
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    endless = itertools.cycle(requests)
    played = [
        (await loop.create_connection(lambda: _Connection(endless, start + seconds), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    await asyncio.gather(*(connection.done for connection in played))
    elapsed = time.perf_counter() - start
    latencies = sorted(1000 * latency for connection in played for latency in connection.latencies)
    return Result(
        rate=len(latencies) / elapsed,
        failures=sum(connection.failures for connection in played),
        p50=latencies[len(latencies) // 2],
        p99=latencies[int(len(latencies) * 0.99)],
        longest=latencies[-1],
    )


def play(port: int, requests: Sequence[bytes], *, connections: int, seconds: float) -> Result:
    """Play requests in turn, round and round, for some seconds."""
    return uvloop.run(_play(port, requests, connections, seconds))


def post(path: str, body: bytes) -> bytes:
    """A POST of JSON as bytes on the wire."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
