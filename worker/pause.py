"""Pause points, where tests kill, freeze and cut off a worker at a step of their choice.

Nothing pauses unless `RATCHET_TEST_PAUSES` names a folder, which only tests do. A worker that comes to
a point whose file is there writes its pid beside it, as `<point>.reached`, and waits until the file
is gone.
"""

import os
import time
from pathlib import Path

VARIABLE = "RATCHET_TEST_PAUSES"
REACHED = ".reached"
POLL_SECONDS = 0.01


def pause(point: str) -> None:
    """Wait here for as long as a test asks for it."""
    folder = os.environ.get(VARIABLE)
    if not folder:
        return
    asked = Path(folder) / point
    if not asked.exists():
        return
    reached = asked.with_name(point + REACHED)
    reached.with_suffix(".part").write_text(str(os.getpid()), encoding="ascii")
    reached.with_suffix(".part").rename(reached)
    while asked.exists():
        time.sleep(POLL_SECONDS)
