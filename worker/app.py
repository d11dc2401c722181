"""Celery entry: `celery -A worker.app worker -Q retrain`."""

from typing import Any

from celery.signals import setup_logging

from shared.logs import configure_logs
from shared.queue import make_celery
from shared.settings import load_settings, settings_or_exit

app = make_celery(settings_or_exit())
app.conf.include = ["worker.tasks"]


@setup_logging.connect
def _logs(**_: Any) -> None:
    configure_logs(load_settings())
