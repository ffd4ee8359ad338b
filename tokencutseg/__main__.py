"""`python -m tokencutseg`."""

import sys

from tokencutseg.cli import main

sys.exit(main())
