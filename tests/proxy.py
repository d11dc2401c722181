"""A TCP proxy in front of a real server: it goes down, falls silent, or loses an answer when told to."""

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from cli.ports import free_port


class Proxy:
    """Forwards to the server of a URL; `url` is the same URL through the proxy."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._target = (parts.hostname, parts.port)
        self._port = free_port()
        user = parts.netloc.rpartition("@")[0]
        self.url = parts._replace(netloc=f"{user}@127.0.0.1:{self._port}").geturl()
        self._loop = asyncio.new_event_loop()
        self._flowing = asyncio.Event()
        self._lose: bytes | None = None
        self.lost = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def up(self) -> None:
        """Accept and forward."""
        self._run(self._up())

    def down(self) -> None:
        """Refuse connections and drop those that exist, as a server that was stopped does."""
        self._run(self._down())

    def silence(self) -> None:
        """Accept connections and forward nothing, as a frozen server does."""
        self._loop.call_soon_threadsafe(self._flowing.clear)

    def speak(self) -> None:
        """Forward again, also what was held back."""
        self._loop.call_soon_threadsafe(self._flowing.set)

    def lose_answer(self, marker: bytes) -> None:
        """Once, let the server do what a message with `marker` asks, and drop the line before it answers."""
        self._lose = marker

    async def _up(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            await asyncio.sleep(0.01)  # whoever was accepted just now is a task by then
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0.05)  # the transports that were aborted close in turns of the loop to come

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._forward(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: writer.transport.abort())  # also of one that never began

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection(*self._target)
        except OSError:  # the server is down, and so is what stands before it
            writer.transport.abort()
            return
        doomed = asyncio.Event()
        pumps = [
            asyncio.ensure_future(self._pump(reader, up_writer, lambda data: self._asks(data, doomed))),
            asyncio.ensure_future(self._pump(up_reader, writer, lambda _: not doomed.is_set())),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, up_writer):
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, passes: Callable[[bytes], bool]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                if not passes(data):
                    return
                writer.write(data)
                await writer.drain()

    def _asks(self, data: bytes, doomed: asyncio.Event) -> bool:
        if self._lose is not None and self._lose in data:
            self._lose = None
            self.lost += 1
            doomed.set()
        return True

    def _run(self, work: Awaitable[None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)  # type: ignore[arg-type]


@contextmanager
def proxied(url: str) -> Iterator[Proxy]:
    """A proxy that is up until the block ends."""
    proxy = Proxy(url)
    thread = threading.Thread(target=proxy._loop.run_forever)
    thread.start()
    try:
        proxy.up()
        yield proxy
    finally:
        proxy.down()
        proxy._loop.call_soon_threadsafe(proxy._loop.stop)
        thread.join(10)
        proxy._loop.close()
