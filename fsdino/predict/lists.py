"""Lists as people write them on a command line."""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str] | str) -> list[str]:
    """Read a list of names.

    Args:
        names: A sequence, or text like "labels,coco" or "[labels, coco]".

    Returns:
        The names, without blanks and empty ones.
    """
    parts = names.strip().removeprefix("[").removesuffix("]").split(",") if isinstance(names, str) else names
    return [name for part in parts if (name := part.strip().strip("'\""))]
