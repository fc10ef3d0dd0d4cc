"""What becomes of a report's steps: those that hang, crash, do not fit, wait for something, or are interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from qwen_asr_jax.bench.gpu import child, measurement
from qwen_asr_jax.bench.gpu.conductor import TIME_LIMIT_S, Conductor, child_command
from qwen_asr_jax.bench.gpu.follower import Follower
from qwen_asr_jax.bench.gpu.measurement import STEPS, Measurement
from qwen_asr_jax.bench.gpu.plan import CHECKS, SECTIONS, Plan, Step, make_plan
from qwen_asr_jax.bench.gpu.sheet import RESULTS, Sheet, Task
from qwen_asr_jax.errors import QwenASRError, UsageError
from qwen_asr_jax.policy import PRESETS

WRITES = "import json, sys; open(sys.argv[1] + '/results.jsonl', 'a').write(sys.argv[2] + '\\n')"


@pytest.fixture
def conduct(tmp_path):
    def run(steps, preparations=(), limit_s=100.0, meanwhile=None):
        """Runs steps whose `settings` hold the code of their process; returns how they ended, and what was said."""
        said = []

        def command(task):
            line = Measurement(task.section, task.step, {}, {"x": 1.0}).to_json()
            return [sys.executable, "-c", task.settings["code"], str(tmp_path), line]

        plan = Plan(list(steps), list(preparations))
        conductor = Conductor(plan, tmp_path, tmp_path, limit_s, quick=True, say=said.append, command=command)
        if meanwhile is not None:
            threading.Thread(target=meanwhile, args=(conductor,)).start()
        well = conductor.run()
        found, problems = measurement.read(tmp_path / RESULTS)
        assert problems == []
        return well, found, said

    return run


def step(name, code, section="machine", **fields):
    return Step(name, section, {"code": code}, **({"expected_s": 1.0} | fields))


def errors(found):
    return {each.name: each.error for each in found if each.section == STEPS and each.error}


def test_a_step_that_crashes_costs_no_other(conduct):
    crash = f"{WRITES}; import os; os.abort()"
    well, found, said = conduct([step("first", crash), step("second", WRITES)])
    assert not well
    assert errors(found) == {"first": "ended by SIGABRT"}
    assert said == ["first: ended by SIGABRT"]
    assert {each.name for each in found if each.section == "machine"} == {"first", "second"}  # what it had measured stays
    (done,) = [each for each in found if each.section == STEPS and not each.error]
    assert (done.name, done.settings["section"]) == ("second", "machine")
    assert done.figures["wall_s"] > 0


def test_a_step_that_hangs_is_ended(conduct):
    hang = f"{WRITES}; import time; time.sleep(600)"
    well, found, _ = conduct([step("hangs", hang), step("next", WRITES)], limit_s=12.0)
    assert not well
    assert errors(found)["hangs"].endswith("the time limit")
    assert "hangs" in {each.name for each in found if each.section == "machine"}
    assert errors(found)["next"].startswith("not begun: no time left")  # the other had all of it


def test_a_step_that_does_not_fit_is_left_out(conduct):
    well, found, _ = conduct([step("long", WRITES, expected_s=1e4), step("short", WRITES)])
    assert not well
    assert errors(found) == {"long": "not begun: no time left (about 10000 s needed)"}
    assert [each.is_gap for each in found if each.error] == [True]


def test_a_step_gets_more_time_where_there_is_more(tmp_path):
    given = []

    def command(task):
        given.append(task.ends_at - time.monotonic())
        return [sys.executable, "-c", ""]

    for limit_s in (TIME_LIMIT_S, 10 * TIME_LIMIT_S):
        plan = Plan([Step("a", "machine", expected_s=10.0)], [])
        Conductor(plan, tmp_path, tmp_path, limit_s, say=lambda line: None, command=command).run()
    assert 10 < given[0] < 60
    assert given[1] > 5 * given[0]


def test_what_xla_says_before_it_ends_a_process(conduct):
    unknown = (
        "import sys; sys.exit('F1122 10:33 2 parse.cc:234] Unknown flag in XLA_FLAGS: --xla_gpu_colour=true\\nusage: all')"
    )
    value = (
        "import sys; sys.exit('E1122 a.cc:1] Illegal value for --xla_gpu_x \\'Y\\'\\nF1122 b.cc:2] Check failed\\nusage')"
    )
    fatal = "import sys; sys.exit('F1122 10:33 2 gpu.cc:1] no kernel image\\nFlags:\\n --lots')"
    well, found, _ = conduct([step("unknown", unknown), step("value", value)])
    assert errors(found) == {
        "unknown": "this jaxlib does not take it: Unknown flag in XLA_FLAGS: --xla_gpu_colour=true",
        "value": "this jaxlib does not take it: Illegal value for --xla_gpu_x 'Y'",
    }
    assert well  # it is not this machine's fault
    assert not any(each.is_gap for each in found)
    well, found, _ = conduct([step("fatal", fatal)])
    assert errors(found)["fatal"] == "XLA ended it: no kernel image"
    assert not well


def test_steps_wait_for_what_they_need_and_others_go_first(conduct, tmp_path):
    wait = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\n"
    go = f"open({str(tmp_path / 'go')!r}, 'w').close(); {WRITES}"
    made = step("made", wait + WRITES, "checkpoint")
    well, found, _ = conduct([step("needs it", WRITES, needs=("made",)), step("needs nothing", go)], [made])
    assert well
    order = [each.name for each in found if each.section == STEPS]
    assert order[-1] == "needs it"  # and what it needs could not be made before the other one ran
    assert len(order) == 3


def test_a_failed_preparation_fails_what_needs_it(conduct):
    broken = step("made", "import sys; sys.exit('disk full')", "checkpoint")
    then = step("then", WRITES, "reference", needs=("made",))
    well, found, _ = conduct([step("needs it", WRITES, needs=("then",)), step("other", WRITES)], [broken, then])
    assert not well
    assert "disk full" in errors(found)["needs it"]
    assert errors(found)["made"] == "disk full"
    assert "other" not in errors(found)


def test_a_preparation_that_nothing_waits_for_ends_with_the_last_step(conduct):
    endless = step("endless", "import time; time.sleep(600)", "checkpoint")
    begun = time.monotonic()
    well, found, _ = conduct([step("a", WRITES)], [endless])
    assert well
    assert errors(found) == {}
    assert time.monotonic() - begun < 60


def test_steps_beside_one_another_run_at_once(conduct, tmp_path):
    """Each waits for the other, which would take for ever one after another."""
    code = (
        "import os, sys, time; me, other = {names}; open(sys.argv[1] + '/' + me, 'w').close()\n"
        "while not os.path.exists(sys.argv[1] + '/' + other): time.sleep(0.02)\n" + WRITES
    )
    steps = [
        step("a", code.format(names=("a", "b")), beside="pair", expected_s=20),
        step("b", code.format(names=("b", "a")), beside="pair", expected_s=20),
        step("c", WRITES),
    ]
    well, found, _ = conduct(steps)
    assert well
    assert [each.name for each in found if each.section == STEPS][-1] == "c"


def test_an_interrupt_ends_what_runs_and_begins_nothing(conduct, tmp_path):
    def interrupt(conductor):
        while not (tmp_path / "running").exists():
            time.sleep(0.02)
        conductor.interrupt()

    sleep = "import sys, time; open(sys.argv[1] + '/running', 'w').close(); time.sleep(600)"
    well, found, _ = conduct([step("sleeps", sleep, expected_s=50), step("next", WRITES)], meanwhile=interrupt)
    assert not well
    assert errors(found) == {"sleeps": "interrupted", "next": "not begun: interrupted"}


def test_a_process_gets_flags_and_folders_of_its_own(conduct, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=1")
    names = "['XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR', 'XDG_CACHE_HOME']"
    code = f"import json, os, sys; json.dump([os.environ[n] for n in {names}], open(sys.argv[1] + '/env', 'w'))"
    conduct([step("a", code, variables={"XLA_FLAGS": "--xla_other=2"}, cache="apart")])
    flags, cache, home = json.loads((tmp_path / "env").read_text())
    assert flags == "--xla_mine=1 --xla_other=2"
    assert cache == str(tmp_path / "apart")
    assert home == str(tmp_path / "home")


@pytest.mark.parametrize("quick", [True, False])
def test_plans_are_whole(quick):
    plan = make_plan([], quick)
    everything = [*plan.steps, *plan.preparations]
    names = [each.name for each in everything]
    assert len(set(names)) == len(names)
    assert {each.section for each in plan.steps} == set(SECTIONS)
    assert {each.section for each in everything} == set(child.MODULES)
    prepared = {each.name for each in plan.preparations}
    assert {need for each in plan.steps for need in each.needs} <= prepared
    for each in everything:
        task = Task(each.name, each.section, each.settings, "o", "f", 0.0, quick)
        assert Task(**json.loads(child_command(task)[-1])) == task
    assert plan.steps[0].name == "machine"  # every fraction needs its rates
    apart = [each.cache for each in plan.steps if each.beside]
    assert "xla" not in apart


def test_the_full_plan_measures_every_policy_on_both_sizes():
    plan = make_plan([], quick=False)
    full = {
        (each.settings["preset"], each.settings["policy"])
        for each in plan.steps
        if each.section == "workloads"
        and any(job["workload"] == "full" and job["seconds"] == 11.0 for job in each.settings["jobs"])
    }
    assert full == {(preset, policy) for preset in ("0.6b", "1.7b") for policy in PRESETS}
    assert {each.settings["policy"] for each in plan.steps if each.section == "parity"} == set(PRESETS)
    first = next(each for each in plan.steps if each.section == "loop")
    assert first.settings["checks"][0] == CHECKS[0] == 1  # the others are compared with its tokens
    again = [each for each in plan.steps if each.section == "memory" and each.settings["compiled_before"]]
    before = [each for each in plan.steps if each.section == "memory" and not each.settings["compiled_before"]]
    for each in again:
        (cold,) = [other for other in before if other.cache == each.cache]
        assert plan.steps.index(cold) < plan.steps.index(each)
        assert cold.beside != each.beside


def test_sections_are_chosen_with_what_they_need():
    plan = make_plan(["machine"], quick=False)
    assert [each.name for each in plan.steps] == ["machine"]
    assert plan.preparations == []
    names = [each.name for each in make_plan(["parity"], quick=True).preparations]
    assert names == ["checkpoint tiny", "reference demo", "reference tiny"]
    with pytest.raises(UsageError, match="unknown section 'speed': choose of machine"):
        make_plan(["speed"], quick=True)


def test_a_sheet_writes_what_is_wrong_and_goes_on(tmp_path):
    task = Task("a step", "machine", {}, str(tmp_path), str(tmp_path), time.monotonic() + 10, quick=False)
    sheet = Sheet(task)

    def fail(error):
        raise error

    assert sheet.measure("good", {}, lambda: {"x": 1.0})
    assert not sheet.measure("known", {}, lambda: fail(QwenASRError("no memory for it; use less")))
    assert not sheet.measure("bug", {}, lambda: fail(KeyError("x")))
    assert not sheet.measure("too late", {}, lambda: {"x": 1.0}, needs_s=60)
    sheet.unavailable("absent", {}, "no such\nkernels")
    found = {each.name: each for each in measurement.read(tmp_path / RESULTS)[0]}
    assert found["good"].figures == {"x": 1.0}
    assert found["known"].error == "no memory for it; use less"
    assert found["bug"].error == "KeyError: 'x'"
    assert "60 s needed" in found["too late"].error
    assert [found[name].is_gap for name in ("known", "bug", "too late", "absent")] == [True, True, True, False]
    assert found["absent"].error == "no such kernels"


def test_a_follower_says_a_line_for_each_measurement(tmp_path):
    measurement.append(tmp_path / RESULTS, [Measurement("machine", "old", {}, {"x": 1.0})])
    said = []
    with Follower(tmp_path, said.append):
        lines = [
            Measurement("loop", "loop", {"preset": "0.6b"}, {"ms_per_token_at_62": 0.5}),
            Measurement("conv", "stem", {}, error="no time", is_gap=True),
            Measurement(STEPS, "conv", {}, {"wall_s": 2.0}),
            Measurement(STEPS, "loop", {}, error="ended"),  # said by the one who ended it
        ]
        measurement.append(tmp_path / RESULTS, lines)
        with open(tmp_path / RESULTS, "a", encoding="utf-8") as f:
            f.write('{"half a line')
    assert said == ["loop 0.6b: ms per token at 62 0.500", "conv stem: no time", "conv: done in 2.00 s"]


def test_the_parent_starts_no_jax():
    code = (
        "import sys, qwen_asr_jax.bench.gpu.conductor, qwen_asr_jax.bench.gpu.page, qwen_asr_jax.bench.gpu.follower;"
        " print('jax' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert out.stdout.strip() == "False"
