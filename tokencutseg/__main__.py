"""`tokencutseg` and `python -m tokencutseg`."""

import sys


def main() -> int:
    """Run the command line; Ctrl-C gives no traceback while modules are imported, either."""
    try:
        from tokencutseg import cli

        return cli.main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
