"""uvicorn's HTTP protocol with a bound on what is no body, and on how long an answer waits to be read.

`uvicorn --http api.protocol:Protocol`.
"""

from asyncio import TimerHandle
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes. Neither uvicorn nor httptools bounds a head: 60 MB of headers held the event loop for 2.4 s and
took 1 GB, before any key was looked at."""

UNREAD_SECONDS = 30.0
"""Longest that an answer is kept for a client that doesn't read it. uvicorn waits for ever, and so would
the next answer on the same connection: with as many connections as requests are let in, nobody else is."""


class Protocol(HttpToolsProtocol):
    """Refuses a head (or the trailers of a chunked body) once more than `MAX_HEAD` bytes of it are there.

    What comes in one read with the end of the head is not counted, so a head of up to one read (256 KB)
    may pass. It also ends the connection of a client that doesn't read its answers.
    """

    _no_body = 0
    """Bytes read since the last head or piece of a body was complete."""

    _unread: TimerHandle | None = None
    """Ends the connection, unless the client reads before."""

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._no_body += len(data)
        super().data_received(data)
        if self._no_body > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """A head is complete."""
        self._no_body = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of a body is there."""
        self._no_body = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client reads less than it is sent."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It has caught up."""
        self._stop_waiting()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _refuse(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self.logger.warning("A request's head is longer than %d bytes.", MAX_HEAD)
        body = f"The head of a request may have {MAX_HEAD} bytes."
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode("ascii"))
        self.transport.close()
