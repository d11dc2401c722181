"""The inference service: scores, records, answers."""
