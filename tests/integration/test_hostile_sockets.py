"""Bytes that are no HTTP, or too much of it: refused on the socket, nothing written, and the API goes on."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from tests.live import Live

HEAD = b"Host: ratchet\r\nContent-Type: application/json\r\n"
GARBAGE = {
    "binary": b"\x00\x01\x02\x03\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"A" * 500,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Redis": b"*1\r\n$8\r\nFLUSHALL\r\n",
    "Postgres": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "version 9.9": b"GET /health HTTP/9.9\r\n" + HEAD + b"\r\n",
    "no method of HTTP": b"BREW /predict HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a bare byte in the path": b"GET /models/\xff HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a space in the path": b"GET /models/1 OR 1=1 HTTP/1.1\r\n" + HEAD + b"\r\n",
    "a NUL in a header": b"GET /health HTTP/1.1\r\nX: a\x00b\r\n\r\n",
    "a header split in two": b"GET /health HTTP/1.1\r\nX: a\nb\r\n\r\n",
    "a length of letters": b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: abc\r\n\r\n{}",
    "a length below zero": b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: -1\r\n\r\n{}",
    "a length of 30 digits": b"POST /predict HTTP/1.1\r\n"
    + HEAD
    + b"Content-Length: "
    + b"9" * 30
    + b"\r\n\r\n",
    "two lengths": b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
    "a length and chunks": b"POST /predict HTTP/1.1\r\n"
    + HEAD
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nPOST /predict HTTP/1.1\r\n\r\n",
    "a chunk of no size": b"POST /predict HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a chunk of 30 digits": b"POST /predict HTTP/1.1\r\n"
    + HEAD
    + b"Transfer-Encoding: chunked\r\n\r\n"
    + b"f" * 30
    + b"\r\n",
    "a path of 100 KB": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
    "a query of 100 KB": b"GET /retrain/jobs?limit=" + b"1" * 100_000 + b" HTTP/1.1\r\n\r\n",
}


@pytest.fixture(autouse=True)
def unharmed(api: Live) -> Iterator[None]:
    """After every test nothing is stored, and the API predicts."""
    yield
    assert set(api.stored().values()) == {0}
    assert api.predict().status_code == 200


def connect(api: Live) -> socket.socket:
    """A bare connection to the API."""
    url = api.client.base_url
    return socket.create_connection((url.host, url.port or 80), timeout=20)


def answer(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    received = bytearray()
    while piece := connection.recv(65536):
        received += piece
    return bytes(received)


def accepted(api: Live) -> bytes:
    """A body that would be stored."""
    return api.client.build_request("POST", "/predict", json={"raw_features": [api.row]}).content


@pytest.mark.parametrize("sent", GARBAGE.values(), ids=GARBAGE)
def test_what_is_no_http_is_400_and_the_connection_is_closed(api: Live, sent: bytes) -> None:
    with connect(api) as connection:
        connection.sendall(sent)
        received = answer(connection)
    assert received.startswith(b"HTTP/1.1 400 "), received[:200]


LINES = {"many": b"X-%06d: a\r\n", "one": b"%06daaaaaaaaa"}


def lines(form: str, size: int) -> bytes:
    """So many bytes of headers, and no end of them."""
    return b"X: " + b"".join(LINES[form] % n for n in range(size // len(LINES[form])))


@pytest.mark.parametrize("form", LINES)
def test_a_head_without_end_is_431(api: Live, form: str) -> None:
    with connect(api) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + HEAD + lines(form, 100_000))
        received = answer(connection)
    assert received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), received[:200]


@pytest.mark.parametrize("form", LINES)
def test_trailers_without_end_are_cut_off(api: Live, form: str) -> None:
    """Where a head may be, behind the last chunk: more of it than one read takes."""
    head = b"POST /predict HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    received = b""
    with connect(api) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(head + lines(form, 4_000_000))
        received = answer(connection)
    assert received == b"" or received.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")), received[:200]


def test_a_large_body_is_no_large_head(api: Live) -> None:
    """The bound is on heads: a body of a megabyte in small pieces, and the next request, pass."""
    body = accepted(api)[:-1] + b" " * 1_000_000
    head = b"POST /predict HTTP/1.1\r\n" + HEAD
    with connect(api) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        for n in range(0, len(body), 10_000):
            connection.sendall(body[n : n + 10_000])
        connection.sendall(b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        received = answer(connection)
    # its last brace is missing, so that nothing is stored
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"HTTP/1.1 200 OK" in received


@pytest.mark.parametrize("path", [b"/predict", b"/labels", b"/admin/retrain"])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_breaks_off_writes_nothing(api: Live, path: bytes, chunked: bool) -> None:
    body = accepted(api)
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % (len(body) + 1)
    piece = b"%x\r\n%s" % (len(body) + 1, body) if chunked else body
    with connect(api) as connection:
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\n" + HEAD + length + b"\r\n\r\n" + piece)


def test_a_length_of_ten_gigabytes_is_413_before_a_byte_of_it(api: Live) -> None:
    with connect(api) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: 9999999999\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_a_request_smuggled_behind_another_is_a_request_of_its_own(api: Live) -> None:
    """With keep-alive the bytes after a body are the next request, and never part of the first."""
    inner = b"GET /nothing HTTP/1.1\r\nConnection: close\r\n\r\n"
    head = b"POST /predict HTTP/1.1\r\n" + HEAD + b"Content-Length: 2\r\n\r\n{}"
    with connect(api) as connection:
        connection.sendall(head + inner)
        received = answer(connection)
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.startswith(b"HTTP/1.1 422 ")
    assert b"HTTP/1.1 404 " in received
