"""fullpass: a daemon that turns a person's whole chat export into facts, a MEMORY and sections."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fullpass")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
