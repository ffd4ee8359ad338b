"""`tokencutseg` and `python -m tokencutseg`."""

import sys
from pathlib import Path


def main() -> int:
    """Run the command line; Ctrl-C gives no traceback while modules are imported, either."""
    try:
        Path.cwd()  # which modules ask for while they are imported
    except FileNotFoundError:
        print("error: the current folder was removed; change into another", file=sys.stderr)
        return 2
    try:
        from tokencutseg import cli

        return cli.main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
