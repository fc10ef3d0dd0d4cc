"""What the figures say is to be done: one sentence each, from numbers alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.fields import digits, percent
from qwen_asr_jax.bench.gpu.bars import growth_percent
from qwen_asr_jax.bench.gpu.findings import Findings
from qwen_asr_jax.bench.gpu.matrices import LAYERS, STORED, TURNED
from qwen_asr_jax.bench.gpu.measurement import Measurement

ENOUGH_READ = 0.75
"""Part of the memory's rate at which products of one row are good enough as they are."""
MOST_GAP = 0.15
"""Part of a step that may pass between kernels."""
MOST_ERROR = {"fp32": 0.001, "bf16": 0.08, "fp16": 0.02, "int8": 0.25, "int8_all": 0.25}
"""Mean error of logits over their standard deviation that a policy may have: twice as much and more as on CPUs, where the 0.6B
geometry has 0.038, 0.004, 0.12 and 0.13 behind float32."""
_CLEAR = 0.02
"""Differences below this are none."""
_INT8_PAYS = 1.3
_MOST_GROWTH = 3.0


def decisions(findings: Findings) -> list[str]:
    """Sentences in Markdown; none for what was not measured."""
    presets = list(dict.fromkeys(str(each.setting("preset")) for each in findings.measurements if each.setting("preset")))
    found = [*_parity(findings)]
    for preset in presets:
        found += [*_products(findings, preset), *_loop(findings, preset)]
    return [*found, *_conv(findings), *_batches(findings)]


def _parity(findings: Findings) -> Iterator[str]:
    texts, logits = findings.select("parity", "transcripts"), findings.select("parity", "logits")
    wrong = []
    for each in texts:
        if each.figures["equal"] < each.figures["clips"]:
            said = f"{each.figures['equal']:.0f} of {each.figures['clips']:.0f} transcripts are float32's"
            wrong.append((each, said))
    for each in logits:
        error, most = each.figure("mean_error"), MOST_ERROR[str(each.setting("policy"))]
        if error is None:  # it was no number
            wrong.append((each, "logits are not finite"))
        elif (share := error / each.figures["spread"]) > most:
            wrong.append((each, f"logits are off by {digits(share)} of their spread on average, {most} may be expected"))
    if (texts or logits) and not wrong:
        yield (
            f"**Results are right** in {len(texts)} comparisons of transcripts and {len(logits)} of logits: float32's texts,"
            " and logits as near to float32's as the policies allow."
        )
    for each, said in wrong:
        how = " ".join(str(part) for part in map(each.setting, ("preset", "policy", "implementation")) if part)
        yield f"**Wrong results first**: {how}: {said}. Nothing else counts until this is understood."


def step_rate(findings: Findings, preset: str, **changes: str) -> float | None:
    """GB/s over all products of a decode step of one row: 28 layers and the head, each by its own measured time.

    Args:
      changes: `dtype`, `layout` or `variant` other than those of plain bfloat16.
    """
    settings = {"dtype": "bfloat16", "layout": STORED, "variant": "", **changes}
    measured = findings.select("matvec", "product", preset=preset, rows=1, **settings)
    found = {str(each.setting("product")): each for each in measured}
    if len(found) < len(LAYERS) + 1:
        return None
    times = {name: 28 if name in LAYERS else 1 for name in found}
    total_bytes = sum(each.figures["matrix_bytes"] * times[name] for name, each in found.items())
    return total_bytes / sum(each.figures["product_us"] * times[name] for name, each in found.items()) / 1e3


def _products(findings: Findings, preset: str) -> Iterator[str]:
    rates, rate = findings.rates, step_rate(findings, preset)
    if rates is not None and rate is not None:
        share = rate / rates.read_gb_s
        verdict = f"below {percent(ENOUGH_READ)}: products of one row need kernels of their own"
        if share >= ENOUGH_READ:
            verdict = "near enough; what is left lies between the products"
        yield (
            f"XLA's products of one row, {preset} bf16: {digits(rate)} GB/s over a whole step,"
            f" **{percent(share)} of what the memory gives**; {verdict}."
        )
        yield from _other_products(findings, preset, rate)
    one, two = (findings.figure("call_us", "matvec", "head and argmax", preset=preset, programs=n) for n in (1, 2))
    if one and two:
        verdict = _better("head and argmax in one program", two / one, "in two")
        yield f"{verdict} ({preset}, {digits(one)} and {digits(two)} µs)."


def _other_products(findings: Findings, preset: str, rate: float) -> Iterator[str]:
    """The same products with other matrices or flags, against the plain ones' rate."""
    turned = step_rate(findings, preset, layout=TURNED)
    if turned is not None:
        yield f"{_better('matrices as `[in, out]`', turned / rate, 'as stored, `[out, in]`')} ({preset} bf16, one row)."
    int8 = step_rate(findings, preset, dtype="int8")
    if int8 is not None:
        gain = 2 * int8 / rate
        verdict = "as it is, it pays" if gain > _INT8_PAYS else "the conversion eats what the bytes save: kernels of its own"
        yield f"int8 products, {preset}: {digits(int8)} GB/s, {digits(gain)} times as fast as bf16's; {verdict}."
    variants = {str(each.setting("variant")) for each in findings.select("matvec", "product", preset=preset)} - {""}
    for variant in sorted(variants):
        other = step_rate(findings, preset, variant=variant)
        if other is not None:
            yield f"{_better(f'products with XLA flags `{variant}`', other / rate, 'without')} ({preset} bf16, one row)."


def _better(what: str, speedup: float, than: str) -> str:
    """`What is 12 % faster than ...`, from how many times as fast it is."""
    what = what[0].upper() + what[1:]
    if abs(speedup - 1) < _CLEAR:
        return f"{what}: no difference to {than}"
    if speedup > 1:
        return f"**{what}: {digits(speedup)} times as fast** as {than}"
    return f"{what}: slower than {than}, {digits(1 / speedup)} times the time"


def _loop(findings: Findings, preset: str) -> Iterator[str]:
    loops = findings.select("loop", "loop", preset=preset)
    wrong = [each for each in loops if each.figure("equal_tokens") != each.figure("inputs")]
    for each in wrong:
        yield f"**Not to be used**: `{each.title()}` chose other tokens than the plain loop."
    right = [each for each in loops if each not in wrong and each.figure("ms_per_token_at_158")]
    plain = [each for each in right if not each.setting("variant") and each.setting("implementation") == "auto"]
    if not plain:
        return
    first, best = _ms(plain[0]), min(plain, key=_ms)
    profiled = [each for each in (best, plain[0]) if findings.select("loop", "profile", **each.settings)]
    if profiled:
        yield from _gap(findings, preset, profiled[0])
    if len(plain) > 1:
        check = best.setting("steps_per_check")
        gain = "looking less often gains nothing"
        if check != 1:
            gain = f"{digits(first / _ms(best))} times as fast as looking at every step"
        yield f"Best `steps_per_check`, {preset}: **{check}** ({gain})."
    for each in right:
        variant, implementation, speedup = each.setting("variant"), each.setting("implementation"), first / _ms(each)
        if variant:
            yield f"{_better(f'the loop with XLA flags `{variant}`', speedup, 'without')} ({preset})."
        if implementation != "auto":
            yield f"{_better(f'the loop by `{implementation}` kernels', speedup, 'by XLA')} ({preset})."
    growth = growth_percent(plain[0].figures)
    if growth is not None and growth > _MOST_GROWTH:
        yield f"A step takes {digits(growth)} % more at 158 tokens of context than at 62 ({preset}): look at attention."


def _ms(loop: Measurement) -> float:
    return loop.figures["ms_per_token_at_158"]


def _gap(findings: Findings, preset: str, loop: Measurement) -> Iterator[str]:
    """What lies between the kernels of a step: by the trace, and by their number and what a launch costs."""
    for profile in findings.select("loop", "profile", **loop.settings)[:1]:
        kernels, busy = (profile.figures[name] for name in ("kernels_per_step", "kernel_ms_per_step"))
        gap = 1 - busy / _ms(loop)
        if gap <= 0:
            yield f"The {digits(kernels)} kernels of a step, {preset}, take longer in the trace than the step: no gap is seen."
        else:
            verdict = "what the kernels themselves take comes first"
            if gap > MOST_GAP:
                verdict = "fewer kernels, or loops captured in graphs, come first"
            yield (
                f"A step of {preset} takes {digits(_ms(loop))} ms, its {digits(kernels)} kernels {digits(busy)}:"
                f" **{percent(gap)} lies between them**; {verdict}."
            )
        launch_us = findings.figure("kernel_us", "machine", "kernels in a row")
        if launch_us is not None:
            launches = kernels * launch_us / 1e3
            verdict = "that is little enough" if launches < MOST_GAP * _ms(loop) else "fewer are needed"
            yield (
                f"A kernel that does nearly nothing costs {digits(launch_us)} µs; the {digits(kernels)} of a step, {preset},"
                f" would take {percent(launches / _ms(loop))} of it by that; {verdict}."
            )


def _conv(findings: Findings) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for each in findings.select("conv", "stem"):
        groups.setdefault((str(each.setting("preset")), str(each.setting("dtype"))), []).append(each)
    for (preset, dtype), members in groups.items():
        sizes = sorted({each.settings["chunks"] for each in members})
        said = []
        for chunks in sizes:
            of_size = [each for each in members if each.settings["chunks"] == chunks]
            if len(of_size) < 2:
                continue
            best, *others = sorted(of_size, key=lambda each: each.figures["ms"])
            factor = others[0].figures["ms"] / best.figures["ms"]
            said.append(f"{chunks} chunks `{best.setting('implementation')}` ({digits(factor)} times as fast)")
        if said:
            yield f"Best conv stem, {preset} {dtype}: {', '.join(said)}."


def _batches(findings: Findings) -> Iterator[str]:
    groups: dict[str, list[tuple[float, int]]] = {}
    for record in findings.records:
        rate = fields.figure(record, "audio_s_per_s") if record.workload == "batch" and fields.is_valid(record) else None
        if rate is not None:
            groups.setdefault(fields.model_name(record), []).append((rate, record.batch_size))
    for preset, found in groups.items():
        if len(found) > 1:
            rate, rows = max(found)
            yield f"Best batch of those measured, {preset}: **{rows}** clips ({digits(rate)} audio s/s)."


def as_list(sentences: Sequence[str]) -> str:
    """The sentences as a Markdown list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)
