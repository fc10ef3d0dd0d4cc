"""Runs the steps of a report within its time, each in a process of its own. Starts no JAX.

A step that hangs is ended, one that crashes is noted, one that no longer fits is left out; whatever a step had measured until
then is in the files already.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from qwen_asr_jax import processes, runtime
from qwen_asr_jax.bench.gpu import measurement
from qwen_asr_jax.bench.gpu.measurement import STEPS, Measurement
from qwen_asr_jax.bench.gpu.plan import Plan, Step
from qwen_asr_jax.bench.gpu.sheet import RESULTS, Task
from qwen_asr_jax.processes import Finished

TIME_LIMIT_S = 460.0
"""Seconds for the whole report unless told otherwise, and what the estimates of the plan are about."""

_PAGE_S = 8.0
"""Seconds kept for writing the page and its plots."""
_LEAST_SHARE = 0.4
"""A step is begun if so much of what it should take is left: it writes as it goes."""
_SLACK_S = 20.0
_REFUSED_FLAG = re.compile(r"Unknown flags? in XLA_FLAGS: \S+|Illegal value for --\S+ \S+")
_FATAL = re.compile(r"^F\d{4} .*?\] (.{1,200})", re.MULTILINE)
"""What XLA says before it ends the process; behind it may follow much else."""
_NOT_TAKEN = "this jaxlib does not take it: "

Command = Callable[[Task], Sequence[str]]


def child_command(task: Task) -> list[str]:
    """The command line of a step's process."""
    return [sys.executable, "-m", "qwen_asr_jax.bench.gpu.child", task.to_json()]


@dataclasses.dataclass
class Conductor:
    """Runs a plan.

    Attributes:
      plan: what to do.
      output: folder of the report.
      folder: for checkpoints, references and compiled programs.
      limit_s: seconds for all.
      quick: tiny shapes.
      say: hears a line whenever something has happened.
      command: the command line of a step's process.
    """

    plan: Plan
    output: pathlib.Path
    folder: pathlib.Path
    limit_s: float = TIME_LIMIT_S
    quick: bool = False
    say: Callable[[str], None] = print
    command: Command = child_command

    def __post_init__(self) -> None:
        self._begun = time.monotonic()
        self.done = 0  # steps that ended well
        self._interrupted = threading.Event()
        self._over = threading.Event()
        self._prepared: dict[str, str | None] = {}
        self._news = threading.Condition()

    def interrupt(self) -> None:
        """Ends what is running, and begins nothing any more. To be called by handlers of signals."""
        self._interrupted.set()
        processes.end_all()

    def run(self) -> bool:
        """Runs all steps that fit, and returns whether all ended well; what became of each is in the file of results."""
        preparing = threading.Thread(target=self._prepare, daemon=True)
        preparing.start()
        waiting = list(self.plan.steps)
        well = True
        while waiting:
            steps = self._next(waiting)
            waiting = [step for step in waiting if step not in steps]
            for step, error in self._run_beside(steps):
                self.done += error is None
                well &= self._account(step, error)
        self._over.set()
        processes.end_all()  # a preparation that nothing waits for any more
        preparing.join(timeout=10)
        return well

    def left_s(self) -> float:
        """Seconds left for steps."""
        return self.limit_s - _PAGE_S - (time.monotonic() - self._begun)

    def _prepare(self) -> None:
        """Runs the preparations; a failed one fails the steps that need it."""
        for step in self.plan.preparations:
            missing = self._failed_need(step)
            error = missing or (self._reason(self._process(step, self.left_s())) if self._may_go_on() else "no time left")
            if self._over.is_set():
                return
            with self._news:
                self._prepared[step.name] = error
                self._news.notify_all()
            if error:
                self._account(step, error)

    def _may_go_on(self) -> bool:
        return not (self._interrupted.is_set() or self._over.is_set()) and self.left_s() > 0

    def _next(self, waiting: Sequence[Step]) -> list[Step]:
        """The first step that has all it needs, or will never have it, with those that run beside it."""
        with self._news:
            while self._may_go_on():
                ready = [step for step in waiting if self._is_ready(step)]
                if ready:
                    first = ready[0]
                    at = waiting.index(first)
                    beside = [first]
                    for step in waiting[at + 1 :]:
                        if not (first.beside and step.beside == first.beside and step in ready):
                            break
                        beside.append(step)
                    return beside
                self._news.wait(timeout=0.2)
        return list(waiting)

    def _is_ready(self, step: Step) -> bool:
        return all(need in self._prepared for need in step.needs) or self._failed_need(step) is not None

    def _failed_need(self, step: Step) -> str | None:
        """Why what the step needs will never be there."""
        failed = [(need, self._prepared[need]) for need in step.needs if self._prepared.get(need)]
        return f"{failed[0][0]} could not be made: {failed[0][1]}" if failed else None

    def _run_beside(self, steps: Sequence[Step]) -> list[tuple[Step, str | None]]:
        """Runs the steps at once; each with why it did not end well, or None."""
        found: dict[str, str | None] = {}

        def run(step: Step) -> None:
            found[step.name] = self._run(step)

        if len(steps) == 1 or not self._may_go_on():
            for step in steps:
                run(step)
        else:
            threads = [threading.Thread(target=run, args=(step,)) for step in steps]
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(timeout=0.2)  # signals are handled between these
        return [(step, found[step.name]) for step in steps]

    def _run(self, step: Step) -> str | None:
        if self._interrupted.is_set():
            return "not begun: interrupted"
        if missing := self._failed_need(step):
            return f"not begun: {missing}"
        left = self.left_s()
        if left < _LEAST_SHARE * step.expected_s:
            return f"not begun: no time left (about {step.expected_s:.0f} s needed)"
        patience = max(1.0, self.limit_s / TIME_LIMIT_S)
        timeout_s = min(left, (2 * step.expected_s + _SLACK_S) * patience)
        return self._reason(self._process(step, timeout_s))

    def _process(self, step: Step, timeout_s: float) -> Finished:
        timeout_s = max(1.0, timeout_s)
        ends_at = time.monotonic() + timeout_s - min(15.0, 0.2 * timeout_s)
        task = Task(step.name, step.section, step.settings, str(self.output), str(self.folder), ends_at, self.quick)
        done = processes.run(self.command(task), env=self._environment(step), timeout_s=timeout_s)
        figures = {"wall_s": done.wall_s, "cpu_s": done.cpu_s, "peak_rss_bytes": float(done.peak_rss_bytes)}
        if not done.status and not self._interrupted.is_set():
            self._write(Measurement(STEPS, step.name, {"section": step.section}, figures, {"expected_s": step.expected_s}))
        return done

    def _environment(self, step: Step) -> Mapping[str, str]:
        flags = " ".join(part for part in (os.environ.get("XLA_FLAGS", ""), step.variables.get("XLA_FLAGS", "")) if part)
        return {
            **os.environ,
            **step.variables,
            "XLA_FLAGS": flags,
            runtime.CACHE_VARIABLE: str(self.folder / step.cache),
            "XDG_CACHE_HOME": str(self.folder / "home"),
        }

    def _reason(self, done: Finished) -> str | None:
        """Why a process did not end well, in one line; None where it did."""
        if self._interrupted.is_set() and done.status:
            return "interrupted"
        if not done.status:
            return None
        if refused := _REFUSED_FLAG.search(done.stderr):
            return f"{_NOT_TAKEN}{refused[0]}"
        fatal = _FATAL.search(done.stderr)
        return done.reason() if fatal is None or done.timed_out else f"XLA ended it: {fatal[1]}"

    def _account(self, step: Step, error: str | None) -> bool:
        """Writes what became of a step that did not end well; returns whether it counts as done."""
        if error is None:
            return True
        is_gap = not error.startswith(_NOT_TAKEN)
        self._write(Measurement(STEPS, step.name, {"section": step.section}, error=error, is_gap=is_gap))
        self.say(f"{step.name}: {error}")
        return not is_gap

    def _write(self, line: Measurement) -> None:
        measurement.append(self.output / RESULTS, [line])
