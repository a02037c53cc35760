"""`python -m dctps`."""

import os
import sys

from dctps.cli import main

status = main()
if "TORCHELASTIC_RUN_ID" in os.environ:
    # Under torchrun, torch's threads sometimes abort a process at its very end (1 run in 14, torch 2.13 on
    # gloo), which torchrun takes for a failure. All is written; nothing is left to be torn down.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
sys.exit(status)
