"""Scores as Markdown tables: error rates by run and group, and what was written where nothing is said."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from qwen_asr_jax.bench.tables import plain_table
from qwen_asr_jax.evaluation.manifest import Value
from qwen_asr_jax.evaluation.results import Result, Run
from qwen_asr_jax.evaluation.score import Score, Scores
from qwen_asr_jax.evaluation.statistics import LEVEL, RESAMPLES, bootstrap_interval, error_rate

DASH = "-"
TOTAL = "total"
NOT_SAID = "not said"
INTERVAL = f"{100 * LEVEL:.0f} %"

_RUN_COLUMNS = {"backend": "backend", "implementation": "kernels", "language": "forced"}
"""Settings with a column of their own, where runs differ in them."""

T = TypeVar("T")


def report(scores: Scores, group_by: Sequence[str], *, outdated: int = 0) -> str:
    """All tables and what is to be known about them, as Markdown without headings.

    Args:
      scores: of one or several runs.
      group_by: fields of the manifest, or several joined by `+`, whose values get rows of their own.
      outdated: transcripts that were left out, because reference or audio has changed.
    """
    everything = [*(s.result for s in scores.scored), *(r for r, _ in scores.silent), *scores.unscorable, *scores.failed]
    labels = run_labels(everything)
    parts: list[str] = []
    for by_characters in (False, True):
        chosen = [score for score in scores.scored if score.by_characters == by_characters]
        if chosen:
            speeds = {} if parts else _speeds(everything)
            parts.append(_error_table(chosen, labels, group_by, speeds, by_characters))
    if scores.silent:
        parts.append(_silence_table(scores.silent, labels, group_by))
    parts.append("\n".join(notes(scores, labels, outdated)))
    return "\n\n".join(parts)


def notes(scores: Scores, labels: Mapping[tuple[str, str, str], Mapping[str, str]], outdated: int) -> list[str]:
    """What the tables do not say, one line each: how was compared, what the columns mean, what was left out."""
    lines = [scores.caption]
    if scores.scored:
        lines.append(
            f"S, D, I: substituted, deleted, inserted. {INTERVAL}: interval by a bootstrap over clips, {RESAMPLES} resamples."
            " RTFx: seconds of audio by seconds of reading and transcribing, compilation included, over all clips of the run."
        )
    transcribed = [*(s.result for s in scores.scored), *(r for r, _ in scores.silent), *scores.unscorable]
    for run, name in _names(labels).items():
        cut = sum(r.finish_reason == "length" and r.run.key == run for r in transcribed)
        failed = [r for r in scores.failed if r.run.key == run]
        empty = [r for r in scores.unscorable if r.run.key == run]
        if failed:
            lines.append(f"{name}: {_clips(len(failed))} failed and not counted: {_some(failed)}.")
        if cut:
            lines.append(f"{name}: {_clips(cut)} cut at the token budget; what is missing there counts as deleted.")
        if empty:
            lines.append(f"{name}: {_clips(len(empty))} left out, whose reference normalises to nothing: {_some(empty)}.")
    held = collections.defaultdict(set)
    for result in transcribed:
        held[result.run.key].add(result.id)
    if len(set(map(frozenset, held.values()))) > 1:
        lines.append("The runs do not hold the same clips: their rates are not to be compared.")
    for run, name in _names(labels).items():
        own = [r for r in transcribed if r.run.key == run]
        for what, values in (("commits", {r.commit for r in own}), ("machines", {r.machine for r in own})):
            if len(values) > 1:
                lines.append(f"{name}: transcribed by several {what}: {', '.join(sorted(str(v) for v in values))}.")
    if outdated:
        lines.append(f"{outdated} older transcripts left out: reference or audio of their clips has changed since.")
    return lines


def run_labels(results: Iterable[Result]) -> dict[tuple[str, str, str], dict[str, str]]:
    """For each run the columns that name it: model and policy, and of its settings what tells runs apart."""
    runs: dict[tuple[str, str, str], Run] = {}
    for result in results:
        runs.setdefault(result.run.key, result.run)
    prints = collections.defaultdict(set)
    for run in runs.values():
        prints[run.model].add(run.fingerprint)
    labels = {
        key: {
            "model": run.model + (f" ({run.fingerprint[:8]})" if len(prints[run.model]) > 1 else ""),
            "policy": run.policy,
            **{column: str(run.options.get(name, "")) for name, column in _RUN_COLUMNS.items()},
            "settings": " ".join(
                f"{name}={value}"
                for section in ("policy", "engine")
                for name, value in dict(run.options.get(section) or {}).items()
                if name != "name"
            ),
        }
        for key, run in runs.items()
    }
    names = next(iter(labels.values()), {})
    same = {name for name in names if len({label[name] for label in labels.values()}) == 1} - {"model", "policy"}
    return {key: {name: text for name, text in label.items() if name not in same} for key, label in labels.items()}


def _error_table(
    scores: Sequence[Score],
    labels: Mapping[tuple[str, str, str], Mapping[str, str]],
    group_by: Sequence[str],
    speeds: Mapping[tuple[str, str, str], float],
    by_characters: bool,
) -> str:
    unit, rate = ("characters", "CER %") if by_characters else ("words", "WER %")
    body = []
    for key, label in labels.items():
        own = [score for score in scores if score.result.run.key == key]
        for name, members in _groups(own, [score.result for score in own], group_by):
            speed = speeds.get(key) if name == TOTAL else None
            body.append([*label.values(), name, *_figures(members), DASH if speed is None else f"{speed:.1f}"])
    left = [*next(iter(labels.values())), "group"]
    headers = [*left, "clips", unit, "S", "D", "I", rate, INTERVAL, "language right %", "RTFx"]
    if not speeds:
        body, headers = [line[:-1] for line in body], headers[:-1]
    title = (
        "Character error rate (CER: each character counts as a word), of languages written without spaces"
        if by_characters
        else "Word error rate (WER)"
    )
    return f"{title}:\n\n{plain_table(body, headers, left)}"


def _figures(scores: Sequence[Score]) -> list[str]:
    """From clips to the languages heard: what one row says."""
    scores = sorted(scores, key=lambda score: score.result.id)  # the order of the file must not move the interval
    errors = np.array([score.errors for score in scores], np.int64)
    units = np.array([score.units for score in scores], np.int64)
    # Where all clips are right, or all wrong, drawing again says nothing about others.
    interval = bootstrap_interval(errors, units) if len({*(errors / units)}) > 1 else None
    return [
        str(len(scores)),
        str(units.sum()),
        *(str(sum(getattr(score, kind) for score in scores)) for kind in ("substitutions", "deletions", "insertions")),
        _percent(error_rate(errors, units)),
        DASH if interval is None else f"{_percent(interval[0])}-{_percent(interval[1])}",
        _language_right([score.result for score in scores]),
    ]


def _language_right(results: Sequence[Result]) -> str:
    """Share of clips whose language was heard right, among those with one in the manifest and none forced."""
    known = [r for r in results if r.reference_language and not r.settings.get("language")]
    return f"{100 * sum(r.language == r.reference_language for r in known) / len(known):.1f}" if known else DASH


def _silence_table(
    silent: Sequence[tuple[Result, int]], labels: Mapping[tuple[str, str, str], Mapping[str, str]], group_by: Sequence[str]
) -> str:
    """What was written for clips in which nothing is said."""
    body = []
    for key, label in labels.items():
        own = [(result, words) for result, words in silent if result.run.key == key]
        for name, members in _groups(own, [result for result, _ in own], group_by):
            empty = sum(not (result.hypothesis or "").strip() for result, _ in members)
            words = sum(words for _, words in members)
            body.append([*label.values(), name, str(len(members)), f"{100 * empty / len(members):.1f}", str(words)])
    left = [*next(iter(labels.values())), "group"]
    headers = [*left, "clips", "empty text %", "words written"]
    return f"Clips in which nothing is said (empty reference), not part of the above:\n\n{plain_table(body, headers, left)}"


def _groups(members: Sequence[T], results: Sequence[Result], group_by: Sequence[str]) -> list[tuple[str, list[T]]]:
    """Rows of one run: all, then by language, then by each field, its values in order."""
    if not members:
        return []
    rows = [(TOTAL, list(members))]
    for field in ("language", *(name for name in group_by if name != "language")):
        values = [_value(r, field) for r in results]
        if field == "language" and not any(values):
            continue
        for value in sorted(set(values), key=_order):
            own = [member for member, its in zip(members, values, strict=True) if its == value]
            rows.append((f"{field}: {NOT_SAID if value is None else value}", own))
    return rows


def _value(result: Result, group: str) -> Value | None:
    """What the result has for a group: one field, or several joined by `+`."""
    values = [(result.reference_language or None) if n == "language" else result.fields.get(n) for n in group.split("+")]
    return values[0] if len(values) == 1 else " ".join(NOT_SAID if value is None else str(value) for value in values)


def _order(value: object) -> tuple[int, float, str]:
    """Numbers by size, then texts, then what has no value."""
    if isinstance(value, int | float):
        return 0, value, ""
    text = str(value)
    if text.isdecimal():
        return 0, float(text), text
    return (2, 0.0, "") if value is None else (1, 0.0, text)


def _speeds(results: Iterable[Result]) -> dict[tuple[str, str, str], float]:
    """RTFx of each run: its clips' seconds by the seconds of reading and transcribing them."""
    audio_s: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    wall_s: dict[tuple[str, str, str], float] = collections.defaultdict(float)
    for result in results:
        if result.transcribe_s and result.duration_s is not None:
            audio_s[result.run.key] += result.duration_s
            wall_s[result.run.key] += result.transcribe_s
    return {key: audio_s[key] / seconds for key, seconds in wall_s.items()}


def _names(labels: Mapping[tuple[str, str, str], Mapping[str, str]]) -> dict[tuple[str, str, str], str]:
    return {key: ", ".join(text for text in label.values() if text) for key, label in labels.items()}


def _percent(rate: float) -> str:
    return f"{100 * rate:.2f}"


def _clips(count: int) -> str:
    return f"{count} clip" + "s" * (count != 1)


def _some(results: Sequence[Result], most: int = 5) -> str:
    """The clips' ids, or the first few."""
    names = ", ".join(r.id for r in results[:most])
    return names + (f" and {len(results) - most} more" if len(results) > most else "")
