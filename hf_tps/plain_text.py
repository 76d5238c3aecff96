# Copyright 2026 The hf_tps authors. Apache-2.0.
"""Text that others wrote (names of files and tensors, what a server answers) as a message may show it."""


def printable(text: object, limit: int = 300) -> str:
    """The text in one line: control characters escaped, and cut where it is too long.

    A terminal obeys control characters: a file name could clear the screen or forge a line of a log.

    Args:
        text: anything that `str` takes.
        limit: characters of the text that are shown; "..." follows where more were cut off.
    """
    shown = str(text)
    rest = "..." if len(shown) > limit else ""
    escaped = (
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in shown[:limit]
    )
    return "".join(escaped) + rest


def one_line(text: object, limit: int = 300) -> str:
    """`printable` text of several lines, with single spaces in place of its line breaks and indentation."""
    return printable(" ".join(str(text).split()), limit)
