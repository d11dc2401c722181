"""One structured line per event: JSON in containers, readable on a terminal."""

import logging
import sys
import threading
from types import TracebackType

import structlog

from shared.settings import Settings, settings_or_exit

SERVERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "alembic")
"""They bring handlers of their own."""

LEAST = {"alembic": "WARNING", "httpx": "WARNING", "amqp": "INFO", "asyncio": "INFO", "kombu": "INFO"}
"""What says too much below this level, whatever is asked for."""


def configure_logs(settings: Settings, *more: structlog.types.Processor) -> None:
    """Send all events to standard error in one form: structlog's, the standard library's, warnings, and
    exceptions that nobody caught.

    Args:
        more: look at each event before it is written.
    """
    structlog.configure(
        processors=[*_chain(more), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers = [_handler(settings, more)]
    root.setLevel(settings.log_level.upper())
    for name in SERVERS:
        if (server := logging.getLogger(name)).handlers:  # without one it was silenced: --no-access-log
            server.handlers, server.propagate = [], True
    logging.captureWarnings(True)
    _catch_the_uncaught()


def handler() -> logging.Handler:
    """The handler alone, for uvicorn's `--log-config`: its parent process never makes the app.

    Raises:
        SystemExit: a setting is wrong; its one line names the variable.
    """
    return _handler(settings_or_exit())


def _handler(settings: Settings, more: tuple[structlog.types.Processor, ...] = ()) -> logging.Handler:
    for name, level in LEAST.items():
        logging.getLogger(name).setLevel(level)
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    made = logging.StreamHandler()
    made.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_chain(more),
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    made.setLevel(settings.log_level.upper())  # tornado sets the root logger's
    return made


def _chain(more: tuple[structlog.types.Processor, ...]) -> list[structlog.types.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        *more,
    ]


def _catch_the_uncaught() -> None:
    """Make lines of what Python would print over several; a hook that somebody else has set stays."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _uncaught_in_thread
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unraisable


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("uncaught").critical("uncaught exception", exc_info=(kind, error, trace))


def _uncaught_in_thread(found: threading.ExceptHookArgs) -> None:
    if found.exc_value is not None and not isinstance(found.exc_value, SystemExit):
        name = found.thread.name if found.thread else "?"
        logging.getLogger("uncaught").error(
            "uncaught exception in thread %s",
            name,
            exc_info=(found.exc_type, found.exc_value, found.exc_traceback),
        )


def _unraisable(found: "sys.UnraisableHookArgs") -> None:
    error = found.exc_value
    info = (found.exc_type, error, found.exc_traceback) if error is not None else None
    logging.getLogger("uncaught").error(
        "%s: %r", found.err_msg or "exception ignored in", found.object, exc_info=info
    )
