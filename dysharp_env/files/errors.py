"""What a user is told of a mistake: one line, in which no text of a file is long or does anything to a terminal."""

from __future__ import annotations

import re
from reprlib import Repr
from typing import Any

_MOST_LETTERS = 200  # of a text from a file, and of a name
_MOST_OF_ALL = 4000  # letters of a message; the keys of a system take 3000
_ENDS = 120, 77  # letters that are kept of what is too long, and "..." between them
# Steers terminals, or is half of a character; white space does not.
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
# What a message quotes, or says without a space in it, and is too long: no prose of ours is.
_LONG = re.compile(rf"(?<!\w)'[^']{{{_MOST_LETTERS + 1},}}'(?!\w)|\S{{{_MOST_LETTERS + 1},}}")


class ConfigError(ValueError):
    """A value, key, name or file given by the user is wrong; the message is one line meant for them.

    Whatever it was made of: white space becomes spaces, what cannot be printed is escaped, and long texts are cut.
    """

    def __init__(self, message: str = "") -> None:
        """Takes the message."""
        super().__init__(one_line(message))


class Notice(UserWarning):
    """Something that is no mistake and that the user should know; commands print it as a line on standard error."""

    def __init__(self, message: str = "") -> None:
        """Takes the line, which is made one as that of a mistake is."""
        super().__init__(one_line(message))


def one_line(message: str) -> str:
    """Returns a message as one line that can be printed, with the long texts in it cut."""
    line = escaped(" ".join(message[: 100 * _MOST_OF_ALL].split()))
    line = _LONG.sub(lambda found: _cut(found[0]), line)
    return line if len(line) <= _MOST_OF_ALL else f"{line[: _MOST_OF_ALL - 3]}..."


def shown(value: Any) -> str:
    """Returns a text from a file, or how Python writes another value, so that it can be printed; long ones are cut."""
    text = value if isinstance(value, str) else _SHORT.repr(value)
    return _cut(escaped(_cut(text)))


def escaped(text: str) -> str:
    """Returns a text with what cannot be printed, such as what steers terminals and halves of characters, escaped."""
    return text if text.isprintable() else "".join(each if each.isprintable() else _number(each) for each in text)


def _number(letter: str) -> str:
    return letter.encode("unicode-escape", "surrogatepass").decode()


def _cut(text: str) -> str:
    first, last = _ENDS
    return text if len(text) <= _MOST_LETTERS else f"{text[:first]}...{text[-last:]}"


class _Short(Repr):
    """Python's way to write values, of which long and deep ones are cut before they are written."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict, self.maxother = 4, 12, 2 * _MOST_LETTERS
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 12
        self.maxstring = self.maxlong = _MOST_LETTERS

    def repr_int(self, value: int, level: int) -> str:
        """Returns a number, of thousands of digits how many bits it has: Python refuses to write it."""
        bits = value.bit_length()
        return repr(value) if bits <= 3 * _MOST_LETTERS else f"<number of {bits} bits>"


_SHORT = _Short()
