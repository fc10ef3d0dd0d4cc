"""Writing results so that an interruption leaves nothing half-written behind."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from qwen_asr_jax.errors import OutputError

_partial: set[pathlib.Path] = set()


@contextlib.contextmanager
def new_directory(out_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary directory that becomes `out_dir` when the block ends well, and vanishes when it does not.

    Raises:
      OutputError: `out_dir` exists and is not empty, or its parent cannot be written.
    """
    out_dir = out_dir.expanduser().absolute()
    if out_dir.is_symlink() or (out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir()))):
        raise OutputError(f"{out_dir}: exists already; remove it or choose another --out")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        partial = pathlib.Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.partial-", dir=out_dir.parent))
        partial.chmod(0o755)
    except OSError as e:
        raise OutputError(f"{out_dir}: cannot be written ({e.strerror})") from None
    _partial.add(partial)
    try:
        yield partial
        if out_dir.exists():
            out_dir.rmdir()
        partial.rename(out_dir)
    except OSError as e:
        raise OutputError(f"{out_dir}: cannot be written ({e.strerror or e})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already, if all went well
        _partial.discard(partial)


def writable_directory(path: pathlib.Path) -> pathlib.Path:
    """Creates the directory if need be and makes sure that files can be written into it.

    Raises:
      OutputError: it cannot be created or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as e:
        raise OutputError(f"{path}: results cannot be written there ({e.strerror}); choose another directory") from None
    return path


@contextlib.contextmanager
def scratch_directory() -> Iterator[pathlib.Path]:
    """A directory for the block, among the system's temporary files; it vanishes with the block, or an interruption.

    Raises:
      OutputError: there is no place for it.
    """
    try:
        path = pathlib.Path(tempfile.mkdtemp(prefix="qwen_asr_jax-"))
    except OSError as e:
        raise OutputError(f"{tempfile.gettempdir()}: temporary files cannot be written there ({e.strerror})") from None
    _partial.add(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        _partial.discard(path)


def write_text(path: pathlib.Path, text: str) -> None:
    """`write_bytes` of the text in UTF-8; what no encoding can hold is written as an escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_bytes(path: pathlib.Path, data: bytes) -> None:
    """Writes the file in one step: readers see the old content or the new, never a part.

    Raises:
      OutputError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=".partial-", dir=path.parent)
        partial = pathlib.Path(name)
        _partial.add(partial)
        try:
            with os.fdopen(handle, "wb") as f:
                f.write(data)
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
            _partial.discard(partial)
    except OSError as e:
        raise OutputError(f"{path}: cannot be written ({e.strerror})") from None


def remove_partial() -> None:
    """Removes what is being written right now; for a process that ends at once."""
    for path in list(_partial):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sha256_of(path: pathlib.Path) -> str:
    """sha256 of a file's bytes, as hexadecimal digits.

    Raises:
      OSError: it cannot be read.
    """
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
