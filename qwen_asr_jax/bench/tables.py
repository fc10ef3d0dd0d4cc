"""Records as Markdown tables, one function per table; each takes the rows of its workload."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import tabulate

from qwen_asr_jax.bench.fields import (
    DASH,
    PHASES,
    STAGES,
    Row,
    change,
    clip,
    count,
    digits,
    figure,
    figure_label,
    floor_fraction,
    group,
    identity,
    is_cut,
    mapping,
    megabytes,
    model_and_policy,
    model_name,
    number,
    percent,
    ratio,
    recompiles,
)
from qwen_asr_jax.bench.record import Record

DAGGER = "†"
INVALID = "**INVALID**"

CUT = "‡"
"""Marks what ended at the token budget."""

CUT_NOTE = f"{CUT} cut at the token budget: RTFx is that of so many tokens, not of a whole transcript."

_PER_STEP = "With a `batch`, `ms/token` is per step, in which every row gets one token; `tokens/s` counts all rows."

_STARTS = (
    "Cold is a start with an empty compilation cache, warm one with the cache that this left behind; the weights' files are in"
    " the system's cache in both."
)

_CONTEXT = ("ms_per_token", "min_ms_per_token", "max_ms_per_token", "tokens_per_s", "gb_s")

_RESIDENT = {
    "import_rss": "RSS MB: imported",
    "weights_rss": "RSS MB: loaded",
    "first_token_rss": "RSS MB: first token",
    "peak_rss": "RSS MB: peak",
    "peak_device": "device peak MB",
}
"""Figures of a start's memory, and their columns."""

_MEMORY = ("weights", "cache_bytes", "peak_rss_bytes", "peak_device_bytes")

Cell = Callable[[Record], str]


def table(rows: Sequence[Row], columns: Mapping[str, Cell], left: Sequence[str] = ()) -> str:
    """One line per row: what tells it apart, then the columns (numbers, but for those in `left`)."""
    return wide_table([(row, [cell(row.record) for cell in columns.values()]) for row in rows], list(columns), left)


def wide_table(lines: Sequence[tuple[Row, Sequence[str]]], headers: Sequence[str], left: Sequence[str] = ()) -> str:
    """One line per pair of a row and its cells. Columns that tell rows apart are there only where they tell something."""
    labels = [_labels(row) for row, _ in lines]
    shown = [name for name in (labels[0] if labels else {}) if any(label[name] for label in labels)]
    body = [[label[name] for name in shown] + list(cells) for label, (_, cells) in zip(labels, lines, strict=True)]
    if lines and not any(row.record.model for row, _ in lines):
        return plain_table(body, ["device", *shown[1:], *headers], left=["device", *shown[1:], *left])
    return plain_table(body, [*shown, *headers], left=[*shown, *left])


def plain_table(body: Sequence[Sequence[str]], headers: Sequence[str], left: Sequence[str] = ()) -> str:
    """A Markdown table of texts: columns in `left` are aligned there, the others on the right."""
    cells = [[escape(cell) for cell in line] for line in body]
    alignment = ["left" if header in left else "right" for header in headers]
    return tabulate.tabulate(cells, list(headers), tablefmt="github", disable_numparse=True, colalign=alignment)


def escape(text: str) -> str:
    """The text as one cell of a table: no column more, no tag but a line break."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("&lt;br>", "<br>")


def summary_table(rows: Sequence[Row]) -> str:
    """Workload `full`: whole transcriptions."""
    text = table(
        rows,
        {
            "total ms": functools.partial(spread, name="total_ms"),
            "encode": _median("encode_ms"),
            "prefill": _median("prefill_ms"),
            "decode": _median("decode_ms"),
            "tokens": _tokens,
            "ms/token": _median("ms_per_token"),
            "TTFT ms": _median("ttft_ms"),
            "RTF": lambda r: digits(number(r.rtf)),
            "RTFx": lambda r: digits(number(r.rtfx)),
            "of floor": _floor,
            "CPU/wall": _median("cpu_per_wall"),
        },
    )
    return _with_note(text, CUT_NOTE, any(is_cut(row.record) for row in rows))


def stage_table(rows: Sequence[Row]) -> str:
    """Workload `full`: milliseconds per stage, and percent of the total."""
    stages = {label: functools.partial(_stage, name=name) for name, label in {**STAGES, "other": "other"}.items()}
    return table(rows, {"total ms": _median("total_ms")} | stages)


def stage_ms(record: Record, name: str) -> float | None:
    """Median time of one of `STAGES`; `other` is what the stages leave of the total."""
    if name != "other":
        return figure(record, name)
    total = figure(record, "total_ms")
    stages = [ms for key in STAGES if (ms := figure(record, key)) is not None]
    return None if total is None or not stages else max(0.0, total - sum(stages))


def encoder_table(rows: Sequence[Row]) -> str:
    """Workload `encoder`."""
    return table(
        rows,
        {
            "total ms": functools.partial(spread, name="total_ms"),
            "conv stem ms": _median("conv_stem_ms"),
            "transformer ms": _median("transformer_ms"),
            "ms/layer": _median("per_layer_ms"),
            "audio tokens": _tokens,
            "of floor": _floor,
            "CPU/wall": _median("cpu_per_wall"),
        },
    )


def prefill_table(rows: Sequence[Row]) -> str:
    """Workload `prefill`."""
    return table(
        rows,
        {
            "prompt tokens": _tokens,
            "total ms": functools.partial(spread, name="total_ms"),
            "ms/token": _prefill_per_token,
            "GFLOP/s": lambda r: digits(number(r.gflop_s)),
            "of floor": _floor,
            "CPU/wall": _median("cpu_per_wall"),
        },
    )


def decode_table(rows: Sequence[Row]) -> str:
    """Workload `decode`: the speed of single steps."""
    several = _has_batch(rows)
    rate: dict[str, Cell] = {"tokens/s": _median("tokens_per_s")} if several else {}
    text = table(
        rows,
        {
            "ms/token": functools.partial(spread, name="ms_per_token"),
            **rate,
            "tokens": _tokens,
            "GB/s": lambda r: digits(number(r.gb_s)),
            "of floor": _floor,
            "CPU/wall": _median("cpu_per_wall"),
        },
    )
    return _with_note(text, _PER_STEP, several)


def context_table(rows: Sequence[Row]) -> str:
    """Workload `decode`: milliseconds per token as the context grows."""
    lines = []
    several = _has_batch(rows)
    for row in rows:
        contexts = sorted_contexts(row.record)
        for at in contexts:
            growth = ratio(number(at.get("ms_per_token")), number(contexts[0].get("ms_per_token")))
            ms, low, high, per_s, rate = (digits(number(at.get(key))) for key in _CONTEXT)
            cells = [count(number(at["context_tokens"])), ms if DASH in (low, high) else f"{ms} ({low}-{high})"]
            cells += [DASH if at is contexts[0] else change(growth), *[per_s] * several, rate]
            lines.append(
                (row, [*cells, percent(number(at.get("floor_fraction"))), megabytes(number(at.get("cache_bytes")))])
            )
    headers = ["context tokens", "ms/token", "against the first", *["tokens/s"] * several, "GB/s", "of floor", "cache MB"]
    return _with_note(wide_table(lines, headers), _PER_STEP, several) if lines else ""


def sorted_contexts(record: Record) -> list[Mapping[str, float]]:
    """The measured contexts that say how long they are, the shortest first."""
    known = [at for at in map(mapping, record.contexts) if number(at.get("context_tokens")) is not None]
    return sorted(known, key=lambda at: at["context_tokens"])


def batch_table(rows: Sequence[Row]) -> str:
    """Workload `batch`."""
    text = table(
        rows,
        {
            "batch": lambda r: count(number(r.batch_size)),
            "total ms": functools.partial(spread, name="total_ms"),
            "audio s/s": lambda r: digits(throughput(r)),
            "tokens": _tokens,
            "tokens/s": _median("tokens_per_s"),
            "RTF": lambda r: digits(number(r.rtf)),
            "of floor": _floor,
            "CPU/wall": _median("cpu_per_wall"),
        },
    )
    return _with_note(text, CUT_NOTE, any(is_cut(row.record) for row in rows))


def throughput(record: Record) -> float | None:
    """Seconds of audio per second."""
    value = figure(record, "audio_s_per_s")
    return number(record.rtfx) if value is None else value


def tokens(record: Record) -> str:
    """How many there are: chosen ones, or those of the audio or the prompt."""
    known = number(record.tokens)
    return count(figure(record, "tokens") if known is None else known)


def roofline_table(rows: Sequence[Row]) -> str:
    """Workload `roofline`: a line per figure, as their number differs."""
    lines = []
    for row in rows:
        for name in row.record.summary:
            values = [digits(figure(row.record, name, statistic)) for statistic in ("median", "min", "max")]
            lines.append((row, [*figure_label(name), *values]))
    return wide_table(lines, ["figure", "unit", "median", "min", "max"], left=["figure", "unit"])


def load_table(rows: Sequence[Row]) -> str:
    """Workload `load`: seconds of each phase and the memory behind it, a line for cold starts and one for warm ones."""
    body = []
    for row in rows:
        for start in ("cold", "warm"):
            if any(name.startswith(f"{start}_") for name in row.record.summary):
                seconds = [digits(figure(row.record, f"{start}_{phase}_s")) for phase in PHASES]
                sizes = [megabytes(figure(row.record, f"{start}_{name}_bytes")) for name in _RESIDENT]
                body.append((row, [start, *seconds, *sizes]))
    headers = ["start", *(f"{phase.replace('_', ' ')} s" for phase in PHASES), *_RESIDENT.values()]
    used = [i for i in range(len(headers)) if any(cells[i] != DASH for _, cells in body)]
    lines = [(row, [cells[i] for i in used]) for row, cells in body]
    text = wide_table(lines, [headers[i] for i in used], left=["start"])
    return _with_note(text, _STARTS, bool(lines))


def memory_table(rows: Sequence[Row]) -> str:
    """Memory per model, policy and kernels: the most of all workloads, and what is saved of fp32 where both ran the same."""
    known = [row.record for row in rows if row.record.memory and row.record.model]
    groups = group(known, model_and_policy(known))
    body = []
    for key, records in groups.items():
        model, policy, *kernels = key
        weights = max((mapping(r.memory.get("weights")) for r in records), key=lambda w: sum(map(_bytes, w.values())))
        by_size = sorted(weights.items(), key=lambda item: -_bytes(item[1]))
        by_dtype = ", ".join(f"{dtype} {megabytes(number(value))}" for dtype, value in by_size)
        temps = [(_bytes(v), str(k)) for r in records for k, v in mapping(r.memory.get("temp_bytes")).items()]
        temp = f"{megabytes(max(temps)[0])} ({max(temps)[1]})" if temps else DASH
        fp32 = groups.get((model, "fp32", *kernels), []) if policy != "fp32" else []
        cells = [megabytes(_most(records, name)) for name in _MEMORY]
        saved = [_saved(records, fp32, name) for name in _MEMORY]
        body.append([*key, cells[0], by_dtype or DASH, cells[1], temp, *cells[2:], *saved])
    named = ["model", "policy", "kernels"][: len(next(iter(groups), ()))]
    headers = [*named, "weights MB", "by dtype", "cache MB", "largest temp MB", "peak RSS MB", "peak device MB"]
    headers += [f"{name} saved" for name in ("weights", "cache", "RSS", "device")]
    return _without_empty(body, headers, [*named, "by dtype"]) if body else ""


def compile_table(rows: Sequence[Row]) -> str:
    """What was made ready before the measured runs, of every workload."""
    return table(
        [row for row in rows if row.record.compile],
        {
            "workload": lambda r: r.workload,
            "programs": lambda r: count(number(r.compile.get("count"))),
            "of them cached": lambda r: count(number(r.compile.get("cached"))),
            "seconds": lambda r: digits(number(r.compile.get("seconds"))),
            "recompiles": lambda r: f"**{n}**" if (n := recompiles(r)) else count(number(r.compile.get("recompiles"))),
        },
        left=["workload"],
    )


def failed_table(rows: Sequence[Row]) -> str:
    """Points without a valid result, and why."""
    columns: dict[str, Cell] = {"workload": lambda r: r.workload}
    if any(row.record.sweep for row in rows):
        columns["asked for"] = _overrides
    return table(rows, columns | {"error": lambda r: str(r.error)}, left=["workload", "asked for", "error"])


def spread(record: Record, name: str) -> str:
    """Median (min-max) of a figure; the median alone of a single run."""
    median, low, high = (digits(figure(record, name, statistic)) for statistic in ("median", "min", "max"))
    return median if DASH in (low, high) or len(record.runs) == 1 else f"{median} ({low}-{high})"


def _overrides(record: Record) -> str:
    """All overrides of the record's point in its sweep."""
    overrides = mapping(mapping(record.sweep).get("point"))
    return " ".join(f"{name}={value}" for name, value in overrides.items() if name != "workload")


def _labels(row: Row) -> dict[str, str]:
    record = row.record
    name = model_name(record) if record.model else str(record.device)
    if record.error is None and record.provenance_gaps():
        name += f" {DAGGER}"
    return {
        "model": f"{INVALID} {name}" if recompiles(record) else name,
        "policy": str(record.policy or ""),
        "kernels": row.implementation,
        "clip": clip(record),
        "batch": count(number(record.batch_size)) if record.batch_size != 1 and record.workload != "batch" else "",
        "backend": row.backend,
        "env": row.environment,
        "threads": row.threads,
        "point": row.point,
        "#": row.repeat,
    }


def _memory(record: Record, name: str) -> float | None:
    if name == "weights":
        return sum(map(_bytes, mapping(record.memory.get("weights")).values())) or None
    return number(record.memory.get(name))


def _bytes(value: object) -> float:
    return number(value) or 0.0


def _most(records: Sequence[Record], name: str) -> float | None:
    return max((value for r in records if (value := _memory(r, name)) is not None), default=None)


def _saved(records: Sequence[Record], fp32: Sequence[Record], name: str) -> str:
    """Percent less than fp32, over what both ran; without a counterpart a dash."""
    ours, theirs = (group((r for r in side if _memory(r, name) is not None), _same_work) for side in (records, fp32))
    shared = [key for key in ours if key in theirs]
    most, reference = (_most([r for key in shared for r in side[key]], name) for side in (ours, theirs))
    part = ratio(most, reference)
    return percent(None if part is None else 1 - part)


def _same_work(record: Record) -> tuple[str, ...]:
    return tuple(identity(record, without=("policy",)).values())


def _has_batch(rows: Sequence[Row]) -> bool:
    return any((number(row.record.batch_size) or 0) > 1 for row in rows)


def _with_note(text: str, note: str, is_due: bool) -> str:
    return f"{text}\n\n{note}" if is_due else text


def _without_empty(body: Sequence[Sequence[str]], headers: Sequence[str], left: Sequence[str]) -> str:
    """The table without the columns that hold nothing but dashes."""
    kept = [i for i in range(len(headers)) if any(line[i] != DASH for line in body)]
    return plain_table([[line[i] for i in kept] for line in body], [headers[i] for i in kept], left)


def _median(name: str) -> Cell:
    return lambda record: digits(figure(record, name))


def _stage(record: Record, name: str) -> str:
    ms = stage_ms(record, name)
    part = ratio(ms, figure(record, "total_ms"))
    return digits(ms) + ("" if part is None else f" ({percent(part)})")


def _tokens(record: Record) -> str:
    return tokens(record) + (f" {CUT}" if is_cut(record) else "")


def _prefill_per_token(record: Record) -> str:
    value = figure(record, "ms_per_token")
    return digits(ratio(figure(record, "total_ms"), number(record.tokens)) if value is None else value)


def _floor(record: Record) -> str:
    return percent(floor_fraction(record))
