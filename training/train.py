"""The training loop: resumable, logged, watched on held-out voices as it goes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from tqdm import tqdm

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.files import new_directory, writable_directory, write_text
from qwen_asr_jax.text.tokenizer import load_tokenizer
from qwen_asr_jax.typing import Array, Params
from training import loss as objective
from training.batches import Batch, draw_batch
from training.clips import ClipSource
from training.corpus import Corpus, make_corpus
from training.model import CONFIG, export, make_tokenizer
from training.plot import plot_log
from training.watch import Watch

_PREFETCHED_BATCHES = 4
_LOG_EVERY = 25
_WARM_UP_STEPS = 300


@dataclasses.dataclass(frozen=True)
class Settings:
    """What makes a training what it is; a run that goes on must have been begun with the same.

    Attributes:
      steps: batches in all.
      seed: of parameters, corpus and batches.
      corpus_size: sentences spoken.
      learning_rate: its highest value.
      weight_decay: of matrices.
    """

    steps: int
    seed: int
    corpus_size: int
    learning_rate: float
    weight_decay: float = 0.02


def train(output: pathlib.Path, settings: Settings, *, save_every: int, watch_every: int) -> pathlib.Path:
    """Trains, or goes on where an interrupted run of the same settings stood.

    Writes into `output`: `corpus/`, `watch_corpus/`, `tokenizer/`, `state/` (orbax), `log.jsonl`, `training.png`, and
    `model/`, the checkpoint, anew with every look at the held-out clips.

    Returns:
      The checkpoint's directory.

    Raises:
      UsageError: `output` holds a run of other settings; see `make_corpus`.
      OutputError: it cannot be written.
    """
    writable_directory(output)
    _same_settings(output, settings)
    corpus = make_corpus(output / "corpus", settings.corpus_size, settings.seed)
    if not (output / "tokenizer").exists():
        with new_directory(output / "tokenizer") as partial:
            make_tokenizer(partial, [u.sentence.text for u in corpus.utterances])
    watch = Watch(output, settings.seed)
    optimizer = _optimizer(settings)
    definitions, params = objective.new_model(CONFIG, settings.seed)
    state = {"params": params, "optimizer": optimizer.init(params)}
    options = ocp.CheckpointManagerOptions(max_to_keep=2)
    with ocp.CheckpointManager((output / "state").absolute(), options=options) as manager:
        first = manager.latest_step() or 0
        if first:
            state = manager.restore(first, args=ocp.args.StandardRestore(jax.tree.map(_abstract, state)))
        log = _Log(output / "log.jsonl", first)
        step_of = _step_function(definitions, optimizer)
        progress = tqdm(total=settings.steps, initial=first, desc="training", unit="step", smoothing=0.02)
        for step, batch in _batches(corpus, output / "tokenizer", settings, first):
            key = jax.random.fold_in(jax.random.key(settings.seed), step)
            state["params"], state["optimizer"], metrics = step_of(state["params"], state["optimizer"], batch, key)
            log.add(metrics, float(np.sum(batch.num_frames)) / 100)
            done = step + 1
            if done % _LOG_EVERY == 0 or done == settings.steps:
                said = log.write(done)
                progress.set_postfix_str(f"loss {said['text']:.3f}, right {100 * said['accuracy']:.1f} %", refresh=False)
            progress.update()
            # Looked at before it is saved: a run that is killed in between looks again.
            if done % watch_every == 0 or done == settings.steps:
                _export(output, state["params"])
                log.watched(done, watch.look(output / "model"))
                plot_log(output / "log.jsonl", output / "training.png")
            if done % save_every == 0 or done == settings.steps:
                manager.save(done, args=ocp.args.StandardSave(state))
        progress.close()
    return output / "model"


def _same_settings(output: pathlib.Path, settings: Settings) -> None:
    path = output / "settings.json"
    wanted = dataclasses.asdict(settings)
    if path.exists() and json.loads(path.read_text()) != wanted:
        raise UsageError(f"{output} holds a run with other settings ({path.read_text().strip()}); choose another --output")
    write_text(path, json.dumps(wanted) + "\n")


def _abstract(leaf: Any) -> Any:
    return ocp.utils.to_shape_dtype_struct(leaf)


def _optimizer(settings: Settings) -> optax.GradientTransformation:
    warm_up = min(_WARM_UP_STEPS, settings.steps // 4)
    schedule = optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, warm_up, settings.steps, 0.0)
    matrices = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)  # noqa: E731
    adam = optax.adamw(schedule, b2=0.98, weight_decay=settings.weight_decay, mask=matrices)
    return optax.chain(optax.clip_by_global_norm(1.0), adam)


def _step_function(
    definitions: tuple[Any, Any], optimizer: optax.GradientTransformation
) -> Callable[[Params, Any, Batch, Array], tuple[Params, Any, objective.Metrics]]:
    def step(params: Params, state: Any, batch: Batch, key: Array) -> tuple[Params, Any, objective.Metrics]:
        gradient = jax.value_and_grad(objective.loss, has_aux=True)
        (_, metrics), gradients = gradient(params, definitions, CONFIG, batch, key)
        with jax.numpy_dtype_promotion("standard"):  # optax relies on it
            updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, metrics | {"norm": optax.tree.norm(gradients)}

    return jax.jit(step, donate_argnums=(0, 1))


def _batches(corpus: Corpus, tokenizer_dir: pathlib.Path, settings: Settings, first: int) -> Iterator[tuple[int, Batch]]:
    """`(step, batch)` from step `first` on, some of them drawn ahead by another thread."""
    source, tokenizer = ClipSource(corpus), load_tokenizer(tokenizer_dir)

    def draw(step: int) -> Batch:
        return draw_batch(source, tokenizer, CONFIG, settings.seed, step, settings.steps)

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        ahead = {step: pool.submit(draw, step) for step in range(first, min(first + _PREFETCHED_BATCHES, settings.steps))}
        for step in range(first, settings.steps):
            batch = ahead.pop(step).result()
            if step + _PREFETCHED_BATCHES < settings.steps:
                ahead[step + _PREFETCHED_BATCHES] = pool.submit(draw, step + _PREFETCHED_BATCHES)
            yield step, batch


def _export(output: pathlib.Path, params: Params) -> None:
    fresh = output / "model.new"
    shutil.rmtree(fresh, ignore_errors=True)
    export(fresh, params, output / "tokenizer")
    shutil.rmtree(output / "model", ignore_errors=True)
    fresh.rename(output / "model")


class _Log:
    """Lines of JSON: means over `_LOG_EVERY` steps, and what the held-out clips said."""

    def __init__(self, path: pathlib.Path, first: int):
        # What an interrupted run logged behind its last saved state will be logged again.
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._lines = [line for line in lines if line["step"] <= first]
        self._path = path
        self._before_s = max((line["elapsed_s"] for line in self._lines), default=0.0)
        self._start = time.perf_counter()
        self._pending: list[tuple[objective.Metrics, float]] = []

    def add(self, metrics: objective.Metrics, audio_s: float) -> None:
        self._pending.append((metrics, audio_s))

    def write(self, step: int) -> dict[str, Any]:
        metrics = [each for each, _ in self._pending]
        line: dict[str, Any] = {name: round(float(np.mean([float(m[name]) for m in metrics])), 4) for name in metrics[0]}
        line["audio_s"] = round(sum(audio_s for _, audio_s in self._pending), 1)
        self._pending = []
        self._append({"step": step, **line})
        return line

    def watched(self, step: int, result: dict[str, float]) -> None:
        self._append({"step": step, "held_out": result})
        tqdm.write(f"step {step}: " + ", ".join(f"{name} {value:.2f}" for name, value in result.items()))

    def _append(self, line: dict[str, Any]) -> None:
        elapsed_s = self._before_s + time.perf_counter() - self._start
        self._lines.append(line | {"elapsed_s": round(elapsed_s, 1)})
        write_text(self._path, "".join(json.dumps(each) + "\n" for each in self._lines))
