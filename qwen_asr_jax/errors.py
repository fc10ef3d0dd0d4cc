"""The errors a user can meet. Each carries one line: what is wrong, with which thing, and what to do.

Scripts print that line and nothing else; the Python API raises it. Anything that is not a `QwenASRError` is a bug.
"""


class QwenASRError(Exception):
    """Base of every error that names a user's input, file, flag or machine."""


class CheckpointError(QwenASRError):
    """The model directory, its configuration, its tensors or its tokenizer files cannot be used."""


class AudioError(QwenASRError):
    """One audio input cannot be read or holds nothing that can be transcribed."""


class AudioTooLongError(AudioError):
    """One audio input needs more positions than the model has."""


class UsageError(QwenASRError, ValueError):
    """An argument is wrong: an unknown language, policy or option value."""


class BackendError(QwenASRError):
    """The requested device is not there, or the runtime was configured too late."""


class OutputError(QwenASRError):
    """A result cannot be written where it was asked for."""
