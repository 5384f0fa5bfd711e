"""The command line: the only room that prints for people.

`commands` declares every command and its help and imports nothing heavy; what a command does stands
in the module of its name. Results go to stdout, progress and logs to stderr. Exit codes: 0 done,
1 failed, 2 bad usage or settings (`entry`).
"""

from daemon.cli.entry import main

__all__ = ["main"]
