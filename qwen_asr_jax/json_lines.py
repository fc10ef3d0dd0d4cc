"""Files of results: one JSON object per line, appended by one process at a time, read with whatever is wrong in them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from qwen_asr_jax.errors import OutputError, UsageError

T = TypeVar("T")


def parse_object(line: str, schema: int, required: Iterable[str]) -> dict[str, Any]:
    """The JSON object of one line.

    Args:
      schema: what its `schema` must be.
      required: keys that it must have.

    Raises:
      ValueError: it is none, of another schema, or lacks keys; the message says in what.
    """
    try:
        values = json.loads(line)
    except json.JSONDecodeError as e:
        raise ValueError(f"not JSON ({e.msg} at column {e.colno})") from None
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    if values.get("schema") != schema:
        raise ValueError(f"schema {values.get('schema')!r}, this version reads {schema}")
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"without {', '.join(missing)}")
    return values


def read_lines(paths: Iterable[pathlib.Path], parse: Callable[[str], T]) -> tuple[list[T], list[str]]:
    """What `parse` makes of every line of the files, and for each line that it refuses one: `FILE:LINE: why`.

    Args:
      parse: raises ValueError for a line that is none of its kind.

    Raises:
      UsageError: a file cannot be read.
    """
    parsed: list[T] = []
    problems: list[str] = []
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as e:
            raise UsageError(f"{path}: cannot be read ({e.strerror})") from None
        for number, line in enumerate(data.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                parsed.append(parse(line.decode("utf-8")))
            except ValueError as e:  # UnicodeDecodeError is one
                problems.append(f"{path}:{number}: skipped, {e}")
    return parsed, problems


def append_lines(path: pathlib.Path, lines: Iterable[str]) -> None:
    """Appends one line each, all in one write; behind a line that was cut off, on lines of their own.

    Raises:
      OutputError: the file cannot be written.
    """
    _append(path, "".join(line + "\n" for line in lines).encode("utf-8"))


def check_appendable(path: pathlib.Path) -> None:
    """Finds out before a long measurement whether its result can be kept; creates the file's folder.

    Raises:
      OutputError: it cannot.
    """
    _append(path, b"")


def _append(path: pathlib.Path, lines: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab+", buffering=0) as f:
            if lines:
                end = f.seek(0, os.SEEK_END)
                f.seek(max(0, end - 1))
                cut_off = f.read(1) not in (b"", b"\n")
                f.write(b"\n" * cut_off + lines)
    except OSError as e:
        raise OutputError(f"{path}: results cannot be written there ({e.strerror}); choose another file") from None


@contextlib.contextmanager
def alone(path: pathlib.Path, what: str) -> Iterator[None]:
    """Keeps others of its kind, `what` it is, off a file of results: two at once would measure each other.

    Raises:
      UsageError: there is one.
      OutputError: the file cannot be written.
    """
    check_appendable(path)
    with open(path, "ab") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"{path}: another {what} is writing there; wait for it, or choose another --output") from None
        yield
