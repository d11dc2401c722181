"""Celery entry: `celery -A worker.app -q worker -Q retrain`."""

from typing import Any

from celery.signals import beat_init

from shared.queue import make_celery
from shared.settings import settings_or_exit
from worker import logs
from worker.ticking import watch_beat

_settings = settings_or_exit()
logs.configure(_settings)
app = make_celery(_settings)
app.conf.include = ["worker.tasks"]
watch_beat()


@beat_init.connect
def _unseen(**_: Any) -> None:
    """What beat sends every few seconds (its tasks send no events either) would fill Flower's history."""
    app.conf.task_send_sent_event = False
