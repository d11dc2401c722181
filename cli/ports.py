"""Ports of 127.0.0.1."""

import contextlib
import http.client
import secrets
import socket

import psutil

from cli.processes import StackError

RANGE = range(20_000, 30_000)
"""Below the range of outgoing connections, so that a server finds its port again after a restart."""


def free_port() -> int:
    """A port that nobody listens on.

    Raises:
        StackError: none was found.
    """
    for _ in range(100):
        port = RANGE[secrets.randbelow(len(RANGE))]
        if is_free(port):
            return port
    raise StackError(f"no free port between {RANGE.start} and {RANGE.stop}")


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def listener(port: int) -> str:
    """What names the process that listens there: ` by NAME (pid PID)`; empty if it can't be seen."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (pid {connection.pid})"
    return ""


def answers(port: int, path: str) -> bool:
    """Whether the API that listens there answers a GET with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
