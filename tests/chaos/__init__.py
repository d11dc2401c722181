"""A whole stack under labelled traffic, whose parts are killed, frozen and cut off; then every promise."""
