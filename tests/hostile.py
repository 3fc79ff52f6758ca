"""Broken input by the hundred, from seeds: what may happen to bytes, to values, and how an answer to it is judged."""

import json
import math
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from fsdino.cli import EXPECTED_ERRORS, sentence

SECONDS = 10  # in which every call has to end
DEEP = 10_000
MORE_BYTES = 2_000_000_000  # that a call may take
# Values that some option somewhere takes and most do not.
ODD_VALUES: dict[str, Any] = {
    "nothing": None, "text": "x", "an empty text": "", "minus one": -1, "huge": 10**9, "beyond 64 bits": 10**30,
    "a fraction": 0.123, "NaN": math.nan, "infinity": math.inf, "true": True, "a list": ["a", -1], "a table": {"a": -1},
    "a list of lists": [[[]]], "control characters": "a\nb\x07",
}  # fmt: skip


@dataclass
class Tally:
    """How the cases of one kind ended; `wrong` says what must not happen."""

    refused: int = 0
    same: int = 0
    other: int = 0
    wrong: dict[str, str] | None = None

    @property
    def tried(self) -> int:
        return self.refused + self.same + self.other + len(self.wrong or {})


class TooSlow(BaseException):
    """Not an Exception, so that nothing catches it."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Ends what takes longer, and refuses memory to what asks for much, in place of a machine without any."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before, limit = signal.signal(signal.SIGALRM, stop), resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MORE_BYTES, limit[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def judge(tally: Tally, case: str, call: Callable[[], Any], wanted: Any = None, free: bool = False) -> None:
    """Try one case: the same answer, or a refusal in one sentence; anything else is noted as wrong.

    Args:
        wanted: the answer to the unbroken input, to be compared with `alike`.
        free: another answer is right too: the input has no checksum, and says something else that can be meant.
    """
    tally.wrong = {} if tally.wrong is None else tally.wrong
    try:
        with within(SECONDS):
            found = call()
    except EXPECTED_ERRORS as error:
        said = sentence(error)
        if not said.strip() or "Traceback" in said or "\n" in said or said[-1] not in ".;!?)":
            tally.wrong[case] = f"no sentence: {said!r:.300}"
        else:
            tally.refused += 1
    except TooSlow:
        tally.wrong[case] = f"takes more than {SECONDS} s"
    except BaseException as error:
        tally.wrong[case] = f"{type(error).__name__}: {str(error)[:200]!r}"
    else:
        if alike(found, wanted):
            tally.same += 1
        elif free:
            tally.other += 1
        else:
            tally.wrong[case] = f"another answer in silence: {found!r:.120}"


def alike(a: Any, b: Any) -> bool:
    """Whether two answers are the same to the last bit."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return bool(a == b)


def damaged(data: bytes, seed: int, flips: int = 8, cuts: int = 4) -> Iterator[tuple[str, bytes]]:
    """Bytes of a file after what disks, transfers and editors do to them."""
    rng = np.random.default_rng(seed)
    yield "no bytes", b""
    for _ in range(cuts):
        length = int(rng.integers(1, len(data)))
        yield f"cut at {length}", data[:length]
    yield "without its last byte", data[:-1]
    for _ in range(flips):
        place, bit = int(rng.integers(len(data))), int(rng.integers(8))
        yield f"bit {bit} of byte {place}", data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
    # Headers are short, and what they say decides most.
    for place in rng.integers(min(64, len(data)), size=max(2, flips // 2)).tolist():
        yield f"header byte {place}", data[:place] + bytes([int(rng.integers(256))]) + data[place + 1 :]
    start = int(rng.integers(len(data)))
    yield f"zeros from {start}", data[:start] + bytes(len(data) - start)
    yield "twice", data + data
    yield "another file", b"\x89PNG\r\n\x1a\n" + bytes(rng.integers(0, 256, 200, dtype=np.uint8))
    yield "not UTF-8", b"\xff\xfe\xfa" + data[:50]


def hostile_texts() -> dict[str, str]:
    """Texts that parsers of JSON and YAML stumble over."""
    aliases = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    aliases += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    return {
        "deep lists": "[" * DEEP + "]" * DEEP, "deep tables": '{"a":' * DEEP + "1" + "}" * DEEP,
        "deep and open": "[" * DEEP, "a number": "1", "a text": '"x"', "null": "null", "a list": "[]", "a table": "{}",
        "a long number": '{"format_version": ' + "9" * 6000 + "}", "NaN": "NaN", "billion laughs": "\n".join(aliases),
        "itself": "a: &a [*a]", "a Python object": "!!python/object/apply:os.system ['true']", "a tab": "a:\n\t- b",
        "two documents": "a: 1\n---\nb: 2",
    }  # fmt: skip


def changed(values: Any, seed: int, count: int) -> Iterator[tuple[str, Any]]:
    """A JSON value in which one entry at a random place is taken out or replaced by an odd value."""
    rng = np.random.default_rng(seed)
    paths = list(_paths(values))
    for _ in range(count):
        path = paths[int(rng.integers(len(paths)))]
        name = str(rng.choice([*ODD_VALUES, "gone"]))
        copy = json.loads(json.dumps(values))
        holder = copy
        for key in path[:-1]:
            holder = holder[key]
        if name == "gone":
            del holder[path[-1]]
        else:
            holder[path[-1]] = ODD_VALUES[name]
        yield f"{'.'.join(map(str, path))} = {name}", copy


def _paths(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inside:
        yield (*at, key)
        yield from _paths(value, (*at, key))


def leaves(kind: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Names of all fields of a dataclass and of the dataclasses in it."""
    kinds = get_type_hints(kind)
    for one in fields(kind):
        if is_dataclass(kinds[one.name]):
            yield from leaves(kinds[one.name], (*at, one.name))
        else:
            yield (*at, one.name)


def replaced(path: Path, data: bytes) -> Path:
    """The file with other bytes."""
    path.write_bytes(data)
    return path


def ended(tally: Tally, name: str, tried: int) -> None:
    """Nothing was wrong, and enough was tried."""
    print(f"{name}: {tally.tried} tried, {tally.refused} refused, {tally.same} the same, {tally.other} another input")
    wrong = tally.wrong or {}
    assert not wrong, f"{name}: {len(wrong)} of {tally.tried}\n" + "\n".join(f"  {k}: {v}" for k, v in wrong.items())
    assert tally.tried >= tried and tally.refused > 0
