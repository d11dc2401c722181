"""Random faults, seed after seed: `python -m tests.chaos --seeds 1-20 --faults 6`."""

import argparse
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos.catalogue import play_random
from tests.chaos.stack import Stack


def main() -> int:
    """Play each seed on a stack of its own; answers 1 at the first in which a promise broke."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1", help="one, or first-last")
    parser.add_argument("--faults", type=int, default=6, help="how many each")
    parser.add_argument("--keep-going", action="store_true", help="play the rest after one that broke")
    given = parser.parse_args()
    first, _, last = given.seeds.partition("-")
    broken = []
    for seed in range(int(first), int(last or first) + 1):
        if not _is_clean(seed, given.faults):
            broken.append(seed)
            if not given.keep_going:
                break
    print(f"broken seeds: {broken}" if broken else f"seeds {given.seeds} are clean")
    return int(bool(broken))


def _is_clean(seed: int, faults: int) -> bool:
    start = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix=f"ratchet-chaos-{seed}-"))
    try:
        with Stack(folder) as stack:
            print(f"seed {seed}, {'a' if stack.is_mounted else 'no'} store of its own to fill", flush=True)
            for line in play_random(stack, seed, faults):
                print(f"  {line}", flush=True)
    except AssertionError:
        traceback.print_exc()
        print(f"seed {seed}: BROKEN after {time.monotonic() - start:.0f} s; the logs are in {folder}/logs")
        return False
    print(f"seed {seed}: clean, {time.monotonic() - start:.0f} s", flush=True)
    shutil.rmtree(folder)
    return True


if __name__ == "__main__":
    sys.exit(main())
