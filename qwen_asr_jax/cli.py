"""What all scripts share: model flags, exit codes, one-line errors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from qwen_asr_jax import demo, kernels, processes
from qwen_asr_jax.errors import QwenASRError, UsageError
from qwen_asr_jax.files import remove_partial
from qwen_asr_jax.policy import DEFAULT_POLICY, PRESETS, Policy, get_policy
from qwen_asr_jax.runtime import BACKENDS

STARTED = time.perf_counter()
"""When the process began, but for Python's own start: scripts import this module before anything heavy."""

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


def define_model_flags() -> None:
    """Defines the flags that choose a model and how it runs; a script shows them in its help with `adopt_module_key_flags`."""
    flags.DEFINE_string(
        "model_dir",
        None,
        "Model directory, or a Hub id such as Qwen/Qwen3-ASR-0.6B; the bundled demonstration model when not given.",
        short_name="d",
    )
    flags.DEFINE_enum("policy", None, list(PRESETS), f"Dtype policy; {DEFAULT_POLICY} unless --config is given.")
    config_flags.DEFINE_config_file(
        "config", None, "Run config, e.g. configs/bf16.py; single fields are set with --config.policy.cache_dtype=float32."
    )
    flags.DEFINE_enum("backend", "auto", list(BACKENDS), "Where to run; auto takes a GPU if JAX sees one.")
    kinds = list(kernels.IMPLEMENTATIONS)
    flags.DEFINE_enum("implementation", None, kinds, "What computes: xla; native kernels, cpu or cuda; by default auto.")
    flags.DEFINE_integer("threads", 0, "CPU threads; 0 for the physical cores.", lower_bound=0, short_name="t")
    flags.DEFINE_float(
        "memory_fraction", 0.0, "Most of a GPU's memory to take, up to 1; 0 for XLA's own three quarters.", 0.0, 1.0
    )
    flags.DEFINE_bool("verbose", False, "Print load, compile and stage times to stderr.")


def load_from_flags(batch_size: int = 1) -> Any:
    """The model that the flags ask for (a `QwenASR`); without `--model_dir` the demonstration model, and a line that says so.

    Args:
      batch_size: clips at once that memory is planned for.

    Raises:
      UsageError: flags contradict each other, or `--model_dir` is empty.
      QwenASRError: see `load_model`.
    """
    from qwen_asr_jax.pipelines.load import load_model

    values = flags.FLAGS
    model_dir = model_dir_from_flags()
    policy, options = policy_from_flags()
    model = load_model(
        model_dir,
        policy,
        backend=values.backend,
        threads=values.threads,
        memory_fraction=values.memory_fraction,
        options=options,
        batch_size=batch_size,
        on_plan=(lambda plan: warn(f"memory for {plan}")) if values.verbose else None,
    )
    if values.model_dir is None:
        warn(demo.NOTICE)
    warn_of_missing_kernels(policy)
    warn_of_model(model)
    return model


def model_dir_from_flags() -> Any:
    """The model directory that `--model_dir` names; without it that of the demonstration model.

    Raises:
      UsageError: it is empty.
    """
    if flags.FLAGS.model_dir == "":
        raise UsageError("--model_dir is empty; leave it out for the bundled demonstration model")
    return flags.FLAGS.model_dir or demo.MODEL_DIR


def warn_of_missing_kernels(policy: Policy) -> None:
    """One line where a CPU host was to choose its kernels and has no native ones. JAX must have been configured."""
    reason = kernels.missing() if policy.implementation == "auto" else None
    if reason is not None:
        warn(f"slower than need be, without native kernels: {reason} (install a C++17 compiler, then this package again)")


def warn_of_model(model: Any) -> None:
    """A line for each thing that loading had to say about the model (a `QwenASR`)."""
    for warning in model.warnings:
        warn(warning)


def policy_from_flags() -> tuple[Policy, Any]:
    """The policy and the `EngineOptions` that `--policy` or `--config`, and `--implementation`, ask for.

    Raises:
      UsageError: both are given, or a value is not allowed.
    """
    from qwen_asr_jax.pipelines.run_config import EngineOptions, from_run_config

    values = flags.FLAGS
    if values.config is None:
        policy, options = get_policy(values.policy or DEFAULT_POLICY), EngineOptions()
    elif values.policy is not None:
        raise UsageError("--policy and --config exclude each other: a config holds a policy")
    elif "policy" not in values.config:
        raise UsageError("the config has no field 'policy': it is no run config; configs/bf16.py is one")
    else:
        policy, options = from_run_config(values.config)
    if values.implementation is not None:
        policy = dataclasses.replace(policy, implementation=values.implementation)
    return policy, options


def warn(message: str) -> None:
    """One line on stderr, behind the script's name."""
    print(f"{os.path.basename(sys.argv[0])}: {' '.join(message.splitlines())}", file=sys.stderr, flush=True)


def run(main: Callable[[Sequence[str]], int]) -> None:
    """Parses the flags, calls `main(positional arguments)` and exits with what it returns.

    Wrong flags and `UsageError` exit with 2, any other `QwenASRError` with 1, an interrupt with 130; each with one line.
    """
    # Not by KeyboardInterrupt: where Python runs callbacks for XLA, an exception is swallowed.
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)  # a closed terminal: children are in groups of their own and would stay
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed streams are None
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # transcripts in any script, file names in any encoding
    logging.set_verbosity(logging.WARNING)  # orbax and JAX say a lot at the level below
    if {"--help", "-h", "-help"} & set(sys.argv[1:]):
        app.usage(shorthelp=True, writeto_stdout=True, exitcode=EXIT_OK)
    app.run(lambda argv: _guarded(main, argv[1:]), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> Sequence[str]:
    try:
        rest: Sequence[str] = flags.FLAGS(list(argv))
        if "config" in flags.FLAGS and flags.FLAGS.config is not None:
            _ = list(flags.FLAGS.config)  # an absent or broken file shows only when the config is used
        return rest
    except flags.Error as e:
        reason = str(e).splitlines()[0]
    except (AttributeError, KeyError) as e:  # ml_collections raises plain Python errors for what is in a config
        reason = str(e.args[0]).splitlines()[0].strip("'\"")
        reason = f"the config has no field {reason!r}" if reason.isidentifier() else reason
    except Exception as e:  # a config file is Python: it can fail in every way
        missing = re.search(r"No such file or directory: '([^']+)'", str(e))
        said = " ".join(line.strip() for line in str(e).splitlines()[:4])
        reason = f"--config={missing[1]}: no such file" if missing else f"{type(e).__name__}: {said}"
    warn(f"{reason} (see --help)")
    sys.exit(EXIT_USAGE)


def _guarded(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    try:
        return main(arguments)
    except UsageError as e:
        warn(str(e))
        return EXIT_USAGE
    except QwenASRError as e:
        warn(str(e))
        return EXIT_FAILED
    except OSError as e:  # standard output is gone or full; what is still buffered cannot go there either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(e, BrokenPipeError):
            warn(f"cannot be written or read: {e.strerror or e}")
        return EXIT_FAILED


def _interrupted(number: int, frame: object) -> None:
    """Ends the process at once, with nothing half-written left behind."""
    del number, frame
    processes.end_all()
    remove_partial()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    with contextlib.suppress(Exception):
        warn("interrupted")
    os._exit(EXIT_INTERRUPTED)
