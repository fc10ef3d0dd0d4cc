"""Which programs the engine runs for clips of given lengths, and their compilation ahead of the first clip.

Nothing here knows what the engine calls: an engine over shapes instead of arrays is taken through the same steps, and what it
would call is written down.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from qwen_asr_jax.audio.frames import MIN_SAMPLES, SAMPLE_RATE
from qwen_asr_jax.checkpoint.load import Checkpoint, abstract_model
from qwen_asr_jax.config import ModelConfig
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.buckets import Buckets
from qwen_asr_jax.engine.engine import Engine
from qwen_asr_jax.engine.state import DecodeState
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.text.prompt import Prompt


@dataclasses.dataclass(frozen=True)
class Program:
    """One verb with one set of shapes.

    Attributes:
      name: the verb, and what sets its shapes apart: `prefill 1x192 512 slots`.
      lower: traces and lowers it.
    """

    name: str
    lower: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What came of compiling one program.

    Attributes:
      name: the program's.
      seconds: lowering, and compiling or reading the persistent cache.
      temp_bytes: memory that it needs besides arguments and results; None where XLA does not say.
    """

    name: str
    seconds: float
    temp_bytes: int | None


@dataclasses.dataclass(frozen=True)
class Workload:
    """Clips to be ready for.

    Attributes:
      seconds: length of a clip.
      rows: clips at once.
      prompt_tokens: tokens of the prompt besides those of the audio.
      new_tokens: tokens that each may choose.
    """

    seconds: float
    rows: int
    prompt_tokens: int
    new_tokens: int


def programs(
    config: ModelConfig, policy: Policy, buckets: Buckets, workloads: Sequence[Workload], *, screen_head: bool = False
) -> list[Program]:
    """All programs that the workloads need, each once, in the order in which they are first run.

    Args:
      policy: with its kernels and projections chosen (`pipelines.load.with_chosen_kernels`).
      screen_head: as of `Engine`.
    """
    audio, decoder, params = abstract_model(config, policy)
    engine = _Onlooker(Checkpoint(config, audio, decoder, params), policy, buckets, screen_head=screen_head)
    for workload in workloads:
        engine.run_through(workload)
    return list(engine.seen.values())


def compile_all(found: Sequence[Program], threads: int) -> Iterator[Compiled]:
    """Compiles programs beside each other, and yields each as it is done. They end up in the persistent cache.

    Tracing is Python's and goes one at a time; XLA compiles outside of its lock.
    """

    def compile_one(program: Program) -> Compiled:
        start = time.perf_counter()
        memory = program.lower().compile().memory_analysis()
        temp = None if memory is None else int(memory.temp_size_in_bytes)
        return Compiled(program.name, time.perf_counter() - start, temp)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for done in concurrent.futures.as_completed([pool.submit(compile_one, program) for program in found]):
            yield done.result()


class _Onlooker(Engine):
    """An engine whose arrays are shapes: it calls nothing, and remembers what it would have called."""

    def __init__(self, checkpoint: Checkpoint, policy: Policy, buckets: Buckets, *, screen_head: bool):
        self.seen: dict[Any, Program] = {}
        super().__init__(checkpoint, policy, buckets, screen_head=screen_head)

    def run_through(self, workload: Workload) -> None:
        """One batch of the workload, decoded to the end of its budget."""
        samples = np.zeros(max(MIN_SAMPLES, round(workload.seconds * SAMPLE_RATE)), np.float32)
        tokens = self.num_audio_tokens(len(samples))
        prompt = Prompt((0,) * (workload.prompt_tokens + tokens), 0, tokens)
        features = self.encode(self.log_mel([samples] * workload.rows), [tokens] * workload.rows)
        state = self.prefill([prompt] * workload.rows, features, [workload.new_tokens] * workload.rows)
        last = len(prompt.ids) + workload.new_tokens - 1  # slots that are used in the end
        while True:
            state, _ = self._enqueue_decode(state, 1, ignore_eos=False)
            grows = state.k_cache[0].shape[1] <= last
            self._shrink(state, grows)
            if not grows:
                return
            state = self._grown(state)

    def _shrink(self, state: DecodeState, grows: bool) -> None:
        """The smaller batches that are left when rows end before others, and their longer caches."""
        while (rows := state.token.shape[0]) >= 4:
            state, _ = self.compact(state, np.arange(rows) >= rows // 4)
            state, _ = self._enqueue_decode(state, 1, ignore_eos=False)
            if grows:
                self._grown(state)

    def _grown(self, state: DecodeState) -> DecodeState:
        slots = self.buckets.longer_cache(state.k_cache[0].shape[1])
        caches = (self._call(verbs.grow, state.k_cache[0], slots=slots),) * len(state.k_cache)
        return dataclasses.replace(state, k_cache=caches, v_cache=caches)

    def _call(self, verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
        jitted: Any = verb
        args, options = jax.tree.map(_shape, (args, options))
        key = jitted.__name__, *jax.tree.leaves((args, options)), jax.tree.structure((args, options))
        if key not in self.seen:
            self.seen[key] = Program(_name(verb, args, options), lambda: jitted.lower(*args, **options))
        return jitted.eval_shape(*args, **options)


def _shape(leaf: Any) -> Any:
    """The shape of an array; anything else as it is."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else leaf


def _name(verb: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> str:
    """The verb and the shapes that matter: its arrays' first dimensions, and the cache's length."""
    states = [each for each in args if isinstance(each, DecodeState)]
    arrays = [each for each in args if isinstance(each, jax.ShapeDtypeStruct) and each.ndim > 1]
    arrays += [each for group in args if isinstance(group, tuple) for each in group]  # features
    sizes = [(state.token.shape[0], state.k_cache[0].shape[1]) for state in states]
    sizes += [args[-2:]] if all(isinstance(each, int) for each in args[-2:]) else []  # of a state that is to be made
    parts = [getattr(verb, "__name__", "?")]
    parts += dict.fromkeys("x".join(map(str, array.shape[:2])) for array in arrays)
    parts += [f"{rows} rows, {slots} slots" for rows, slots in sizes]
    parts += ["from scratch" if options["first"] else "continued"] if "first" in options else []
    parts += [f"to {options['slots']} slots"] if "slots" in options else []
    return " ".join(parts)
