"""Every kind of fault, many times: `make faults`, or `python -m tests.faults --seed 7 --videos 10000`.

Ends with one line of counts for each kind and exit code 1 if a case ended in any other way than it may.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm
from transformers.utils import logging

from tests.faults.checkpoints import ORIGINALS, checkpoint_cases
from tests.faults.kills import full_disk_cases, kill_cases
from tests.faults.sandbox import Case, counts, failures, run_cases
from tests.faults.videos import video_cases


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other faults (default 0)")
    parser.add_argument("--videos", type=int, default=2000, help="broken videos (default 2000)")
    parser.add_argument("--checkpoints", type=int, default=500, help="broken checkpoints of each family (default 500)")
    parser.add_argument("--kills", type=int, default=32, help="killed trainings and conversions (default 32)")
    parser.add_argument("--full_disks", type=int, default=12, help="disks that are full (default 12)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cases at a time (default: all processors)")
    return parser.parse_args()


def main() -> int:
    wanted = arguments()
    # The right answers of the checkpoints are made here: their reports are not what is looked for.
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kinds: dict[str, tuple[int, Iterator[Case]]] = {
        "videos": (wanted.videos, video_cases(wanted.seed, wanted.videos)),
        "checkpoints": (len(ORIGINALS) * wanted.checkpoints, checkpoint_cases(wanted.seed, wanted.checkpoints)),
        "kills": (wanted.kills, kill_cases(wanted.seed, wanted.kills)),
        "full disks": (wanted.full_disks, full_disk_cases(wanted.seed, wanted.full_disks)),
    }
    lines, wrong = [], []
    for kind, (number, cases) in kinds.items():
        begun = time.monotonic()
        results = list(tqdm(run_cases(cases, wanted.jobs), desc=kind, total=number, unit="case", mininterval=1))
        most = max((result.megabytes for result in results), default=0)
        lines.append(f"{kind}: {counts(results)} (at most {most:.0f} MB, {time.monotonic() - begun:.0f} s)")
        wrong.append(failures(results))
    print("\n\n".join(filter(None, wrong)))
    print("\n".join(lines))
    return int(any(wrong))


if __name__ == "__main__":
    sys.exit(main())
