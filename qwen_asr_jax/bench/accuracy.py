"""What a policy costs in accuracy: logits and choices against the same model in float32.

Along the tokens that float32 chooses, every policy is asked for its logits behind the same prefix, so that one other choice
does not make all that follows incomparable. Beside that it decodes freely, until it says something else.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qwen_asr_jax.audio.read import Waveform
from qwen_asr_jax.bench.cost import tree_bytes
from qwen_asr_jax.engine import verbs
from qwen_asr_jax.engine.engine import AudioFeatures, prompt_block
from qwen_asr_jax.models.functional import Definition
from qwen_asr_jax.pipelines.job import Job
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR
from qwen_asr_jax.policy import PRESETS
from qwen_asr_jax.typing import Array, Params

REFERENCE = "fp32"

ROUNDING = 2.0**-8
"""Relative rounding error of bfloat16: a runner-up that is no further below the best logit may be chosen by rounding alone."""


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """One policy on one clip, against float32.

    Attributes:
      policy: its name.
      weight_bytes: of all arrays, with scales.
      max_error, mean_error: of the absolute differences of all logits at all steps.
      spread: standard deviation of the reference's logits, to hold the errors against.
      steps: tokens that the reference chose.
      agreed: steps with the same choice behind the same prefix.
      clear, clear_agreed: steps whose runner-up is not within `ROUNDING` of the best, and those of them with the same choice.
      prefix: tokens until free decoding first chooses another.
    """

    policy: str
    weight_bytes: int
    max_error: float
    mean_error: float
    spread: float
    steps: int
    agreed: int
    clear: int
    clear_agreed: int
    prefix: int

    def cells(self) -> list[str]:
        """The row under `HEADERS`."""
        return [
            self.policy,
            f"{self.weight_bytes / 1e6:.1f}",
            f"{self.max_error:.2g}",
            f"{self.mean_error:.2g}",
            f"{self.spread:.2g}",
            f"{self.agreed}/{self.steps}",
            f"{self.clear_agreed}/{self.clear}",
            f"{self.prefix}/{self.steps}",
        ]


HEADERS = ("policy", "weights MB", "max error", "mean error", "logits' std", "same choice", "of clear ones", "free run")


@dataclasses.dataclass(frozen=True)
class Reference:
    """What float32 says about a clip.

    Attributes:
      tokens: the greedy choices, end tokens like any other.
      logits: `[steps, V]` float32, behind the prompt and each prefix of the tokens.
    """

    tokens: list[int]
    logits: np.ndarray


def measure_accuracy(
    model_dir: str | os.PathLike[str], clip: Waveform, policies: Sequence[str], *, steps: int = 24, backend: str = "auto"
) -> list[Accuracy]:
    """Compares presets with float32 on one clip; one model is held at a time.

    Args:
      model_dir: as for `load_model`.
      policies: names of presets.
      steps: tokens to choose, end tokens like any other.

    Raises:
      QwenASRError: see `load_model`.
    """
    reference = make_reference(load_model(model_dir, REFERENCE, backend=backend, implementation="xla"), clip, steps)
    return [compare(load_model(model_dir, PRESETS[policy], backend=backend), clip, reference) for policy in policies]


def make_reference(model: QwenASR, clip: Waveform, steps: int) -> Reference:
    """The model's own choices for a clip and their logits; of a float32 model, what others are compared with."""
    tokens = _decode(model, model.prepare(clip, max_new_tokens=steps), steps)
    return Reference(tokens, _logits(model, clip, tokens))


def compare(model: QwenASR, clip: Waveform, reference: Reference) -> Accuracy:
    """The model against the reference on the same clip."""
    wanted, tokens = reference.logits, reference.tokens
    steps = len(tokens)
    best = np.partition(wanted, -2, axis=-1)
    clear = best[:, -1] - best[:, -2] > ROUNDING * np.abs(best[:, -1])
    free = _decode(model, model.prepare(clip, max_new_tokens=steps), steps)
    logits = _logits(model, clip, tokens)
    error = np.abs(logits - wanted)
    same = logits.argmax(-1) == wanted.argmax(-1)
    differing = [i for i, (a, b) in enumerate(zip(free, tokens, strict=True)) if a != b]
    return Accuracy(
        policy=model.engine.policy.name,
        weight_bytes=tree_bytes(model.engine.checkpoint.params),
        max_error=float(error.max()),
        mean_error=float(error.mean()),
        spread=float(wanted.std()),
        steps=steps,
        agreed=int(same.sum()),
        clear=int(clear.sum()),
        clear_agreed=int((same & clear).sum()),
        prefix=differing[0] if differing else steps,
    )


def _features(model: QwenASR, job: Job) -> AudioFeatures:
    log_mel = model.engine.log_mel([job.waveform.samples])
    return model.engine.encode(log_mel, [job.prompt.num_audio_tokens])


def _decode(model: QwenASR, job: Job, steps: int) -> list[int]:
    """Exactly `steps` greedy tokens, through the verbs that transcribing uses."""
    engine = model.engine
    state = engine.prefill([job.prompt], _features(model, job), [steps], ignore_eos=True)
    tokens = [int(np.asarray(state.token)[0])]
    while len(tokens) < steps:
        state, chosen = engine.decode(state, steps - len(tokens), ignore_eos=True)
        tokens += chosen.tokens[0][chosen.tokens[0] != verbs.NO_TOKEN].tolist()
    return tokens


def _logits(model: QwenASR, clip: Waveform, tokens: Sequence[int]) -> np.ndarray:
    """`[steps, V]` float32: the logits behind the prompt and each prefix of the tokens, but for the whole."""
    job, engine = model.prepare(clip, max_new_tokens=len(tokens)), model.engine
    decoder, params = engine.checkpoint.decoder, engine.checkpoint.params["decoder"]
    forced = dataclasses.replace(job.prompt, ids=(*job.prompt.ids, *tokens[:-1]))
    features = _features(model, job)
    ids, audio_index = prompt_block([forced], features.first, 1, 0, len(forced.ids))
    embeddings = verbs.embed(decoder, params, ids, features.arrays, audio_index)
    text = engine.config.text
    shape, dtype = (text.num_kv_heads, len(forced.ids), text.head_dim), engine.policy.cache.name
    return np.asarray(_forward(decoder, params, embeddings, text.num_layers, shape, dtype, len(tokens)))


@functools.partial(jax.jit, static_argnums=(0, 3, 4, 5, 6))
def _forward(
    definition: Definition, params: Params, x: Array, layers: int, shape: tuple[int, ...], dtype: str, last: int
) -> Array:
    """Logits `[last, V]` of the last positions of `x`, `[1, T, D]`, through an empty cache."""
    decoder = definition.bind(params)
    caches = [tuple(jnp.zeros(shape, dtype) for _ in range(layers)) for _ in "kv"]
    hidden, _, _ = decoder(x, *caches, jnp.zeros(1, jnp.int32), False)
    return decoder.logits(hidden[0, -last:])
