"""Command line of the fuzzer; ends with status 1 if a reader failed."""

import argparse
import signal
import sys

from tests.fuzz.readers import READERS
from tests.fuzz.run import run

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
parser.add_argument("--files", type=int, default=2000, help="Mutated files, over all readers (default: 2000).")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--reader", choices=READERS, action="append", help="Only this one; may be given again.")
parser.add_argument("--workers", type=int, default=1)
parser.add_argument("--only", type=int, help="The number of one file, to repeat a failure.")
options = parser.parse_args()
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which ends with the counts so far
sys.exit(run(options.reader or list(READERS), options.files, options.seed, options.workers, options.only))
