"""The container engine that these tests run on: the one that answers, else one that a script starts."""

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
STARTER = "RATCHET_TEST_ENGINE"
"""Names a script that starts an engine and prints the `export` lines which a shell needs to reach it."""


def reach() -> str | None:
    """Make the engine answer; tells what is missing if it can't."""
    if shutil.which("docker") and _answers():
        return None
    script = os.environ.get(STARTER)
    if not script:
        return f"no container engine answers, and {STARTER} names no script that starts one"
    os.environ["PATH"] += ":/usr/sbin:/sbin"  # where daemons are, which not every shell looks through
    started = subprocess.run(["bash", script], capture_output=True, text=True, check=False, timeout=600)
    if started.returncode:
        return f"the engine could not be started: {started.stderr.strip().splitlines()[-1:]}"
    for line in started.stdout.splitlines():
        for pair in line.removeprefix("export ").split():
            name, _, value = pair.partition("=")
            os.environ[name] = value
    return None if _answers() else "an engine was started, and it does not answer"


def docker(*arguments: str, seconds: float = 600, text: str | None = None, check: bool = True) -> str:
    """Run a docker command; answers what it printed.

    Args:
        arguments: of `docker`.
        seconds: longest that it may take.
        text: its standard input.
        check: whether it must succeed; if not, its errors are part of the answer.
    """
    done = subprocess.run(
        ["docker", *arguments],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
        cwd=ROOT,
    )
    if not check:
        return done.stdout + done.stderr
    assert done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def _answers() -> bool:
    """Whether both the engine and compose are there."""
    commands = (["docker", "version"], ["docker", "compose", "version"])
    return all(subprocess.run(c, capture_output=True, check=False).returncode == 0 for c in commands)
