"""A mark of beat's last message, so that a health check can tell a beat that stands still."""

from typing import Any

from celery.signals import after_task_publish, beat_init

from shared.tick import TICK


def watch_beat() -> None:
    """Mark each message, in the process that is beat."""
    beat_init.connect(_in_beat)


def _in_beat(**_: Any) -> None:
    after_task_publish.connect(_tick)


def _tick(**_: Any) -> None:
    TICK.touch()
