"""Reading records for people: figures by name, their units and direction, names without paths, and what tells rows apart.

Records may come from other hands: every figure may be absent, and what is absent is shown as a dash.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import math
import pathlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from qwen_asr_jax.bench.record import MAIN_FIGURE, WORKLOADS, Record
from qwen_asr_jax.policy import PRESETS

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

STAGES = {"mel_ms": "mel", "encode_ms": "encode", "prefill_ms": "prefill", "decode_ms": "decode"}
"""The stages of a transcription, in their order: figure and name."""

PHASES = ("process", "import", "backend", "weights", "compile", "first_token", "total", "decode_compile")
"""Of a start, in their order; all up to `first_token` make the total, and the decoding loop is compiled behind it."""

_NAMES = {"cpu_per_wall": "CPU/wall", "rtf": "RTF", "rtfx": "RTFx", "ttft_ms": "TTFT"}
_UNITS = {"audio_s_per_s": "audio s/s", "tokens_per_s": "tokens/s", "_per_s": "/s", "ms_per_token": "ms/token"}
_UNITS |= {
    "_bytes": "bytes",
    "gb_s": "GB/s",
    "gflop_s": "GFLOP/s",
    "_ms": "ms",
    "_us": "µs",
    "_s": "s",
}  # the first that fits
_MORE_IS_BETTER = ("rtfx", "_per_s", "gb_s", "gflop_s")
_TIMES = ("ms", "s", "µs", "ms/token")

# Overrides of a sweep that a record says in fields of its own; what a run config holds is its policy and its engine's options.
_SAID_ELSEWHERE = {
    "workload",
    "model",
    "model_dir",
    "policy",
    "config",
    "implementation",
    "backend",
    "device",
    "threads",
    "batch_size",
    "audio",
}
_SAID_ELSEWHERE |= {"silence_s", "contexts", "runs", "warmup", "decode_tokens"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A record and what tells it apart from the others around it; `""` where all are alike.

    Attributes:
      record: the result.
      implementation: the kernels that computed.
      environment: letter of the environment it was measured in.
      backend: `cpu` or `gpu`.
      threads: size of the thread pool.
      point: what no other column says of how it was asked for: options, dtypes, overrides of its sweep.
      repeat: `#1`, `#2` ... of the same measurement, oldest first.
    """

    record: Record
    implementation: str = ""
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
    kernels = {implementation(r) for r in measured if r.model}
    lengths = {workload: {_decode_tokens(r) for r in measured if r.workload == workload} for workload in WORKLOADS}
    counts = collections.Counter(map(_repeated, records))
    seen: collections.Counter[tuple[str, ...]] = collections.Counter()
    rows = []
    for record in records:
        key = _repeated(record)
        seen[key] += 1
        length = [("decode_tokens", _decode_tokens(record))] if len(lengths[record.workload]) > 1 else []
        asked = [f"{name}={value}" for name, value in (*length, *options(record), *point(record))]
        rows.append(
            Row(
                record,
                implementation=implementation(record) if len(kernels) > 1 else "",
                environment=letters.get(environment_key(record), "") if len(letters) > 1 else "",
                backend=str(record.backend) if len(backends) > 1 else "",
                threads=count(number(record.threads)) if len(threads) > 1 and record.threads is not None else "",
                point="" if record.error else ", ".join(asked),
                repeat=f"#{seen[key]}" if counts[key] > 1 else "",
            )
        )
    return rows


def identity(record: Record, without: Collection[str] = ()) -> dict[str, str]:
    """What two measurements of the same share, field by field, as JSON.

    Fingerprints and hashes count more than names: two files may share a name, and one may have two.

    Args:
      record: the result.
      without: fields that may differ.
    """
    model, audio = mapping(record.model), mapping(record.audio)
    dtypes = dict(mapping(record.settings.get("policy")))
    if "param_dtype" in dtypes:  # records from before int8 do not say the other two
        dtypes = dict.fromkeys(("layer_dtype", "head_dtype"), dtypes["param_dtype"]) | dtypes
    values = {
        "workload": record.workload,
        "model": model.get("fingerprint") or model_name(record),
        "policy": [record.policy, *sorted(dtypes.items())] if dtypes else record.policy,
        "implementation": implementation(record),
        **{name: getattr(record, name) for name in ("backend", "device", "threads", "batch_size")},
        "audio": audio.get("sha256") or audio_name(record),
        "decode_tokens": record.settings.get("decode_tokens"),
        "engine": {k: v for k, v in mapping(record.settings.get("engine")).items() if v},  # 0 is the platform's value
        "sweep point": point(record),
    }
    return {name: json.dumps(value, sort_keys=True) for name, value in values.items() if name not in without}


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


def options(record: Record, without: Collection[str] = ()) -> tuple[tuple[str, str], ...]:
    """The engine's options and the policy's dtypes that are not the preset ones, by name; `without` may hold either's name."""
    engine, dtypes = (mapping(record.settings.get(name) if name not in without else None) for name in ("engine", "policy"))
    preset = PRESETS.get(str(record.policy).partition(",")[0])
    changed = {k: v for k, v in dtypes.items() if k != "name" and v != getattr(preset, k, None)}
    return tuple((name, str(value)) for name, value in (*sorted(engine.items()), *changed.items()) if value)


def is_cut(record: Record) -> bool:
    """Whether a transcript ended at the token budget, so that the time is not that of a whole one."""
    return "length" in str(mapping(record.transcript).get("finish_reason"))


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


def floor_fraction(record: Record) -> float | None:
    """Least possible time / measured time of the workload's main figure."""
    if record.floor_fraction is not None:
        return number(record.floor_fraction)
    return number(mapping(record.floor.get(MAIN_FIGURE[record.workload])).get("fraction"))


def audio_seconds(record: Record) -> float | None:
    """Length of the clip, or of a batch's clips together."""
    return number(mapping(record.audio).get("seconds"))


def implementation(record: Record) -> str:
    """The kernels that computed; `""` for what ran no model, and for a point that failed before it was known."""
    if record.implementation:
        return str(record.implementation)
    return "xla" if record.model and record.error is None else ""  # records from before there were others


def model_name(record: Record) -> str:
    """The model's name without a path; a dash for what ran no model."""
    return _last_part(mapping(record.model).get("name"))


def audio_name(record: Record) -> str:
    """The clip's name without a path."""
    return _last_part(mapping(record.audio).get("name"))


def is_silence(record: Record) -> bool:
    """Whether the clip is the one that stands in where there is none."""
    return audio_name(record).startswith("silence")


def clip(record: Record) -> str:
    """The clip and its length, `jfk.wav, 11.0 s`; `""` without audio."""
    if record.audio is None:
        return ""
    seconds = audio_seconds(record)
    return audio_name(record) + ("" if seconds is None else f", {digits(seconds)} s")


def digits(value: float | None, significant: int = 3) -> str:
    """Three significant digits, all digits before the point, no exponent; a dash for None."""
    if value is None:
        return DASH
    # Rounding first: 9.996 has its three digits as 10.0.
    rounded = abs(float(f"{value:.{significant - 1}e}"))
    return f"{value:.{min(9, max(0, significant - 1 - math.floor(math.log10(rounded)))) if rounded else 0}f}"


def count(value: float | None, significant: int = 3) -> str:
    """A whole number with all its digits; other numbers as `digits` has them."""
    return f"{value:.0f}" if value is not None and value == round(value) else digits(value, significant)


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
    return _NAMES.get(name, name.removesuffix(suffix).replace("_", " ").strip()), _UNITS.get(suffix, "")


def with_unit(name: str, value: float) -> str:
    """A figure's value with its unit, bytes as MB; four digits, as two that differ little are to be told apart."""
    unit = figure_label(name)[1]
    value, unit = (value / 1e6, "MB") if unit == "bytes" else (value, unit)
    return f"{count(value, 4)} {unit}".rstrip()


def more_is_better(name: str) -> bool:
    """Whether a higher figure is the better one, as with rates."""
    return name.endswith(_MORE_IS_BETTER)


def is_time(name: str) -> bool:
    """Whether less of the figure is faster; CPU seconds say how much was done, not how fast."""
    return name == "rtf" or (name != "cpu_s" and figure_label(name)[1] in _TIMES)


def ratio(part: float | None, whole: float | None) -> float | None:
    """Their ratio, None where one is absent or the second is 0."""
    return None if part is None or not whole else part / whole


def group(records: Iterable[Record], key: Callable[[Record], tuple[str, ...]]) -> dict[tuple[str, ...], list[Record]]:
    """Records by key, in order of appearance."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return groups


def model_and_policy(records: Iterable[Record]) -> Callable[[Record], tuple[str, ...]]:
    """A function to group the records by: model and policy by name, and the kernels, where there are several among them."""
    several = len({implementation(r) for r in records if r.model}) > 1

    def key(record: Record) -> tuple[str, ...]:
        return (model_name(record), str(record.policy or DASH), *[implementation(record) or DASH] * several)

    return key


def _last_part(name: Any) -> str:
    return (pathlib.PurePath(str(name)).name or DASH) if name else DASH


def _decode_tokens(record: Record) -> str:
    return str(record.settings.get("decode_tokens"))


def _repeated(record: Record) -> tuple[str, ...]:
    """Equal for measurements of the same in the same environment."""
    return (*identity(record).values(), str(record.error is None), *environment_key(record))


def _reading_order(record: Record) -> tuple[Any, ...]:
    batch = record.workload == "batch"  # there the policies stay together and the sizes follow one another
    seconds = 0.0 if batch else audio_seconds(record) or 0.0
    order = (
        WORKLOADS.index(record.workload),
        model_name(record),
        seconds,
        "" if batch else audio_name(record),
        str(record.policy),
        implementation(record),
    )
    return (*order, number(record.threads) or 0, number(record.batch_size) or 0, measured_at(record))
