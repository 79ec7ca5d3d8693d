"""How a training script ends: its exit code, and what it says if it ends early."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch.distributed as dist

from hmamba_asr.system.screen import say

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT
EXIT_PREEMPTED = 143  # 128 + SIGTERM: a scheduler tells "saved, run me again" from "done"
MAIN_SPEAKS_FIRST = 5.0  # seconds


class Preempted(Exception):
    """SIGTERM arrived, and the state of training is saved in ``folder``."""

    def __init__(self, folder: str | Path):
        super().__init__(f"SIGTERM: training is saved in {folder}; run the same command to go on.")


def run_script(main: Callable[[list[str]], int]) -> NoReturn:
    """End the process with what ``main`` returns for the command line.

    After an error that a user can mend, stderr has one line and the exit code is 2.
    """
    failed = False
    try:
        code = main(sys.argv[1:])
    except SystemExit:  # raised by argparse, before any work has begun
        raise
    except Preempted as preempted:  # all ranks leave together, as after a finished run
        say(str(preempted))
        code = EXIT_PREEMPTED
    except (ValueError, OSError) as error:
        logger.debug("Traceback:", exc_info=True)  # goes to log.txt once the output folder exists
        _print_error(str(error))
        code, failed = EXIT_BAD_INPUT, True
    except KeyboardInterrupt:
        if not _rank():
            print("interrupted; run the same command again", file=sys.stderr)
        code, failed = EXIT_INTERRUPTED, True
    except BaseException:  # a fault of the program
        logger.debug("Traceback:", exc_info=True)
        traceback.print_exc()
        code, failed = 1, True
    if dist.is_initialized() and not failed:  # after an error, torchrun ends the others
        # All ranks leave together. A rank sometimes aborts while it shuts down (seen with gloo), and torchrun
        # then stops the others, which may still be writing results.
        dist.barrier()
    # os._exit does not wait for the loader's workers, which ignore SIGTERM. They end once they see that this
    # process has ended.
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _print_error(message: str) -> None:
    """Print the error once, although most errors reach every process under torchrun.

    The main process prints at once, and torchrun then ends the others. What only another process has met is
    printed a little later.
    """
    if _rank():
        time.sleep(MAIN_SPEAKS_FIRST)
        message = f"{message} (process {_rank()})"
    print(f"error: {message}", file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK", 0))
