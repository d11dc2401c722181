"""uvicorn's HTTP protocol with a bound on what is no body: `uvicorn --http api.protocol:Protocol`."""

from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD = 64 * 1024
"""Bytes. Neither uvicorn nor httptools bounds a head: 60 MB of headers held the event loop for 2.4 s and
took 1 GB, before any key was looked at."""


class Protocol(HttpToolsProtocol):
    """Refuses a head (or the trailers of a chunked body) once more than `MAX_HEAD` bytes of it are there.

    What comes in one read with the end of the head is not counted, so a head of up to one read (256 KB)
    may pass.
    """

    _no_body = 0
    """Bytes read since the last head or piece of a body was complete."""

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

    def _refuse(self) -> None:
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        self.logger.warning("A request's head is longer than %d bytes.", MAX_HEAD)
        body = f"The head of a request may have {MAX_HEAD} bytes."
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: text/plain\r\nConnection: close\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode("ascii"))
        self.transport.close()
