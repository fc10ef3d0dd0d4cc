"""Transcripts of clips with references, kept as they come: one JSON line per clip, behind what is there already.

A file may hold runs of several models, policies and manifests. A line says all that its text depends on: clips that were
transcribed before, the same way, are not transcribed again.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_asr_jax.errors import AudioError, OutputError, UsageError
from qwen_asr_jax.evaluation.manifest import Clip, Value
from qwen_asr_jax.files import sha256_of
from qwen_asr_jax.json_lines import append_lines, parse_object, read_lines

SCHEMA = 1
"""Version of the fields below; a change of meaning gets the next number."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a text depends on, but for the audio.

    Attributes:
      model: the model directory's name.
      fingerprint: sha256 over its configuration and weights.
      policy: dtype policy.
      settings: what else changes texts, as JSON: `tokenizer` (sha256 over its files), `backend`, `implementation` (the kernels
        that computed), `language` if one was forced, `policy` and `engine` where dtypes or the engine's options are not the
        preset ones.
    """

    model: str
    fingerprint: str
    policy: str
    settings: str

    @property
    def key(self) -> tuple[str, str, str]:
        """What two runs share whose texts are the same; a renamed copy is the same model."""
        return self.fingerprint, self.policy, self.settings

    @property
    def options(self) -> dict[str, Any]:
        """`settings`, read."""
        values: dict[str, Any] = json.loads(self.settings)
        return values


@dataclasses.dataclass(frozen=True)
class Result:
    """One clip of one run. Keys are a promise: new ones may come, none goes.

    Attributes:
      schema: `SCHEMA`.
      id, audio, reference: as the manifest has them.
      audio_sha256: of the audio file; None where it could not be read.
      hypothesis: the transcript; None where there is an `error` instead.
      reference_language: the manifest's, by the model's name; "" where it does not say.
      language: heard (or forced); "" where the model names none.
      duration_s: seconds of audio.
      fields: the manifest's further fields.
      finish_reason: `eos`, or `length` when the token budget ran out.
      model, fingerprint, policy, settings: see `Run`; settings as an object.
      batch_size: clips that ran together with this one, itself included.
      transcribe_s: seconds of reading it, and its equal part of the seconds of its batch.
      package: version of this package.
      commit: of its code, `+` behind it where that was changed; None where it is no checkout.
      machine: processor or GPU that computed.
      date: when it was done.
      error: why there is no transcript.
    """

    id: str
    audio: str
    audio_sha256: str | None
    reference: str
    hypothesis: str | None
    reference_language: str
    language: str
    duration_s: float | None
    fields: Mapping[str, Value]
    finish_reason: str | None
    model: str
    fingerprint: str
    policy: str
    settings: Mapping[str, Any]
    batch_size: int | None
    transcribe_s: float | None
    package: str
    date: str
    error: str | None = None
    commit: str | None = None
    machine: str = ""
    schema: int = SCHEMA

    @functools.cached_property
    def run(self) -> Run:
        """The run that it belongs to."""
        return Run(self.model, self.fingerprint, self.policy, canonical_json(self.settings))

    def to_json(self) -> str:
        """One line, without its newline."""
        values = dataclasses.asdict(self)
        ordered = {"schema": values.pop("schema"), **values}
        text = json.dumps(ordered, ensure_ascii=False, allow_nan=False)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, from an escape in a manifest or an undecodable file name
            return json.dumps(ordered, allow_nan=False)
        return text


_FIELDS = {field.name: field for field in dataclasses.fields(Result)}
_REQUIRED = [name for name, field in _FIELDS.items() if field.default is dataclasses.MISSING] + ["schema"]
_STRINGS = (
    "id",
    "audio",
    "reference",
    "reference_language",
    "language",
    "model",
    "fingerprint",
    "policy",
    "package",
    "date",
)
_MAYBE_STRINGS = ("audio_sha256", "hypothesis", "finish_reason", "error")
_MAYBE_NUMBERS = ("duration_s", "transcribe_s", "batch_size")


def canonical_json(settings: Mapping[str, Any]) -> str:
    """The settings as text that is equal where they are."""
    return json.dumps(settings, sort_keys=True)


def parse(line: str) -> Result:
    """The result of one line.

    Raises:
      ValueError: it is none of this schema; the message says in what.
    """
    values = parse_object(line, SCHEMA, _REQUIRED)
    for names, kinds, kind in (
        (_STRINGS, str, "string"),
        (_MAYBE_STRINGS, str | None, "string"),
        (_MAYBE_NUMBERS, int | float | None, "number"),
        (("fields", "settings"), dict, "object"),
    ):
        if wrong := [name for name in names if not isinstance(values.get(name), kinds)]:
            raise ValueError(f"{wrong[0]} is no {kind}")
    if values["hypothesis"] is None and values.get("error") is None:
        raise ValueError("neither a hypothesis nor an error")
    return Result(**{name: value for name, value in values.items() if name in _FIELDS})


def read_results(path: pathlib.Path) -> tuple[list[Result], list[str]]:
    """All results of a file, and one line for each line that is none: `FILE:LINE: why`.

    Raises:
      UsageError: the file cannot be read.
    """
    return read_lines([path], parse)


def default_output(manifest: pathlib.Path) -> pathlib.Path:
    """Where results of a manifest go if nothing else is said: `test.results.jsonl` in the current directory."""
    path = manifest.expanduser().resolve()
    return pathlib.Path(f"{path.name if path.is_dir() else path.stem}.results.jsonl")


def open_results(path: pathlib.Path) -> tuple[list[Result], list[str]]:
    """The results of a file that is to be appended to, mended if need be; and what is to be said about it, line by line.

    Raises:
      UsageError: it holds something else.
      OutputError: it cannot be written.
    """
    mended = mend(path)
    results, problems = read_results(path)
    if problems and not results:
        raise UsageError(f"{path}: holds no results but something else; choose another --output")
    return results, [*filter(None, [mended]), *problems]


def append_result(path: pathlib.Path, result: Result) -> None:
    """Appends one line, in one write.

    Raises:
      OutputError: the file cannot be written.
    """
    append_lines(path, [result.to_json()])


def mend(path: pathlib.Path) -> str | None:
    """Removes a last line that a killed process has cut off, and says so in the line it returns; None where all is well.

    Only what begins as a result does is removed: any other file's end is left alone.

    Raises:
      OutputError: the file cannot be written.
    """
    try:
        data = path.read_bytes()
        end = data.rfind(b"\n") + 1
        rest, beginning = data[end:], b'{"schema":'
        if not rest or not (rest.startswith(beginning) or beginning.startswith(rest)):
            return None
        try:
            parse(rest.decode("utf-8"))
            return None  # whole, but for its line's end, which appending puts there
        except ValueError:
            with open(path, "r+b") as f:
                f.truncate(end)
    except FileNotFoundError:
        return None
    except OSError as e:
        raise OutputError(f"{path}: results cannot be written there ({e.strerror}); choose another --output") from None
    return f"{path}: its last line was cut off and is removed; that clip is transcribed again"


def file_sha256(path: pathlib.Path, name: str) -> str:
    """sha256 of an audio file's bytes.

    Raises:
      AudioError: it cannot be read; the message calls it `name`.
    """
    try:
        return sha256_of(path)
    except OSError as e:
        raise AudioError(f"{name}: cannot be read ({e.strerror})") from None


def reusable(results: Iterable[Result], run: Run, clips: Sequence[Clip]) -> dict[str, str]:
    """Clips that need not be transcribed again: by id, the sha256 of their audio.

    The same run has transcribed the same audio, and the reference was the same.
    """
    there: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for result in results:
        if result.run.key == run.key and result.error is None and result.audio_sha256 is not None:
            there[result.id, result.reference].add(result.audio_sha256)
    found = {}
    for clip in clips:
        if hashes := there.get((clip.id, clip.text)):
            try:
                sha256 = file_sha256(clip.path, clip.audio)
            except AudioError:  # said when its turn comes
                continue
            if sha256 in hashes:
                found[clip.id] = sha256
    return found


@dataclasses.dataclass(frozen=True)
class Selection:
    """The results that tables are made of.

    Attributes:
      results: the last one of each run and clip, in the order of the file.
      outdated: how many transcripts were left out, because reference or audio of their clip has changed since.
    """

    results: list[Result]
    outdated: int


def select(
    results: Sequence[Result], clips: Sequence[Clip] | None = None, audio: Mapping[str, str] | None = None
) -> Selection:
    """What counts among the results of a file.

    Args:
      results: in the order of the file.
      clips: those of the manifest, whose texts, languages and fields count then; None for whatever the file holds.
      audio: sha256 of clips' audio by id, where known; else that of the newest line is taken for the present one.
    """
    by_id = None if clips is None else {clip.id: clip for clip in clips}
    belonging = [r for r in results if by_id is None or r.id in by_id]
    texts = {r.id: r.reference for r in belonging} if by_id is None else {i: clip.text for i, clip in by_id.items()}
    fitting = [r for r in belonging if r.reference == texts[r.id]]
    present = {r.id: r.audio_sha256 for r in fitting if r.audio_sha256 is not None} | dict(audio or {})
    latest: dict[tuple[tuple[str, str, str], str], Result] = {}
    for result in fitting:
        if result.audio_sha256 is None or result.audio_sha256 == present[result.id]:
            latest[result.run.key, result.id] = result
    outdated = {(r.run.key, r.id) for r in belonging} - set(latest)
    chosen = list(latest.values())
    if by_id is not None:
        chosen = [
            dataclasses.replace(
                r, reference_language=by_id[r.id].language, fields=by_id[r.id].fields, audio=by_id[r.id].audio
            )
            for r in chosen
        ]
    return Selection(chosen, len(outdated))
