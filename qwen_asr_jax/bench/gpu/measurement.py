"""What a section measured, as lines of JSON: one per measurement, written at once, read with whatever is missing."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qwen_asr_jax.json_lines import append_lines, parse_object, read_lines

SCHEMA = 1
"""Version of the fields below; a change of meaning gets the next number."""

STEPS = "steps"
"""The section of the lines that say what became of each step."""

PROGRAMS = "programs"
"""The section of the lines that say what each step compiled."""

COSTS = "costs"
"""The section of the lines that say what work there is at least."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line.

    Attributes:
      section: which part of the report it belongs to.
      name: what was measured.
      settings: how: all that tells it apart from others of its name.
      figures: numbers by name, units in the names.
      facts: what else is known, as text or numbers that are no measurement.
      error: why there are no figures; None where there are.
      is_gap: with an error: it was to be measured and was not. Without that, it cannot be measured on this machine.
    """

    section: str
    name: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None
    is_gap: bool = False

    def to_json(self) -> str:
        """One line, without its newline. A figure that is no number, or infinite, becomes null."""
        values = dataclasses.asdict(self)
        values["figures"] = {
            name: value if value is not None and math.isfinite(value) else None for name, value in self.figures.items()
        }
        return json.dumps({"schema": SCHEMA, **values}, ensure_ascii=False, allow_nan=False)

    def figure(self, name: str) -> float | None:
        """The figure, if there is one."""
        value = self.figures.get(name)
        return None if value is None else float(value)

    def setting(self, name: str) -> Any:
        """The setting; None where it has none of that name."""
        return self.settings.get(name)

    def title(self) -> str:
        """Name and settings for people, `loop 0.6b bf16 steps_per_check=8`."""
        plain = ("preset", "policy", "implementation", "dtype", "workload")
        values = [f"{v}" if k in plain else f"{k}={v}" for k, v in self.settings.items() if v not in (None, "")]
        names = [self.section] if self.section == self.name else [self.section, self.name]
        return " ".join([*names, *values])


def parse(line: str) -> Measurement:
    """The measurement of one line.

    Raises:
      ValueError: it is none; the message says in what.
    """
    values = parse_object(line, SCHEMA, ("section", "name"))
    values.pop("schema")
    known = {field.name for field in dataclasses.fields(Measurement)}
    if unknown := sorted(set(values) - known):
        raise ValueError(f"unknown field {', '.join(unknown)}")
    for name in ("settings", "figures", "facts"):
        if not isinstance(values.get(name, {}), dict):
            raise ValueError(f"{name} is not an object")
    figures = values.get("figures", {}).values()
    if not all(value is None or (isinstance(value, int | float) and not isinstance(value, bool)) for value in figures):
        raise ValueError("a figure is no number")
    return Measurement(**values)


def append(path: pathlib.Path, measurements: Iterable[Measurement]) -> None:
    """Appends one line each, all in one write.

    Raises:
      OutputError: the file cannot be written.
    """
    append_lines(path, [measurement.to_json() for measurement in measurements])


def read(path: pathlib.Path) -> tuple[list[Measurement], list[str]]:
    """The measurements of a file, of those of the same the last that has figures; and a line for each line that is none.

    Raises:
      UsageError: the file cannot be read.
    """
    found, problems = read_lines([path], parse)
    return latest(found), problems


def latest(measurements: Iterable[Measurement]) -> list[Measurement]:
    """Of several measurements of the same the last, but a failure does not take the place of figures."""
    kept: dict[str, Measurement] = {}
    for each in measurements:
        key = json.dumps([each.section, each.name, each.settings], sort_keys=True)
        if key not in kept or each.error is None or kept[key].error is not None or each.section == STEPS:
            kept[key] = each
    return list(kept.values())


def select(
    measurements: Iterable[Measurement], section: str, name: str | None = None, **settings: Any
) -> Sequence[Measurement]:
    """Those with figures, of a section, a name and settings."""
    return [
        each
        for each in measurements
        if each.section == section
        and each.error is None
        and name in (None, each.name)
        and all(each.setting(key) == value for key, value in settings.items())
    ]
