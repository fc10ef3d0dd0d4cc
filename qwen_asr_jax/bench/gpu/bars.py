"""The targets: what is to be reached on an H200, and the same as fractions of what any card could do at best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.fields import DASH, digits, percent
from qwen_asr_jax.bench.gpu.findings import Findings, Rates
from qwen_asr_jax.bench.gpu.measurement import COSTS
from qwen_asr_jax.bench.record import Record

H200 = Rates(read_gb_s=4300.0, bf16_gflop_s=780e3)
"""What an H200 reads, and how fast it multiplies, as others measured: what the targets are fractions of."""

_PROMPT_S, _BATCH_S, _BATCH_ROWS = 11.0, 30.0, 128


@dataclasses.dataclass(frozen=True)
class Bar:
    """One target.

    Attributes:
      what: it is about.
      unit: of the figures.
      target: to be reached on an H200.
      measured: here; None where it was not measured.
      how: what was measured, where there was a choice.
      floor: least possible here, or most of what is better the more there is; None where there is no such thing.
      floor_h200: the same on an H200.
      is_rate: more is better.
    """

    what: str
    unit: str
    target: float
    measured: float | None
    how: str = ""
    floor: float | None = None
    floor_h200: float | None = None
    is_rate: bool = dataclasses.field(default=False, kw_only=True)

    @property
    def target_fraction(self) -> float | None:
        """How near the target is to what an H200 could do at best."""
        return self._fraction(self.target, self.floor_h200)

    @property
    def fraction(self) -> float | None:
        """How near the measured figure is to what this machine could do at best."""
        return None if self.measured is None else self._fraction(self.measured, self.floor)

    def is_met(self, on_h200: bool) -> bool | None:
        """Whether it is reached: on another card by the fraction, where there is one. None where that is not known."""
        if self.measured is None:
            return None
        if on_h200 or self.floor_h200 is None:
            return self.measured >= self.target if self.is_rate else self.measured <= self.target
        if self.fraction is None or self.target_fraction is None:
            return None
        return self.fraction >= self.target_fraction

    def _fraction(self, value: float, floor: float | None) -> float | None:
        if floor is None or not value:
            return None
        return value / floor if self.is_rate else floor / value

    def cells(self, on_h200: bool) -> list[str]:
        """The row under `HEADERS`."""
        met = self.is_met(on_h200)
        return [
            self.what,
            f"{digits(self.target)} {self.unit}",
            percent(self.target_fraction),
            DASH if self.measured is None else f"{digits(self.measured)} {self.unit}",
            DASH if self.floor is None else f"{digits(self.floor)} {self.unit}",
            percent(self.fraction),
            {None: "not measured" if self.measured is None else "unknown", True: "met", False: "**not met**"}[met],
            self.how,
        ]


HEADERS = ("what", "target (H200)", "of its floor", "measured", "floor here", "of the floor", "", "measured as")


def is_h200(device: str | None) -> bool:
    """Whether the targets themselves apply."""
    return "H200" in (device or "")


def bars(findings: Findings) -> list[Bar]:
    """All targets, with what was measured of them."""
    found = []
    for preset, targets in (("0.6b", (0.55, 0.45)), ("1.7b", (1.15,))):
        found += _decode_bars(findings, preset, targets)
    for preset, target in (("0.6b", 30.0), ("1.7b", 50.0)):
        found.append(_full_bar(findings, preset, target))
    found.append(_prefill_bar(findings, "0.6b", 0.02))
    for preset, target in (("0.6b", 4000.0), ("1.7b", 2500.0)):
        found.append(_batch_bar(findings, preset, target))
    return found + _memory_bars(findings)


def _floors(findings: Findings, preset: str, clip_s: float, **stages: int) -> tuple[float | None, float | None]:
    """Least milliseconds here and on an H200; `step=-1` counts all steps but the first token's."""

    def counted(steps: int) -> dict[str, int]:
        return {stage: steps - 1 if times < 0 else times for stage, times in stages.items()}

    rates = findings.rates
    here = None if rates is None else findings.floor_ms(rates, counted, preset, clip_s)
    return here, findings.floor_ms(H200, counted, preset, clip_s)


def _kernels(record: Record | None) -> str:
    """How a workload was measured: where several kernels were, the fastest count."""
    return "" if record is None else f"workload {record.workload}, by {fields.implementation(record)}"


def _decode_bars(findings: Findings, preset: str, targets: Sequence[float]) -> list[Bar]:
    floors = _floors(findings, preset, _PROMPT_S, step=1)
    record = findings.workload("decode", preset)
    as_it_is = None if record is None else fields.figure(record, "ms_per_token")
    how = _kernels(record)
    loops = findings.select("loop", "loop", preset=preset, policy="bf16")
    if as_it_is is None:
        plain = [each for each in loops if not each.setting("variant") and each.setting("implementation") == "auto"]
        as_it_is, how = (plain[0].figure("ms_per_token_at_158"), plain[0].title()) if plain else (None, "")
    what = f"decoding, {preset} bf16, one clip"
    found = [Bar(what, "ms/token", target, as_it_is, how, *floors) for target in targets]
    right = [each for each in loops if each.figure("equal_tokens") == each.figure("inputs")]
    timed = [(ms, each.title()) for each in right if (ms := each.figure("ms_per_token_at_158")) is not None]
    best, settings = min(timed, default=(None, ""))
    found.append(Bar(f"{what}, best settings", "ms/token", targets[-1], best, settings, *floors))
    if preset == "0.6b":
        growth = [(g, each.title()) for each in loops if (g := growth_percent(each.figures)) is not None]
        first, settings = growth[0] if growth else (None, "")
        found.append(Bar(f"more per token at 158 tokens of context than at 62, {preset}", "%", 3.0, first, settings))
    return found


def floor_of_step(findings: Findings, preset: str) -> float | None:
    """Least milliseconds of a step of one row here."""
    return _floors(findings, preset, _PROMPT_S, step=1)[0]


def growth_percent(figures: object) -> float | None:
    """How much longer a step takes at the longer context, in percent."""
    values = fields.mapping(figures)
    short, long = (values.get(f"ms_per_token_at_{context}") for context in (62, 158))
    return 100 * (long / short - 1) if short and long else None


def _full_bar(findings: Findings, preset: str, target: float) -> Bar:
    floors = _floors(findings, preset, _PROMPT_S, encode=1, prefill=1, step=-1)
    record = findings.workload("full", preset, clip_s=_PROMPT_S)
    ms = None if record is None else fields.figure(record, "total_ms")
    return Bar(f"clip of 11 s, 30 tokens, {preset} bf16", "ms", target, ms, _kernels(record), *floors)


def _prefill_bar(findings: Findings, preset: str, target: float) -> Bar:
    tokens = findings.figure("tokens", COSTS, "prefill", preset=preset, clip_s=_PROMPT_S)
    here, there = _floors(findings, preset, _PROMPT_S, prefill=1)
    record = findings.workload("prefill", preset)
    ms = None if record is None else record.ms_per_token
    floors = [None if floor is None or not tokens else floor / tokens for floor in (here, there)]
    return Bar(f"prompt of 158 tokens, {preset} bf16", "ms/token", target, ms, _kernels(record), *floors)


def _batch_bar(findings: Findings, preset: str, target: float) -> Bar:
    floors = _floors(findings, preset, _BATCH_S, encode=1, prefill=1, step=-1)
    most = [None if floor is None else _BATCH_ROWS * _BATCH_S / floor * 1e3 for floor in floors]
    record = findings.workload("batch", preset, rows=_BATCH_ROWS)
    rate = None if record is None else fields.figure(record, "audio_s_per_s")
    return Bar(
        f"{_BATCH_ROWS} clips of 30 s, 90 tokens each, {preset} bf16",
        "audio s/s",
        target,
        rate,
        _kernels(record),
        *most,
        is_rate=True,
    )


def _memory_bars(findings: Findings) -> list[Bar]:
    targets = (
        ("0.6b", "fp32", 3.3),
        ("0.6b", "bf16", 1.8),
        ("0.6b", "fp16", 1.8),
        ("0.6b", "int8", 1.3),
        ("1.7b", "bf16", 4.5),
    )
    found = []
    for preset, policy, target in targets:
        settings = {"preset": preset, "policy": policy, "compiled_before": True}
        peak = findings.figure("device_peak_bytes_in_use", "memory", "transcribed", **settings)
        gigabytes = None if peak is None else peak / 1e9
        found.append(
            Bar(
                f"device memory, {preset} {policy}, clip of 30 s",
                "GB",
                target,
                gigabytes,
                "peak of a fresh process, compiled before",
            )
        )
    return found
