"""A process that does nothing but start: loads a model, transcribes one clip, and prints when each phase ended.

    python -m qwen_asr_jax.bench.startup_probe STARTED MODEL_DIR AUDIO POLICY ENGINE BACKEND

STARTED is `time.monotonic()` of the parent, just before it started this process. Prints one JSON object: seconds per phase and
memory behind each. AUDIO is a `.npy` file of 16 kHz float32 samples, so that no decoding is timed; POLICY and ENGINE are the
fields of `Policy` and `EngineOptions` as JSON. The number of threads is inherited through the environment.
"""

import time

BEGUN = time.monotonic()

import json  # noqa: E402 - the clock comes first
import sys  # noqa: E402


def main(arguments: list[str]) -> None:
    """Runs the phases one after another and prints their figures.

    `process`, `import`, `backend`, `weights`, `compile` and `first_token` add up to `total`. `compile` is lowering, and
    compiling or reading the persistent cache; the loop that decodes further tokens comes behind, as `decode_compile`.
    """
    started, model_dir, audio, policy, engine, backend = arguments
    figures: dict[str, float | None] = {"process_s": BEGUN - float(started)}
    last = BEGUN

    from qwen_asr_jax import runtime
    from qwen_asr_jax.bench import memory
    from qwen_asr_jax.engine.compilations import compilations
    from qwen_asr_jax.pipelines.load import load_model
    from qwen_asr_jax.pipelines.run_config import EngineOptions
    from qwen_asr_jax.policy import Policy

    def phase(name: str, compiled_s: float = 0.0) -> None:
        nonlocal last
        figures[f"{name}_s"] = time.monotonic() - last - compiled_s
        figures[f"{name}_rss_bytes"] = memory.rss_bytes()
        figures[f"{name}_device_bytes"] = memory.device_bytes() if name != "import" else None
        last = time.monotonic()

    phase("import")
    runtime.configure(backend)
    log = compilations()
    phase("backend")
    model = load_model(model_dir, Policy(**json.loads(policy)), backend=backend, options=EngineOptions(**json.loads(engine)))
    phase("weights")

    import numpy as np

    def compile_s() -> float:
        return log.lower_s + log.compile_s + log.cache_s

    job = model.prepare(np.load(audio))
    before = compile_s()
    features = model.engine.encode(model.engine.log_mel([job.waveform.samples]), [job.prompt.num_audio_tokens])
    state = model.engine.prefill([job.prompt], features, [job.budget])
    np.asarray(state.token)
    figures["compile_s"] = compiled = compile_s() - before
    phase("first_token", compiled)
    figures["total_s"] = time.monotonic() - float(started)
    before = compile_s()
    model.engine.decode(state, 1, ignore_eos=True)
    figures["decode_compile_s"] = compile_s() - before
    figures |= {"peak_rss_bytes": memory.peak_rss_bytes(), "peak_device_bytes": memory.device_bytes("peak_bytes_in_use")}
    figures |= {"programs": log.count, "from_cache": log.cached}
    print(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1:])
