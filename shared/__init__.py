"""What the API, the workers and the command agree on."""

import os

# onnxruntime's wheels report to their maker by default. What is served and trained here is its owner's
# affair; whoever wants to report sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
