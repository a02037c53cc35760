"""The command line: one module for each command, with its flags and what it prints.

A command is a frozen dataclass, whose fields are its flags, with a method `perform(argv) -> status`;
`program.py` lists them.
"""

from dctps.cli.program import main

__all__ = ["main"]
