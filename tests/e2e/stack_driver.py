"""A stack in a process of its own, for the tests to signal and kill."""

import os
import subprocess
from pathlib import Path

import psutil
import pytest

from cli.processes import find
from cli.state import recorded_state

DRIVER = """
    # A stack of small programs: `upkeep` forks a child, `beat` does as it is told, the API answers.
    import signal, sys
    from pathlib import Path
    from cli.processes import Command, StackError
    from cli.stack import Stack
    from shared.settings import Settings

    home, port, beat = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    NOTE = "import os, signal, sys, time\\n"
    NOTE += "def end(*_):\\n open('order', 'a').write(NAME + ' ')\\n os._exit(0)\\n"
    NOTE += "signal.signal(signal.SIGTERM, end)\\n"
    PROGRAMS = {
        "upkeep": NOTE + "os.fork() or signal.signal(signal.SIGTERM, signal.SIG_IGN)\\ntime.sleep(600)",
        "beat": NOTE + beat,
        "api": NOTE + (
            "from http.server import BaseHTTPRequestHandler, HTTPServer\\n"
            "class Handler(BaseHTTPRequestHandler):\\n"
            " def do_GET(self):\\n  self.send_response(200); self.end_headers()\\n"
            "HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()"
        ),
    }

    def commands(*, port, logs, cwd, env, **_):
        return [
            Command(name=name, argv=[sys.executable, "-c", f"NAME = {name!r}\\n{code}", str(port)],
                    log=logs / f"{name}.log", env=env, cwd=cwd, stops=((signal.SIGTERM, 5.0),))
            for name, code in PROGRAMS.items()
        ]

    def report(text):
        print(text, flush=True)

    try:
        with Stack(settings=Settings(home=home), port=port, commands=commands, report=report,
                   backoff=0.02) as stack:
            stack.start_services()
            report("ready")
            stack.run()
    except KeyboardInterrupt:
        report("stopped")
    except StackError as exc:
        report(f"failed: {exc.detail}")
        sys.exit(1)
"""
SLEEP = "time.sleep(600)"
CRASH = "print('the reason is here', flush=True); sys.exit(3)"


class Driver:
    """A process that runs a stack; nothing that it started outlives the test."""

    def __init__(self, home: Path, command: list[str], **env: str) -> None:
        self.home = home
        self.output = ""
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "RATCHET_HOME": str(home), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read_until(self, text: str) -> None:
        """Read its output up to a line that holds the text; fail at the end of it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"no {text!r} in:\n{self.output}")

    def wait(self) -> int:
        """Read the rest, and its exit code."""
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(timeout=60)

    def family(self) -> list[psutil.Process]:
        """Every process of its stack, forked ones too."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """End it and all that it started, however the test went."""
        left = self.family() if self.process.poll() is None else []
        state = recorded_state(self.home)
        for record in state.pids if state else ():
            process = find(record)
            left += [process, *process.children(recursive=True)] if process else []
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        for process in left:
            if process.is_running():
                process.kill()
