"""Log records of a program: on the console, and in the log file of its run."""

import logging
import sys
from logging.handlers import MemoryHandler
from pathlib import Path

from tqdm import tqdm

from detector.runtime.exits import stdout_closed
from detector.runtime.ranks import is_main

FORMAT = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
# Holds records logged before there is a log file, such as findings in the data.
_early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)


class ConsoleHandler(logging.Handler):
    """Write to stdout, above a progress bar if there is one. If nobody reads it or its disk is full, discard it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            if not stdout_closed():
                self.handleError(record)
        except Exception:
            self.handleError(record)


class LogFileHandler(logging.FileHandler):
    """Write to a file. What a full disk does not take is lost, without a message for each line."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def set_up_logging() -> None:
    """Log to the console. With several processes, only the first one logs, except for errors."""
    global _early
    _early = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    console = ConsoleHandler()
    console.setFormatter(FORMAT)
    level = logging.INFO if is_main() else logging.ERROR
    logging.basicConfig(level=level, handlers=[console, _early], force=True)  # drops those of a sweep's last run


def log_to_file(path: Path) -> None:
    """Log the first process to this file too, including the records since the start of the program."""
    if not is_main():
        return
    handler = LogFileHandler(path, encoding="utf-8")
    handler.setFormatter(FORMAT)
    _early.setTarget(handler)
    _early.flush()
    logging.getLogger().removeHandler(_early)
    logging.getLogger().addHandler(handler)
