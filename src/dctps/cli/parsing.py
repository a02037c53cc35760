"""From words to a command: tyro reads the flags, and its errors become one line."""

from __future__ import annotations

import io
import re
import sys
import textwrap
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import is_dataclass
from itertools import pairwise
from typing import Any, get_type_hints

import tyro

_STYLE = (tyro.conf.OmitArgPrefixes, tyro.conf.DisallowNone)
# What tyro calls the values of flags.
_WORDS = (
    (r"\[(\w+) \[\1 \.\.\.\]\]", r"\1, any number of times"),
    (r"\{([^}]*)\}", lambda found: found[1].replace(",", " or ")),
    (r"\|", " or "),
    ("INT", "a whole number"),
    ("FLOAT", "a number"),
)


class FlagError(ValueError):
    """The words are no command; the message says which word, and what is wanted."""


def parse(kind: Any, argv: Sequence[str], *, prog: str, **choices: Any) -> Any:
    """The command, of the class or union `kind`, that the words `argv` after `prog` describe.

    After `--help` it raises SystemExit with status 0.
    """
    box, told = io.StringIO(), _Told()
    try:
        with redirect_stderr(box), redirect_stdout(told):
            return tyro.cli(kind, prog=prog, args=argv, config=_STYLE, **choices)
    except (ImportError, AssertionError) as error:  # completion for a shell that tyro does not know
        raise FlagError(str(error)) from None
    except SystemExit as end:
        if not end.code:
            completion = any(word.startswith("--tyro") for word in argv)
            print(told.getvalue() if completion else _wrapped(told.getvalue()), end="")
            raise
        raise FlagError(_one_line(box.getvalue(), argv)) from None


class _Told(io.StringIO):
    """What is printed for standard output, in colours where that shows some."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def _wrapped(told: str) -> str:
    """Help whose lines outside of frames are no longer than those of frames."""
    lines: list[str] = []
    width = 80
    told = re.sub(r"\{[\w,]{70,}\}", "COMMAND ...", told, count=1)  # all of them are listed below
    for line in told.splitlines():
        is_prose = line[:1] not in ("", "│", "╭", "╰", "\x1b") and len(line) > width
        indent = "    " if line.startswith("usage:") else ""
        broken = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False)
        lines += broken if is_prose else [line]
    return "\n".join(lines) + "\n"


def fields_last(kind: type, argv: Sequence[str]) -> list[str]:
    """The words with each `name=value` after all flags, for commands of that kind; values of flags stay."""
    switches = {f"--{sign}{name}" for name in _switches(kind) for sign in ("", "no-")}
    assignments: list[str] = []
    rest: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_value = before.startswith("--") and "=" not in before and before not in switches
        (assignments if re.match(r"\w+=", word) and not is_value else rest).append(word)
    return rest + assignments


def _switches(kind: Any) -> list[str]:
    """The flags that take no value, of a command and of the groups of flags within it."""
    names: list[str] = []
    for name, hint in get_type_hints(kind).items():
        names += [name.replace("_", "-")] if hint is bool else _switches(hint) if is_dataclass(hint) else []
    return names


def _one_line(box: str, argv: Sequence[str]) -> str:
    """What the box says, without its frame, the help of the flag, and Python's own words."""
    lines = [line.strip("│ ") for line in box.splitlines() if line[:1] == "│"]
    message, *more = "\n".join(lines).split("─" * 8)
    if found := re.match(r"Error parsing (--[\w-]+)", message):
        flag = found[1]
        wanted = re.search(rf"^{flag} (.+)$", "\n".join(lines), re.MULTILINE)
        kind = wanted[1] if wanted else "another value"
        for pattern, words in _WORDS:
            kind = re.sub(pattern, words, kind)
        return f"{flag} wants {kind}, got {' '.join(_values(flag, argv)) or 'nothing'}"
    message = " ".join(message.split())
    for flag, word in pairwise(argv):
        if message == f"Unrecognized options: {word}" and flag.startswith("--") and word[:1] != "-":
            return f"{flag} takes no value, got {word}: write {flag}, or --no-{flag[2:]} for the contrary"
    message = re.sub(
        r"Expected one of \(([^)]*)\)", lambda m: f"Expected one of {m[1]}".replace("'", ""), message
    )
    near = re.findall(r"^(--[\w-]+)", "\n".join(more), re.MULTILINE)
    if "Perhaps you meant" in "".join(more) and near:
        return f"{message}: did you mean {' or '.join(dict.fromkeys(near))}?"
    return message


def _values(flag: str, argv: Sequence[str]) -> list[str]:
    """The words that `flag` is given, the last time."""
    values: list[str] = []
    is_ours = False
    for word in argv:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            is_ours = name.replace("_", "-") == flag
            values = [value] * bool(equals) if is_ours else values
        elif is_ours:
            values.append(word)
    return values
