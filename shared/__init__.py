"""What the API, the workers and the command agree on."""
