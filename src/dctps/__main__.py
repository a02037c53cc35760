"""`python -m dctps`."""

import sys

from dctps.cli import main

sys.exit(main())
