"""The command line, called as a function."""

from tokencutseg.cli import main


def run(command="", *arguments):
    """main()'s exit status; argparse's own exits count too. `command` is split at its spaces."""
    try:
        return main([*command.split(), *map(str, arguments)])
    except SystemExit as leave:
        return leave.code
