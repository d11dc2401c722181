"""Where beat marks its last message, for the health check, which imports as little as it can."""

import os
import tempfile
from pathlib import Path

TICK = Path(tempfile.gettempdir()) / f"ratchet-beat-{os.getuid()}"
"""Its time of change is that of the last message that reached the broker."""
