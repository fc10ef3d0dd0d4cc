"""Most memory that a fresh process takes of the device: loading a model, then transcribing a clip of 30 s."""

from __future__ import annotations

from qwen_asr_jax.bench import memory
from qwen_asr_jax.bench.cost import tree_bytes
from qwen_asr_jax.bench.gpu import checkpoints, sound
from qwen_asr_jax.bench.gpu.sheet import Sheet
from qwen_asr_jax.engine.memory_plan import MemoryPlan
from qwen_asr_jax.errors import BackendError
from qwen_asr_jax.pipelines.load import load_model
from qwen_asr_jax.pipelines.offline import QwenASR


def run(sheet: Sheet) -> None:
    """Measures one model; `settings`: `preset`, `policy`, `implementation`, `compiled_before`."""
    given = dict(sheet.settings)
    path = checkpoints.model_dir(sheet.folder, given["preset"])
    plans: list[MemoryPlan] = []
    try:
        model = load_model(path, given["policy"], implementation=given["implementation"], on_plan=plans.append)
    except BackendError as e:
        sheet.unavailable("memory", given, str(e))
        return
    sheet.measure("loaded", given, lambda: peaks(model))
    clip = sound.clip(5.0 if sheet.quick else 30.0)

    def transcribe() -> dict[str, float]:
        model.transcribe(clip, max_new_tokens=4 if sheet.quick else 90)
        planned = {"planned_bytes": float(plans[0].total)}
        return planned | peaks(model) | {f"{name}_temp_bytes": float(size) for name, size in memory.temp_bytes().items()}

    sheet.measure("transcribed", given, transcribe)


def peaks(model: QwenASR) -> dict[str, float]:
    """Bytes now and at most so far: of the device where its allocator tells, and of resident memory."""
    device = {f"device_{name}": memory.device_bytes(name) for name in ("bytes_in_use", "peak_bytes_in_use")}
    return {
        **{name: float(value) for name, value in device.items() if value is not None},
        "peak_rss_bytes": float(memory.peak_rss_bytes()),
        "weight_bytes": float(tree_bytes(model.engine.checkpoint.params)),
    }
