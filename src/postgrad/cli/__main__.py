"""`python -m postgrad.cli`: the same as the command `postgrad`."""

import sys

from postgrad.cli import main

sys.exit(main())
