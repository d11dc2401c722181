"""How many cores this process may use: its affinity, or its container's quota if that is less."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""A container sees its own group here."""


def cores(cgroup: Path = CGROUP) -> int:
    """Whole cores, at least 1; a quota of 1.5 is 2."""
    # Not every system can pin a process to cores.
    pinned = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return pinned if quota is None else max(1, min(pinned, math.ceil(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores that the container may use on average, or None if it may use all."""
    try:
        # version 2: "150000 100000", or "max 100000" without a limit
        used, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
    except FileNotFoundError:
        try:
            # version 1: -1 without a limit
            used = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
            period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            return None
    if used == "max" or int(used) <= 0:
        return None
    return int(used) / int(period)
