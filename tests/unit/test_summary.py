"""Figures of repeated measurements, by hand, and what is said of their ratios."""

from __future__ import annotations

import json

import pytest

from qwen_asr_jax.bench import fields
from qwen_asr_jax.bench.compare import LEAST_PAIRS, Comparison, check_gate
from qwen_asr_jax.bench.summary import STATISTICS, is_noise, paired_ratio, summarize
from qwen_asr_jax.errors import UsageError


def test_six_figures_in_any_order_of_the_values():
    found = summarize([4.0, 1.0, 3.0, 2.0])
    assert tuple(found) == STATISTICS
    assert (found["min"], found["mean"], found["median"], found["max"]) == (1, 2.5, 2.5, 4)
    assert found["p95"] == pytest.approx(3 + 0.85)  # position 0.95 * 3 = 2.85, between the third and the fourth
    assert found["stdev"] == pytest.approx((5 / 3) ** 0.5)  # squares 2.25 + 0.25 + 0.25 + 2.25 over n - 1


def test_the_95th_of_101_values_is_one_of_them():
    assert summarize([float(i) for i in range(101)])["p95"] == pytest.approx(95)


def test_one_value_is_all_figures_and_has_no_spread():
    assert summarize([7]) == {"min": 7, "mean": 7, "median": 7, "p95": 7, "max": 7, "stdev": 0}


def test_nothing_cannot_be_summarized():
    with pytest.raises(ValueError, match="nothing to summarize"):
        summarize([])


def test_medians_inside_the_others_runs_are_noise():
    wide, narrow = summarize([8.0, 10.0, 12.0]), summarize([11.0, 11.1, 11.2])
    assert is_noise(wide, narrow)  # 11.1 lies in 8 to 11.8; 10 does not lie in 11 to 11.19
    assert is_noise(narrow, wide)


def test_medians_outside_both_are_a_difference():
    before, after = summarize([8.0, 10.0, 12.0]), summarize([11.9, 12.0, 12.1])
    assert before["p95"] < after["median"]
    assert before["median"] < after["min"]
    assert not is_noise(before, after)
    assert not is_noise(after, before)


@pytest.mark.parametrize(
    "pairs, k, confidence",
    [
        (1, 1, 0.0),  # 1 - 2 * (1/2)
        (2, 1, 0.5),  # 1 - 2 * (1/4)
        (5, 1, 0.9375),  # 1 - 2/32
        (6, 1, 0.96875),  # 1 - 2/64
        (8, 1, 0.9921875),  # 1 - 2/256; k = 2 would be 1 - 2 * 9/256 = 0.930
        (9, 2, 0.9609375),  # 1 - 2 * 10/512
        (10, 2, 0.978515625),  # 1 - 2 * 11/1024; k = 3 would be 1 - 2 * 56/1024 = 0.891
        (20, 6, 1 - 2 * 21700 / 2**20),  # 1 + 20 + 190 + 1140 + 4845 + 15504
    ],
)
def test_the_interval_is_the_narrowest_that_covers_95_percent(pairs, k, confidence):
    ratios = [1 + i / 100 for i in range(pairs)]
    found = paired_ratio([2.0] * pairs, [2 * r for r in reversed(ratios)])
    assert found.pairs == pairs
    assert found.confidence == pytest.approx(confidence, abs=1e-12)
    assert found.low == pytest.approx(ratios[k - 1])
    assert found.high == pytest.approx(ratios[pairs - k])
    assert found.median == pytest.approx((ratios[(pairs - 1) // 2] + ratios[pairs // 2]) / 2)


def test_the_ratio_is_taken_pair_by_pair():
    """Medians of both sides are equal, and so would be their ratio; every single pair says otherwise."""
    found = paired_ratio([1.0, 2.0, 4.0], [2.0, 4.0, 2.0])
    assert (found.median, found.low, found.high) == (2, 0.5, 2)


@pytest.mark.parametrize(
    "ratios, shown",
    [
        ([1.1] * 6, True),
        ([0.9] * 6, True),
        ([1.1] * 5, False),  # too few for 95 %
        ([1.1] * 5 + [0.99], False),
        ([1.0] + [1.1] * 5, False),  # 1 itself counts as inside
        ([0.5] + [1.1] * 8 + [1.2], True),  # ten pairs: one outlier on each side is cut
        ([0.5, 0.6] + [1.1] * 8, False),
    ],
)
def test_a_difference_is_shown_when_the_interval_excludes_1(ratios, shown):
    assert paired_ratio([1.0] * len(ratios), ratios).shows_difference is shown


def test_the_fewest_pairs_that_can_show_a_difference():
    few, enough = ([1.0] * n for n in (LEAST_PAIRS - 1, LEAST_PAIRS))
    assert not paired_ratio(few, [9.0] * len(few)).shows_difference
    assert paired_ratio(enough, [9.0] * len(enough)).shows_difference


@pytest.mark.parametrize(
    "first, second, said",
    [
        ([], [], "got 0 and 0 values"),
        ([1.0], [1.0, 2.0], "got 1 and 2 values"),
        ([1.0, 0.0], [1.0, 1.0], "positive"),
        ([1.0, 1.0], [1.0, -1.0], "positive"),
    ],
)
def test_what_has_no_ratio(first, second, said):
    with pytest.raises(ValueError, match=said):
        paired_ratio(first, second)


def comparison(ratios, figure="total_ms") -> Comparison:
    return Comparison("full tiny", figure, (10.0,) * len(ratios), tuple(10 * r for r in ratios), interleaved=True)


@pytest.mark.parametrize(
    "ratios, figure, verdict",
    [
        ([1.08] * 6, "total_ms", "B slower by 8 %"),
        ([0.88] * 6, "wall_s", "B faster by 12 %"),
        ([1.004] * 6, "ms_per_token", "B slower by 0.4 %"),
        ([2.5] * 6, "rtf", "B slower by 150 %"),
        ([1.08] * 5, "total_ms", "too few pairs (5) to say"),
        ([1.0], "total_ms", "too few pairs (1) to say"),
        ([1.0] * 6, "total_ms", "no difference shown"),
        ([0.99] + [1.08] * 5, "total_ms", "no difference shown"),
        *((([1.08] * 6), figure, "B higher by 8 %") for figure in ("rtfx", "audio_s_per_s", "read_gb_s", "bf16_gflop_s")),
        ([0.88] * 6, "gb_s", "B lower by 12 %"),
        ([1.08] * 6, "peak_rss_bytes", "B higher by 8 %"),
        ([0.88] * 6, "cpu_s", "B lower by 12 %"),
    ],
)
def test_the_verdict_in_words(ratios, figure, verdict):
    assert comparison(ratios, figure).verdict == verdict


@pytest.mark.parametrize(
    "figure, value, text",
    [
        ("total_ms", 12.3456, "12.35 ms"),
        ("wall_s", 2.31, "2.310 s"),
        ("read_gb_s", 103.0, "103 GB/s"),
        ("f32_gflop_s", 12345.6, "12346 GFLOP/s"),
        ("audio_s_per_s", 20.0, "20 audio s/s"),
        ("tokens_per_s", 20.5, "20.50 tokens/s"),
        ("ms_per_token", 8.0, "8 ms/token"),
        ("gb_s", 30.25, "30.25 GB/s"),
        ("loop_step_us", 0.00001234, "0.00001234 µs"),
        ("peak_rss_bytes", 38_400_000, "38.40 MB"),
        ("tokens", 31, "31"),
    ],
)
def test_numbers_carry_the_unit_of_the_figure(figure, value, text):
    assert fields.with_unit(figure, value) == text


def test_direction_and_time_of_a_figure():
    rates = ("rtfx", "tokens_per_s", "audio_s_per_s", "read_gb_s", "gb_s", "f32_4096_gflop_s")
    times = ("total_ms", "wall_s", "rtf", "ms_per_token", "loop_step_us", "cold_total_s")
    neither = ("peak_rss_bytes", "cpu_s", "tokens", "cpu_per_wall")
    assert [(fields.more_is_better(name), fields.is_time(name)) for name in rates] == [(True, False)] * len(rates)
    assert [(fields.more_is_better(name), fields.is_time(name)) for name in times] == [(False, True)] * len(times)
    assert not any(fields.more_is_better(name) or fields.is_time(name) for name in neither)
    assert fields.figure_label("ttft_ms") == ("TTFT", "ms")


@pytest.mark.parametrize(
    "ratios, figure, worse, unclear",
    [
        ([1.2] * 6, "total_ms", 1, 0),
        ([1.05] * 6, "total_ms", 0, 0),  # a difference, but a smaller one
        ([0.9] + [1.2] * 5, "total_ms", 0, 1),
        ([0.8] * 6, "total_ms", 0, 0),
        ([0.8] * 6, "rtfx", 1, 0),  # A/B is 1.25
        ([1.2] * 6, "rtfx", 0, 0),
        ([1.1] + [0.8] * 5, "rtfx", 0, 1),
    ],
)
def test_the_gate(ratios, figure, worse, unclear):
    found = check_gate(1.1, [comparison(ratios, figure)])
    assert tuple(map(len, found)) == (worse, unclear)
    assert all("inconclusive: more pairs" in line for line in found[1])


def test_the_gate_cannot_work_with_five_pairs():
    with pytest.raises(UsageError, match="needs 6 pairs or more, got 5"):
        check_gate(1.1, [comparison([1.2] * 6), comparison([1.2] * 5)])


def test_a_comparison_as_json():
    values = json.loads(comparison([1.25] * 6).to_json("old", "new"))
    assert (values["schema"], values["kind"], values["a"], values["b"]) == (1, "comparison", "old", "new")
    assert values["values_b"] == [12.5] * 6
    assert values["ratio"] == {"median": 1.25, "low": 1.25, "high": 1.25, "confidence": 0.96875, "pairs": 6}
    assert (values["figure"], values["verdict"], values["interleaved"]) == ("total_ms", "B slower by 25 %", True)
