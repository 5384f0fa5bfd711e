"""fullpass: a daemon that turns a person's whole chat export into facts, a MEMORY and sections."""

__version__ = "0.1.0"
"""Told here and nowhere else: asking the installed package costs a third of the reader's start."""
