"""`python -m seqtrack`: hands over to the command line."""

import sys

from seqtrack.cli import main

sys.exit(main())
