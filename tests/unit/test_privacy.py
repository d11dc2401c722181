"""Nothing is reported to anybody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("module", ["api.serving", "worker.graphs"])
@pytest.mark.parametrize("telemetry", [False, True])
def test_onnxruntime_keeps_no_record_to_send(module: str, telemetry: bool, tmp_path: Path) -> None:
    """It makes a database of events under HOME where telemetry is on."""
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    if telemetry:  # what the test looks for is there if it isn't turned off
        env["ORT_DISABLE_TELEMETRY"] = "0"
    code = f"import {module}, onnxruntime; onnxruntime.get_available_providers()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=env)
    assert any(tmp_path.rglob("onnxruntime*")) == telemetry
