"""Text from files, for a terminal, which obeys some characters rather than showing them."""

LONGEST = 2000


def printable(text: object) -> str:
    """A text on one line whose control characters are shown as escapes.

    They move the cursor, set the window's title, turn the direction of writing; and half a character cannot be printed.
    """
    line = str(text)
    if not line.isprintable():
        line = " ".join(line.split("\n"))
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)
    return line


def shortened(text: str) -> str:
    """A text whose middle is left out where it is very long: the end of an error says what can be done."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} [...] {text[-LONGEST // 2 :]}"
