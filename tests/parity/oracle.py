"""transformers' own Qwen3-ASR on the CPU, through its public forward and generate."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import torch
from transformers import Qwen3ASRFeatureExtractor, Qwen3ASRForConditionalGeneration

from qwen_asr_jax.pipelines.offline import QwenASR


@dataclasses.dataclass(frozen=True)
class Features:
    """What the reference front end makes of a batch of clips."""

    input_features: torch.Tensor  # [B, M, A']
    mask: torch.Tensor  # [B, A']


class Oracle:
    """The reference model of one native-layout checkpoint; in float32 it is the oracle, in half precision the yardstick."""

    def __init__(self, model_dir: pathlib.Path, dtype: torch.dtype = torch.float32):
        self.model = Qwen3ASRForConditionalGeneration.from_pretrained(model_dir, dtype=dtype).eval()
        self.dtype = dtype
        self.extractor = Qwen3ASRFeatureExtractor.from_pretrained(model_dir)

    def features(self, samples: np.ndarray) -> Features:
        """Log-mel of one clip, `[1, M, A']` padded to whole chunks."""
        out = self.extractor(
            samples, sampling_rate=16000, padding="longest", return_tensors="pt", return_attention_mask=True
        )
        return Features(out["input_features"].float(), out["attention_mask"])

    @torch.no_grad()
    def encode(self, features: Features) -> np.ndarray:
        """Projected audio features of one clip, `[tokens, D]`."""
        out = self.model.model.get_audio_features(features.input_features, features.mask)
        return out.pooler_output.numpy()

    @torch.no_grad()
    def logits(self, ids: list[int], features: Features) -> np.ndarray:
        """Logits after every prompt token, `[T, V]`."""
        out = self.model(
            input_ids=torch.tensor([ids]),
            input_features=features.input_features.to(self.dtype),
            input_features_mask=features.mask,
        )
        return out.logits[0].float().numpy()

    @torch.no_grad()
    def generate(self, ids: list[int], features: Features, count: int) -> list[int]:
        """Greedy tokens, the end token included if it comes."""
        out = self.model.generate(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            input_features=features.input_features,
            input_features_mask=features.mask,
            max_new_tokens=count,
            do_sample=False,
        )
        return out[0, len(ids) :].tolist()

    def transcribe(self, model: QwenASR, samples: np.ndarray) -> list[int]:
        """What it says of a clip, end token excluded, given the prompt and the token budget that `model` would use."""
        job = model.prepare(samples, None, "", 0)
        tokens = self.generate(list(job.prompt.ids), self.features(job.waveform.samples), job.budget)
        ends = model.engine.config.eos_token_ids
        return tokens[:-1] if tokens and tokens[-1] in ends else tokens
