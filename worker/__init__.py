"""The trainer: Celery tasks and the retrain workflow."""
