"""The command ``hmamba-asr``.

Each subcommand is one module with two functions: ``add_parser`` declares the arguments, ``run`` does the work
and returns the exit status. PyTorch is imported only inside ``run``, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from hmamba_asr import __version__
from hmamba_asr.cli import boundaries, compare, demo, download, efficiency, prepare, report, transcribe, tune
from hmamba_asr.system.memory import keep_freed_memory

COMMANDS = (download, prepare, demo, transcribe, tune, compare, boundaries, efficiency, report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand.

    An error that the user can correct is one message on stderr. A fault of the program keeps its traceback.

    Parameters
    ----------
    argv
        The command line without the program's name. The default is that of this process.

    Returns
    -------
    int
        The exit status: 0 for success, 2 for an error of the user, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="hmamba-asr", description="Speech recognition with Mamba encoders.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands).set_defaults(run=command.run)
    args = parser.parse_args(argv)
    keep_freed_memory()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return args.run(args)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 130
