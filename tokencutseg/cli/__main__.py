"""`python -m tokencutseg.cli`."""

import sys

from tokencutseg.cli import main

sys.exit(main())
