"""What is wrong with each transcript: words aligned by jiwer, errors counted by kind.

jiwer is in the `eval` extra, and imported where scoring begins.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Iterable, Sequence

from qwen_asr_jax.errors import UsageError
from qwen_asr_jax.evaluation.normalize import HOW_TO_GET, Normalizer, scored_by_characters
from qwen_asr_jax.evaluation.results import Result

Step = tuple[str, str]
"""A word of the reference and what stands for it; "" for none on either side."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One transcript against its reference.

    Attributes:
      result: what is scored.
      by_characters: units are characters instead of words.
      steps: reference and transcript side by side.
      units: words of the reference, normalised.
      substitutions, deletions, insertions: errors by kind.
    """

    result: Result
    by_characters: bool
    steps: tuple[Step, ...]
    units: int
    substitutions: int
    deletions: int
    insertions: int

    @property
    def errors(self) -> int:
        """Errors of all kinds."""
        return self.substitutions + self.deletions + self.insertions


@dataclasses.dataclass(frozen=True)
class Scores:
    """All results of a selection, by what can be said about them.

    Attributes:
      scored: transcripts with a reference.
      silent: results whose reference is blank, and how many words were written there.
      unscorable: results whose reference is not blank, but normalises to nothing ("[noise]").
      failed: results without a transcript.
      caption: how texts were normalised and aligned.
    """

    scored: list[Score]
    silent: list[tuple[Result, int]]
    unscorable: list[Result]
    failed: list[Result]
    caption: str


class Scorer:
    """Scores results under one normaliser.

    Raises:
      UsageError: a library is not installed, or too old; the message has the command.
    """

    def __init__(self, normalizer: str):
        try:
            import jiwer

            self._process = jiwer.process_words
        except (ImportError, AttributeError) as e:
            raise UsageError(f"jiwer cannot be used ({e}); it counts the errors: {HOW_TO_GET}") from None
        self._normalizer = Normalizer(normalizer)
        self.caption = f"{self._normalizer.caption} and aligned by jiwer {importlib.metadata.version('jiwer')}."

    def score(self, results: Iterable[Result]) -> Scores:
        """Scores each result for itself."""
        scores = Scores([], [], [], [], self.caption)
        for result in results:
            language = result.reference_language or str(result.settings.get("language") or "")
            if result.hypothesis is None:
                scores.failed.append(result)
                continue
            said = self._normalizer.split(result.hypothesis, language)
            if not result.reference.strip():
                scores.silent.append((result, len(said)))
            elif wanted := self._normalizer.split(result.reference, language):
                scores.scored.append(self._scored(result, wanted, said, scored_by_characters(language)))
            else:
                scores.unscorable.append(result)
        return scores

    def _scored(self, result: Result, wanted: Sequence[str], said: Sequence[str], by_characters: bool) -> Score:
        aligned = self._process(" ".join(wanted), " ".join(said))
        steps: list[Step] = []
        for chunk in aligned.alignments[0]:
            left = wanted[chunk.ref_start_idx : chunk.ref_end_idx]
            right = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
            longest = max(len(left), len(right))
            steps += zip([*left, *[""] * (longest - len(left))], [*right, *[""] * (longest - len(right))], strict=True)
        return Score(
            result,
            by_characters,
            tuple(steps),
            units=len(wanted),
            substitutions=aligned.substitutions,
            deletions=aligned.deletions,
            insertions=aligned.insertions,
        )
