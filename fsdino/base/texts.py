"""JSON and YAML that may come from anywhere: what is no value, or would not fit into memory, is a ValueError."""

from __future__ import annotations

import json
from typing import Any

import yaml

MAX_NODES = 1_000_000  # values that a YAML file may stand for


def plain_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def plain_yaml(text: str) -> Any:
    """The value of a YAML text, of plain kinds alone.

    Raises:
        ValueError: if it is none, nested too deeply, or stands for too many values.
    """
    try:
        # Looked at before it is built: a few aliases of aliases stand for more values than any memory holds.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _count(node, {}) > MAX_NODES:
            raise ValueError(f"it stands for more than {MAX_NODES:,} values")
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply, or holds itself") from error
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values that a node stands for; each alias counts as all that it names."""
    if id(node) not in known:
        inside = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for pair in inside for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]
