"""When something that happens every so often is due."""


def is_due(before: int, after: int, every: int) -> bool:
    """Whether a counter that went from ``before`` to ``after`` passed or reached a multiple of ``every``.

    It depends on the counter alone, so a resumed run keeps the rhythm of the run that it continues. ``every=0`` is
    never due.
    """
    return every > 0 and after // every > before // every
