"""Reading records for people: figures by name, names without paths, numbers with three digits, and what tells rows apart.

Records may come from other hands: every figure may be absent, and what is absent is shown as a dash.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qwen_asr_jax.bench.record import MAIN_FIGURE, WORKLOADS, Record

DASH = "-"

NO_DATE = datetime.datetime.min.replace(tzinfo=datetime.UTC)

COMPARED_FIGURES = {
    "full": ("total_ms",),
    "encoder": ("total_ms",),
    "prefill": ("total_ms",),
    "decode": ("ms_per_token",),
    "batch": ("audio_s_per_s",),
    "roofline": ("read_gb_s", "f32_4096_gflop_s", "bf16_4096_gflop_s"),
    "load": ("cold_total_s", "warm_total_s"),
}
"""Per workload the figures that two logs are compared by, the most telling one first."""

ENVIRONMENT = ("cpu", "cores", "gpu", "driver", "python", "jax", "jaxlib", "flax", "xla_flags", "commit", "dirty")

_NAMES = {"cpu_per_wall": "CPU/wall", "rtf": "RTF", "rtfx": "RTFx", "ttft_ms": "first token"}
_UNITS = {"audio_s_per_s": "audio s/s", "_per_s": "/s", "ms_per_token": "ms/token", "_bytes": "bytes"}
_UNITS |= {"_gb_s": "GB/s", "_gflop_s": "GFLOP/s", "_ms": "ms", "_us": "µs", "_s": "s"}

# Overrides of a sweep that a record says in fields of its own.
_SAID_ELSEWHERE = {"workload", "model", "model_dir", "policy", "backend", "device", "threads", "batch_size", "audio"}
_SAID_ELSEWHERE |= {"silence_s", "contexts", "runs", "warmup", "decode_tokens"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A record and what tells it apart from the others around it; `""` where all are alike.

    Attributes:
      record: the result.
      environment: letter of the environment it was measured in.
      backend: `cpu` or `gpu`.
      threads: size of the thread pool.
      point: overrides of its sweep that no other column says.
      repeat: `#1`, `#2` ... of the same measurement, oldest first.
    """

    record: Record
    environment: str = ""
    backend: str = ""
    threads: str = ""
    point: str = ""
    repeat: str = ""


def make_rows(records: Sequence[Record]) -> list[Row]:
    """A row per record, in reading order: workload, model, clip, policy, oldest measurement first."""
    records = sorted(records, key=_reading_order)
    measured = [r for r in records if r.error is None]  # one that failed may not know where it ran
    letters = environment_letters(measured)
    backends, threads = ({str(getattr(r, name)) for r in measured} for name in ("backend", "threads"))
    counts = collections.Counter(map(_identity, records))
    seen: collections.Counter[tuple[str, ...]] = collections.Counter()
    rows = []
    for record in records:
        key = _identity(record)
        seen[key] += 1
        rows.append(
            Row(
                record,
                environment=letters.get(environment_key(record), "") if len(letters) > 1 else "",
                backend=str(record.backend) if len(backends) > 1 else "",
                threads=count(number(record.threads)) if len(threads) > 1 and record.threads is not None else "",
                point="" if record.error else ", ".join(f"{name}={value}" for name, value in point(record)),
                repeat=f"#{seen[key]}" if counts[key] > 1 else "",
            )
        )
    return rows


def environment_key(record: Record) -> tuple[str, ...]:
    """What two results measured in the same environment share."""
    return (str(record.backend), str(record.device), *(str(record.env.get(name)) for name in ENVIRONMENT))


def environment_letters(records: Iterable[Record]) -> dict[tuple[str, ...], str]:
    """The environments as `A`, `B` ... (27th: `A1`), in order of appearance by date."""
    keys = dict.fromkeys(environment_key(r) for r in sorted(records, key=measured_at))
    return {key: chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "") for i, key in enumerate(keys)}


def point(record: Record) -> tuple[tuple[str, str], ...]:
    """The overrides of the record's sweep that its own fields do not say, by name."""
    overrides = mapping(mapping(record.sweep).get("point"))
    return tuple(sorted((str(k), str(v)) for k, v in overrides.items() if str(k) not in _SAID_ELSEWHERE))


def is_valid(record: Record) -> bool:
    """Whether the figures count: the point did not fail, and nothing was compiled inside a measured run."""
    return record.error is None and not recompiles(record)


def recompiles(record: Record) -> int:
    """Compilations inside measured runs."""
    return int(number(record.compile.get("recompiles")) or 0)


def measured_at(record: Record) -> datetime.datetime:
    """When the record was measured, with a time zone; `NO_DATE` where it does not say."""
    try:
        date = datetime.datetime.fromisoformat(str(record.env.get("date")))
    except ValueError:
        return NO_DATE
    return date if date.tzinfo else date.replace(tzinfo=datetime.UTC)


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def figure(record: Record, name: str, statistic: str = "median") -> float | None:
    """A figure over the measured runs; the median of `ms_per_token` may stand outside the summary."""
    value = number(mapping(record.summary.get(name)).get(statistic))
    if value is None and name == "ms_per_token" and statistic == "median":
        return number(record.ms_per_token)
    return value


def floor_fraction(record: Record, name: str | None = None) -> float | None:
    """Least possible time / measured time of the named figure, or of the workload's main one."""
    if name is None and record.floor_fraction is not None:
        return number(record.floor_fraction)
    return number(mapping(record.floor.get(name or MAIN_FIGURE[record.workload])).get("fraction"))


def audio_seconds(record: Record) -> float | None:
    """Length of the clip, or of a batch's clips together."""
    return number(mapping(record.audio).get("seconds"))


def model_name(record: Record) -> str:
    """The model's name without a path; a dash for what ran no model."""
    return _last_part(mapping(record.model).get("name"))


def audio_name(record: Record) -> str:
    """The clip's name without a path."""
    return _last_part(mapping(record.audio).get("name"))


def clip(record: Record) -> str:
    """The clip and its length, `jfk.wav, 11.0 s`; `""` without audio."""
    if record.audio is None:
        return ""
    seconds = audio_seconds(record)
    return audio_name(record) + ("" if seconds is None else f", {digits(seconds)} s")


def digits(value: float | None) -> str:
    """Three significant digits, all digits before the point, no exponent; a dash for None."""
    if value is None:
        return DASH
    if value == 0 or abs(value) >= 99.95:
        return f"{value:.0f}"
    # Rounding first: 9.996 has its three digits as 10.0.
    rounded = float(f"{value:.2e}")
    return f"{rounded:.{min(9, max(0, 2 - math.floor(math.log10(abs(rounded)))))}f}"


def count(value: float | None) -> str:
    """A whole number with all its digits; other numbers as `digits` has them."""
    return f"{value:.0f}" if value is not None and value == round(value) else digits(value)


def percent(fraction: float | None) -> str:
    """A fraction as whole percent."""
    return DASH if fraction is None else f"{100 * fraction:.0f} %"


def change(ratio_: float | None, decimals: int = 0) -> str:
    """A ratio as its distance from 1 in percent, `-33 %`."""
    return DASH if ratio_ is None else f"{round(100 * (ratio_ - 1), decimals) + 0.0:+.{decimals}f} %"  # + 0.0: never "-0"


def megabytes(value: float | None) -> str:
    """Bytes as MB (1e6)."""
    return digits(None if value is None else value / 1e6)


def figure_label(name: str) -> tuple[str, str]:
    """A figure's name for people and its unit: `("f32 4096", "GFLOP/s")` for `f32_4096_gflop_s`."""
    suffix = next((suffix for suffix in _UNITS if name.endswith(suffix)), "")
    return _NAMES.get(name, name.removesuffix(suffix).replace("_", " ")), _UNITS.get(suffix, "")


def ratio(part: float | None, whole: float | None) -> float | None:
    """Their ratio, None where one is absent or the second is 0."""
    return None if part is None or not whole else part / whole


def group(records: Iterable[Record], key: Callable[[Record], tuple[str, ...]]) -> dict[tuple[str, ...], list[Record]]:
    """Records by key, in order of appearance."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def model_and_policy(record: Record) -> tuple[str, ...]:
    """Model and policy by name."""
    return model_name(record), str(record.policy or DASH)


def _last_part(name: Any) -> str:
    return (pathlib.PurePath(str(name)).name or DASH) if name else DASH


def _identity(record: Record) -> tuple[str, ...]:
    """Equal for two measurements of the same."""
    model, audio = mapping(record.model), mapping(record.audio)
    names = (
        record.workload,
        model.get("fingerprint") or model_name(record),
        record.policy,
        record.threads,
        record.batch_size,
    )
    rest = (audio.get("sha256") or audio_name(record), record.settings.get("decode_tokens"), record.error is None)
    return (*map(str, (*names, *rest, *point(record))), *environment_key(record))


def _reading_order(record: Record) -> tuple[Any, ...]:
    batch = record.workload == "batch"  # there the policies stay together and the sizes follow one another
    seconds = 0.0 if batch else audio_seconds(record) or 0.0
    order = (
        WORKLOADS.index(record.workload),
        model_name(record),
        seconds,
        "" if batch else audio_name(record),
        str(record.policy),
    )
    return (*order, number(record.threads) or 0, number(record.batch_size) or 0, measured_at(record))
