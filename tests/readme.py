"""The commands of the README, by name, so that tests run what is written there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
TRY, UP, PREDICT, LABELS, WATCH, OWN_DATA, CONTAINERS, FIRST_MODEL, RETRAIN, FOR_REAL = BLOCKS
(SCALE,) = re.findall(r"`(API_PORTS=[^`]+)`", TEXT)
