"""What is to be transcribed, and what it says: manifests in three forms, read whole and checked before a model is loaded.

JSON lines (`{"audio": ..., "text": ...}`, NeMo's too), a LibriSpeech folder (`*.trans.txt` beside FLAC files), or a table with
tabs like Common Voice's. Whatever is wrong has one line: file, line number, remedy.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.text.languages import LANGUAGE_CODES, canonical

Value: TypeAlias = str | int | float

_EXAMPLE = 'a line is {"audio": "a.wav", "text": "What it says."}'
_OURS = {"audio", "audio_filepath", "text", "language", "id", "duration", "offset"}
_COMMON_VOICE = {"path", "sentence", "locale"}
_MACRO_CODES = {"zh-hk": "Cantonese", "cmn": "Chinese", "nb": "Norwegian", "tl": "Filipino"}
"""Codes of corpora that do not begin with the model's own code of the language."""


@dataclasses.dataclass(frozen=True)
class Clip:
    """One line of a manifest.

    Attributes:
      id: what tells it apart; the audio's path as written where the manifest gives none.
      audio: its path as the manifest has it.
      path: where that is.
      text: what is said; blank where nothing is.
      language: name of the reference's language, as the model writes it; "" where the manifest does not say.
      duration_s: seconds, if the manifest says.
      fields: its further strings and numbers, which clips can be grouped by.
    """

    id: str
    audio: str
    path: pathlib.Path
    text: str
    language: str = ""
    duration_s: float | None = None
    fields: dict[str, Value] = dataclasses.field(default_factory=dict)


def read_manifest(source: pathlib.Path, limit: int = 0) -> list[Clip]:
    """The clips of a manifest, in its order.

    Args:
      source: a file of JSON lines, a `.tsv` table, or a folder that holds `*.trans.txt` somewhere.
      limit: only so many of its first clips; 0 for all.

    Raises:
      UsageError: it cannot be read, holds no clip, two of one id, a broken line, or one whose audio file is not there.
    """
    if source.is_dir():
        lines = _librispeech(source)
    elif source.suffix.lower() == ".tsv":
        lines = _common_voice(source)
    else:
        lines = _json_lines(source)
    clips: list[Clip] = []
    places: dict[str, str] = {}
    for place, clip in lines:
        if clip.id in places:
            raise UsageError(f"{place}: id {clip.id!r} is that of {places[clip.id]}, too; give each clip an 'id' of its own")
        places[clip.id] = place
        if not os.path.isfile(clip.path):  # pathlib raises for a name that is too long
            raise UsageError(f"{place}: no such audio file: {clip.path}")
        clips.append(clip)
        if len(clips) == limit:
            break
    if not clips:
        why = (
            "no *.trans.txt with lines is in it; other corpora need a manifest of JSON lines"
            if source.is_dir()
            else _EXAMPLE
        )
        raise UsageError(f"{source}: holds no clips; {why}")
    return clips


def check_groups(names: Sequence[str], fields: Iterable[Mapping[str, Value]]) -> None:
    """Refuses what clips cannot be grouped by: fields, or several joined by `+`.

    Raises:
      UsageError: no clip has a field of that name; those that there are, are listed.
    """
    known = list(dict.fromkeys(name for each in fields for name in each))
    for name in [field for group in names for field in group.split("+")]:
        if name not in (*known, "language"):
            raise UsageError(f"--group_by: no clip has a field {name!r}; there are: {', '.join(known) or 'none'}")


def language_name(written: str) -> str:
    """The model's name for a language as manifests write it: a name, a code, or a locale (`de-CH`, `en_US`).

    One that the model does not know stays as it is written.
    """
    code = written.strip().lower().replace("_", "-")
    by_code = {code: name for name, code in LANGUAGE_CODES.items()} | _MACRO_CODES
    return by_code.get(code) or by_code.get(code.partition("-")[0]) or canonical(written)


def unknown_languages(clips: Sequence[Clip]) -> dict[str, int]:
    """Languages that no Qwen3-ASR model knows, and how many clips are said to be in them: others', or misspelt."""
    counts = collections.Counter(clip.language for clip in clips if clip.language and clip.language not in LANGUAGE_CODES)
    return dict(counts)


def _lines(path: pathlib.Path) -> Iterator[tuple[str, str]]:
    """`FILE:LINE` and text of each line that is not blank. Lines end at a line feed alone: a text may hold others' ends."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UsageError(f"{path}: no such manifest") from None
    except OSError as e:
        raise UsageError(f"{path}: cannot be read ({e.strerror})") from None
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            text = line.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as e:
            raise UsageError(f"{path}:{number}: not UTF-8 (byte {e.start + 1}); convert the file") from None
        if text.strip():
            yield f"{path}:{number}", text


def _json_lines(source: pathlib.Path) -> Iterator[tuple[str, Clip]]:
    for place, line in _lines(source):
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as e:
            reason = f"{e.msg} at column {e.colno}" if isinstance(e, json.JSONDecodeError) else "nested too deeply"
            raise UsageError(f"{place}: not JSON ({reason}); a manifest has one object per line") from None
        if not isinstance(values, dict):
            raise UsageError(f"{place}: not a JSON object; {_EXAMPLE}")
        yield place, _from_json(values, source.parent, place)


def _from_json(values: dict[str, Any], folder: pathlib.Path, place: str) -> Clip:
    """The clip of one JSON object.

    Raises:
      UsageError: a field is missing, or of the wrong kind.
    """
    written = values.get("audio", values.get("audio_filepath"))
    audio = _string(written, "audio", place)
    if not audio or "\0" in audio:
        raise UsageError(f"{place}: 'audio' is no path: {audio!r}")
    if values.get("offset") not in (None, 0):
        raise UsageError(f"{place}: has an 'offset', and parts of files are not read; cut the audio into a file per clip")
    duration_s = values.get("duration")
    if duration_s is not None and not (_is_number(duration_s) and 0 <= duration_s < math.inf):
        raise UsageError(f"{place}: 'duration' is no number of seconds: {duration_s!r}")
    fields = {name: value for name, value in values.items() if name not in _OURS and isinstance(value, str | int | float)}
    if endless := [name for name, value in fields.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise UsageError(f"{place}: {endless[0]!r} is no finite number")
    own_id = values.get("id")
    return Clip(
        id=str(own_id) if isinstance(own_id, int) else _string(own_id, "id", place) if own_id is not None else audio,
        audio=audio,
        path=folder / os.path.expanduser(audio),
        text=_string(values.get("text"), "text", place),
        language=language_name(_string(values.get("language") or "", "language", place)),
        duration_s=duration_s,
        fields=fields,
    )


def _string(value: object, name: str, place: str) -> str:
    if value is None:
        raise UsageError(f"{place}: without {name!r}; {_EXAMPLE}")
    if not isinstance(value, str):
        raise UsageError(f"{place}: {name!r} must be a string, got {json.dumps(value)[:60]}")
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _librispeech(folder: pathlib.Path) -> Iterator[tuple[str, Clip]]:
    """`84-121123-0001 GO DO YOU HEAR` beside `84-121123-0001.flac`: speaker, chapter, number."""
    for path in sorted(folder.rglob("*.trans.txt")):
        for place, line in _lines(path):
            name, _, text = line.strip().partition(" ")
            if not text.strip():
                raise UsageError(f"{place}: no text behind {name!r}; a line is an utterance's id, a space and its text")
            audio = path.with_name(f"{name}.flac")
            parts = re.fullmatch(r"([^-]+)-([^-]+)-[^-]+", name)
            fields: dict[str, Value] = {"speaker": parts[1], "chapter": parts[2]} if parts else {}
            yield (
                place,
                Clip(name, os.fspath(audio.relative_to(folder)), audio, text.strip(), "English", fields=fields),
            )


def _common_voice(source: pathlib.Path) -> Iterator[tuple[str, Clip]]:
    """A table with tabs; its first line names the columns."""
    columns: list[str] = []
    for place, line in _lines(source):
        cells = line.split("\t")
        if not columns:
            columns = cells
            if missing := sorted({"path", "sentence"} - set(columns)):
                raise UsageError(
                    f"{place}: no column {missing[0]!r}; the first line must name path, sentence and, if any, locale"
                )
            continue
        if len(cells) != len(columns):
            raise UsageError(f"{place}: {len(cells)} columns where the first line names {len(columns)}")
        row = dict(zip(columns, cells, strict=True))
        if not row["path"]:
            raise UsageError(f"{place}: the path is empty")
        beside, in_clips = source.parent / row["path"], source.parent / "clips" / row["path"]
        yield (
            place,
            Clip(
                id=row["path"],
                audio=row["path"],
                path=in_clips if os.path.isfile(in_clips) else beside,
                text=row["sentence"],
                language=language_name(row.get("locale", "")),
                fields={name: cell for name, cell in row.items() if cell and name not in _COMMON_VOICE},
            ),
        )
