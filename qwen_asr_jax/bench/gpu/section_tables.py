"""The tables of the report, one function per section; each makes Markdown of what was measured, "" of nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qwen_asr_jax.bench import fields, tables
from qwen_asr_jax.bench.fields import DASH, digits, percent
from qwen_asr_jax.bench.gpu import bars
from qwen_asr_jax.bench.gpu.bars import growth_percent
from qwen_asr_jax.bench.gpu.findings import Findings
from qwen_asr_jax.bench.gpu.measurement import PROGRAMS, STEPS, Measurement

Column = Callable[[Measurement], str]


def _table(measurements: Sequence[Measurement], columns: Mapping[str, Column], left: Sequence[str] = ()) -> str:
    """A table with a line per measurement, without columns that say nothing; "" for no lines."""
    lines = [[cell(each) for cell in columns.values()] for each in measurements]
    kept = [i for i in range(len(columns)) if any(line[i] not in ("", DASH) for line in lines)]
    headers = [list(columns)[i] for i in kept]
    return tables.plain_table([[line[i] for i in kept] for line in lines], headers, left=left) if lines else ""


def _setting(name: str) -> Column:
    def cell(each: Measurement) -> str:
        value = each.setting(name)
        return " x ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    return cell


def _figure(name: str, scale: float = 1.0) -> Column:
    return lambda each: digits(None if (value := each.figure(name)) is None else value * scale)


def _count(name: str) -> Column:
    return lambda each: fields.count(each.figure(name))


def _of(part: str, whole: str) -> Column:
    def cell(each: Measurement) -> str:
        a, b = each.figure(part), each.figure(whole)
        return DASH if a is None or b is None else f"{fields.count(a)}/{fields.count(b)}"

    return cell


def _rows(findings: Findings, workload: str) -> list[fields.Row]:
    return fields.make_rows([record for record in findings.records if record.workload == workload and record.error is None])


def _machine(findings: Findings) -> str:
    rows = _rows(findings, "roofline")
    parts = [tables.roofline_table(rows) if rows else ""]
    copies = findings.select("machine", "copy")
    parts.append(
        _table(
            copies,
            {
                "buffer, MiB": _setting("buffer_mib"),
                "read and written, GB/s": _figure("read_and_write_gb_s"),
                "copied, GB/s": _figure("copied_gb_s"),
            },
        )
    )
    launches = {
        "launches": lambda each: each.name,
        "per kernel, µs": _figure("kernel_us"),
        "per product": _figure("product_us"),
        "per pass": _figure("pass_us"),
    }
    small = [*findings.select("machine", "kernels in a row"), *findings.select("machine", "loop that looks")]
    parts.append(_table(small, launches, left=["launches"]))
    products = {
        "operands": _setting("dtype"),
        "precision": _setting("precision"),
        "size": _setting("size"),
        "TFLOP/s": _figure("gflop_s", 1e-3),
    }
    parts.append(_table(findings.select("machine", "product"), products, left=["operands", "precision"]))
    return "\n\n".join(part for part in parts if part)


def _parity(findings: Findings) -> str:
    common: dict[str, Column] = {"policy": _setting("policy"), "kernels": _setting("implementation")}
    texts = _table(
        findings.select("parity", "transcripts"),
        {**common, "texts as float32's": _of("equal", "clips"), "right texts": _of("right", "clips")},
        left=list(common),
    )
    logits = _table(
        findings.select("parity", "logits"),
        {
            "preset": _setting("preset"),
            **common,
            "max error": _figure("max_error"),
            "mean error": _figure("mean_error"),
            "logits' std": _figure("spread"),
            "same choice": _of("agreed", "steps"),
            "of clear ones": _of("clear_agreed", "clear"),
            "free run": _of("prefix", "steps"),
        },
        left=["preset", *common],
    )
    note = (
        "Against float32 by XLA on this machine's CPU. Texts: the demonstration model and its bundled clips, as one batch."
        " Logits: random weights, along float32's tokens; what the columns say is in `scripts/accuracy.py --help`."
    )
    return "\n\n".join(part for part in (note, texts, logits) if part) if texts or logits else ""


def _matvec(findings: Findings) -> str:
    rates = findings.rates

    def of_read(each: Measurement) -> str:
        rate = each.figure("gb_s")
        return percent(None if rates is None or rate is None else rate / rates.read_gb_s)

    columns: dict[str, Column] = {
        "preset": _setting("preset"),
        "matrix": _setting("product"),
        "shape": _setting("shape"),
        "dtype": _setting("dtype"),
        "rows": _setting("rows"),
        "layout": _setting("layout"),
        "XLA flags": _setting("variant"),
        "µs": _figure("product_us"),
        "GB/s": _figure("gb_s"),
        "of read rate": of_read,
        "kernels": _figure("kernels_per_product"),
        "compiled, s": _figure("compile_s"),
    }
    left = ["preset", "matrix", "shape", "dtype", "layout", "XLA flags"]
    heads = _table(
        findings.select("matvec", "head and argmax"),
        {"preset": _setting("preset"), "programs": _setting("programs"), "µs": _figure("call_us"), "GB/s": _figure("gb_s")},
        left=["preset"],
    )
    note = "Head and argmax for one row, called from Python as one program or as two:"
    found = [_table(findings.select("matvec", "product"), columns, left), f"{note}\n\n{heads}" if heads else ""]
    return "\n\n".join(part for part in found if part)


def _loop(findings: Findings) -> str:
    floors = {
        preset: bars.floor_of_step(findings, preset)
        for preset in {str(each.setting("preset")) for each in findings.select("loop", "loop")}
    }

    def profiled(each: Measurement) -> Mapping[str, Any]:
        found = findings.select("loop", "profile", **each.settings)
        return found[0].figures if found else {}

    def gap(each: Measurement) -> str:
        busy, ms = profiled(each).get("kernel_ms_per_step"), each.figure("ms_per_token_at_158")
        return percent(None if busy is None or not ms or busy > ms else 1 - busy / ms)  # a trace may slow kernels down

    def of_floor(each: Measurement) -> str:
        ms, floor = each.figure("ms_per_token_at_158"), floors.get(str(each.setting("preset")))
        return percent(None if ms is None or floor is None else floor / ms)

    def growth(each: Measurement) -> str:
        value = growth_percent(each.figures)
        return DASH if value is None else f"{value:+.1f} %"

    columns: dict[str, Column] = {
        "preset": _setting("preset"),
        "policy": _setting("policy"),
        "kernels": _setting("implementation"),
        "XLA flags": _setting("variant"),
        "steps per check": _setting("steps_per_check"),
        "ms/token at 62": _figure("ms_per_token_at_62"),
        "at 158": _figure("ms_per_token_at_158"),
        "growth": growth,
        "of floor": of_floor,
        "kernels in loop": _count("kernels_in_loop"),
        "run per step": lambda each: digits(profiled(each).get("kernels_per_step")),
        "their ms": lambda each: digits(profiled(each).get("kernel_ms_per_step")),
        "gap": gap,
        "same tokens": _of("equal_tokens", "inputs"),
        "compiled, s": _figure("compile_s"),
    }
    text = _table(findings.select("loop", "loop"), columns, left=["preset", "policy", "kernels", "XLA flags"])
    note = (
        "One row, from a cache of random keys and values. `kernels in loop` is counted in the compiled program; `run per step`"
        " and `their ms` come from a trace, in which kernels run one by one; `gap` is the rest of the step. `same tokens` as"
        " the plain loop's, for so many different inputs."
    )
    return f"{text}\n\n{note}" if text else ""


def _conv(findings: Findings) -> str:
    columns: dict[str, Column] = {
        "preset": _setting("preset"),
        "dtype": _setting("dtype"),
        "chunks": _setting("chunks"),
        "implementation": _setting("implementation"),
        "ms": _figure("ms"),
        "TFLOP/s": _figure("gflop_s", 1e-3),
    }
    return _table(findings.select("conv", "stem"), columns, left=["preset", "dtype", "implementation"])


def _workloads(findings: Findings) -> str:
    rows = [row for row in fields.make_rows(findings.records) if row.record.error is None]
    made: dict[str, Sequence[Callable[[Sequence[fields.Row]], str]]] = {
        "full": (tables.summary_table, tables.stage_table),
        "decode": (tables.decode_table, tables.context_table),
        "prefill": (tables.prefill_table,),
        "encoder": (tables.encoder_table,),
        "batch": (tables.batch_table,),
    }
    parts = []
    for workload, functions in made.items():
        own = [row for row in rows if row.record.workload == workload]
        found = [text for function in functions if own and (text := function(own))]
        parts += [f"### {workload}", *found] if found else []
    return "\n\n".join(parts)


def _memory(findings: Findings) -> str:
    loaded = {
        tuple(sorted(each.settings.items())): each.figure("device_peak_bytes_in_use")
        for each in findings.select("memory", "loaded")
    }

    def after_loading(each: Measurement) -> str:
        return fields.megabytes(loaded.get(tuple(sorted(each.settings.items()))))

    columns: dict[str, Column] = {
        "preset": _setting("preset"),
        "policy": _setting("policy"),
        "kernels": _setting("implementation"),
        "programs": lambda each: "from the cache" if each.setting("compiled_before") else "compiled",
        "weights, MB": _figure("weight_bytes", 1e-6),
        "device peak, loaded": after_loading,
        "transcribed": _figure("device_peak_bytes_in_use", 1e-6),
        "planned (30 s)": _figure("planned_bytes", 1e-6),
        "host peak": _figure("peak_rss_bytes", 1e-6),
        **{
            f"scratch of {verb}": _figure(f"{verb}_temp_bytes", 1e-6)
            for verb in ("log_mel", "encode", "embed", "prefill", "decode")
        },
    }
    return _table(findings.select("memory", "transcribed"), columns, left=["preset", "policy", "kernels", "programs"])


def _compile(findings: Findings) -> str:
    rows = _rows(findings, "load")
    return tables.load_table(rows) if rows else ""


def time_table(findings: Findings) -> str:
    """What each step took, and what of it was compiling."""
    compiled = {each.name: each for each in findings.select(PROGRAMS)}

    def of_programs(name: str) -> Column:
        return lambda each: fields.count(compiled[each.name].figure(name)) if each.name in compiled else DASH

    columns: dict[str, Column] = {
        "step": lambda each: each.name,
        "s": _figure("wall_s"),
        "expected": lambda each: digits(fields.number(each.facts.get("expected_s"))),
        "JAX ready": of_programs("jax_ready_s"),
        "programs": of_programs("programs"),
        "from cache": of_programs("from_cache"),
        "compiling, s": of_programs("compile_s"),
        "reading cache": of_programs("cache_s"),
        "tracing": of_programs("trace_s"),
        "lowering": of_programs("lower_s"),
    }
    table = _table(findings.select(STEPS), columns, left=["step"])
    return f"<details><summary>What each step took</summary>\n\n{table}\n\n</details>" if table else ""


TABLES: Mapping[str, Callable[[Findings], str]] = {
    "machine": _machine,
    "parity": _parity,
    "matvec": _matvec,
    "loop": _loop,
    "conv": _conv,
    "workloads": _workloads,
    "memory": _memory,
    "compile": _compile,
}
"""By section."""
