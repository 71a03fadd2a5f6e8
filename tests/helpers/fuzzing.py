"""Feed a reader of files with what no one would write on purpose: it takes it, or raises our one error.

Nothing may be written, run or connected to meanwhile, and no example may take long. A few examples in the suite;
FUZZ_SECONDS=600 python -m pytest tests/fuzz -s -k images    continues for 10 minutes for each test, and
says how many examples those were.
"""

import copy
import itertools
import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from detector.errors import InputError
from tests.helpers.watch import nothing_happens

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
TOO_LONG_S = 60  # for one example


def fuzz(
    name: str, strategy: st.SearchStrategy, read: Callable[[Any], None], path: Path | None = None, but: str = ""
) -> None:
    """Call `read` with 30 examples, or with as many as fit into FUZZ_SECONDS; it may raise InputError alone.

    With `path` an example is the contents of that file, and `read` gets the path. `but`: see `nothing_happens`.
    """
    end, count = time.monotonic() + SECONDS, 0

    def once(example: Any) -> None:
        nonlocal count
        count += 1
        if path:
            path.write_bytes(example)
        signal.alarm(TOO_LONG_S)
        with warnings.catch_warnings(), nothing_happens(but):
            warnings.simplefilter("ignore")
            with suppress(InputError):
                read(path or example)
        signal.alarm(0)

    options = hypothesis_settings(
        max_examples=100 if SECONDS else 30, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    first = time.time_ns() if SECONDS else 0  # the suite always has the same examples
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail(f"an example takes more than {TOO_LONG_S} s"))
    try:
        for batch in itertools.count(first):
            seed(batch)(options(given(strategy)(once)))()
            if time.monotonic() >= end:
                break
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        print(f"\n{name}: {count} examples")


SMALL = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from([0, -1, 1, 10**6, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", ".", "/", "1", "auto",
                     "cpu", "\ud800", "\0", "../x"]),
)  # fmt: skip
ANYTHING = st.recursive(
    SMALL,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> bytes:
    """A file with a few bytes changed, cut off, taken out, doubled or put in."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        # most of the structure of a file is at its beginning and its end
        near = st.integers(0, min(300, len(data))) | st.integers(max(0, len(data) - 300), len(data))
        start = draw(near | st.integers(0, len(data)))
        length = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["set", "flip", "cut", "out", "double", "in"]))
        if kind == "set":
            data[start : start + length] = draw(st.binary(min_size=length, max_size=length))
        elif kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[start:]
        elif kind == "out":
            del data[start : start + length]
        elif kind == "double":
            data[start:start] = data[start : start + 40 * length]
        elif kind == "in":
            data[start:start] = draw(st.binary(max_size=length))
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, whole: dict | list) -> dict | list:
    """Nested dicts and lists with some values exchanged for anything, taken out, put in, or there twice."""
    result = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = result
        while True:
            keys = sorted(node, key=str) if isinstance(node, dict) else [*range(len(node))]
            key = draw(st.sampled_from(keys) if keys else st.text(max_size=5))
            if keys and isinstance(node[key], dict | list) and draw(st.integers(0, 9)):
                node = node[key]
            else:
                break
        kind = draw(st.integers(0, 5))
        if kind == 0 and keys:
            del node[key]
        elif isinstance(node, dict):
            node[key] = draw(ANYTHING)
        elif kind == 1 and keys:
            node.append(copy.deepcopy(node[key]))
        else:
            node[slice(key, key + 1) if keys else slice(0)] = [draw(ANYTHING)]
    return result


def as_json(content: object) -> bytes:
    return json.dumps(content).encode()
