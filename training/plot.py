"""The loss plot."""

from __future__ import annotations

import json
import pathlib


def plot_log(log: pathlib.Path, out: pathlib.Path) -> None:
    """Draws `log.jsonl`: losses above, word error rates on held-out voices below, over the steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [line for line in lines if "text" in line]
    looks = [line for line in lines if "held_out" in line]
    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    labels = {"text": "answer, per token", "tokens": "CTC of tokens", "letters": "CTC of letters"}
    for name, label in labels.items():
        above.plot([line["step"] for line in losses], [line[name] for line in losses], label=label, linewidth=1)
    above.set_yscale("log")
    above.set_ylabel("nats")
    above.legend(frameon=False)
    for name in ("clean", "noisy", "long"):
        below.plot(
            [line["step"] for line in looks], [line["held_out"][name] for line in looks], "o-", label=name, markersize=3
        )
    below.set_ylim(0, 100)
    below.set_ylabel("WER on held-out voices, %")
    below.set_xlabel("step")
    below.legend(frameon=False)
    figure.savefig(out, dpi=110)
    plt.close(figure)
