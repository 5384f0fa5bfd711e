"""From a command's end to an exit code: 0 done, 1 failed, 2 bad usage or settings.

Promises that whatever goes wrong is one clear line on stderr, masked (promise 11), and that a
traceback is seen only by those who ask for it (`--debug`, LOG_LEVEL=DEBUG).
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import TYPE_CHECKING, NoReturn

import click

from daemon.cli.commands import fullpass
from daemon.errors import FullpassError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, FAILED, BAD_USAGE = 0, 1, 2


def main() -> NoReturn:
    """Run the command that the process was started with, and end the process."""
    sys.exit(exit_code_of(sys.argv[1:]))


def exit_code_of(given: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    debug = "--debug" in given or _debugging()
    try:
        # --debug is understood wherever it stands, after a command's name too.
        code = fullpass.main(
            [word for word in given if word != "--debug"],
            prog_name="fullpass",
            standalone_mode=False,
        )
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped", err=True)
        return FAILED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nothing is left to be said, not even by the
        # interpreter's own flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # noqa: BLE001 - the last stop of every error: told, never swallowed
        return _told(error, debug=debug)
    return code if isinstance(code, int) else DONE


def _told(error: Exception, *, debug: bool) -> int:
    """Say what happened in a line and return the exit code."""
    from daemon.cli.terminal import printable, printable_lines
    from daemon.logs import masked  # structlog: not for commands that succeed

    if debug:
        click.echo(printable_lines(masked("".join(traceback.format_exception(error)))), err=True)
    if isinstance(error, FullpassError):
        usage = isinstance(error, UsageError)
        # About settings we speak ourselves and never quote a value; a mask that looks for
        # "NAME: value" would take "ANTHROPIC_API_KEY: not set" for one.
        told = str(error) if usage else masked(str(error))
        first, *more = printable_lines(told).splitlines() or [type(error).__name__]
        click.echo("\n  ".join([f"error: {first}", *more]), err=True)
        return BAD_USAGE if usage else FAILED
    said = printable(masked(str(error)).strip().partition("\n")[0])
    hint = "" if debug else " (--debug shows where)"
    click.echo(f"error: unexpected {type(error).__name__}: {said}{hint}", err=True)
    return FAILED


def _debugging() -> bool:
    return os.environ.get("LOG_LEVEL", "").strip().upper() == "DEBUG"
