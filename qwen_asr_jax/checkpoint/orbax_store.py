"""Orbax directories: converted checkpoints that load without renaming or casting.

OUT/config.json, generation_config.json, tokenizer files   as in the source
OUT/qwen_asr_jax.json                                      format version, policy, source layout
OUT/params/                                                the parameter tree, in the policy's dtypes
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax

from qwen_asr_jax.checkpoint.key_map import leaves
from qwen_asr_jax.config import read_json
from qwen_asr_jax.errors import CheckpointError
from qwen_asr_jax.policy import Policy
from qwen_asr_jax.typing import Params

FORMAT = 1
"""Version of the parameter tree's names and axis orders; raised when either changes."""

_MARKER = "qwen_asr_jax.json"
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)


def is_orbax(model_dir: pathlib.Path) -> bool:
    """Whether the directory was written by `save`."""
    return (model_dir / _MARKER).exists()


def save(source_dir: pathlib.Path, out_dir: pathlib.Path, params: Params, policy: Policy) -> None:
    """Writes `params` and the source's side files into `out_dir`, which must be an empty directory."""
    import orbax.checkpoint as ocp  # 0.6 s to import, and needed nowhere else

    for name in _SIDE_FILES:
        if (source_dir / name).exists():
            shutil.copyfile(source_dir / name, out_dir / name)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((out_dir / "params").absolute(), params)
    marker = {"format": FORMAT, "policy": policy.name, "param_dtype": policy.param_dtype}
    (out_dir / _MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")


def restore(model_dir: pathlib.Path, abstract: Params) -> Params:
    """Reads the parameter tree onto the default device, cast to the dtypes of `abstract` where they differ.

    Args:
      abstract: parameter tree of shapes. Orbax needs it as a target: without one, layer numbers come back as strings.

    Raises:
      CheckpointError: the format is another version's, or the tree does not fit `config.json`.
    """
    import orbax.checkpoint as ocp

    marker = read_json(model_dir / _MARKER)
    if marker.get("format") != FORMAT:
        raise CheckpointError(
            f"{model_dir}: written in format {marker.get('format')}, this version reads {FORMAT}; run"
            " scripts/convert_checkpoint.py again on the original checkpoint"
        )
    path = (model_dir / "params").absolute()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), abstract)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            _check_tree(model_dir, checkpointer.metadata(path), abstract)
            return jax.block_until_ready(checkpointer.restore(path, target))
    except (OSError, ValueError, KeyError) as e:
        first_line = (str(e).splitlines() or [type(e).__name__])[0]
        raise CheckpointError(f"{path}: cannot be restored ({first_line}); convert the checkpoint again") from None


def _check_tree(model_dir: pathlib.Path, metadata: Any, abstract: Params) -> None:
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    found = {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in leaves(tree)}  # type: ignore[attr-defined]
    wanted = {".".join(map(str, path)): tuple(leaf.shape) for path, leaf in leaves(abstract)}  # type: ignore[attr-defined]
    problems = [f"{name} is missing" for name in wanted if name not in found]
    problems += [f"{name} is unknown" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {list(found[name])}, config.json makes it {list(shape)}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise CheckpointError(
            f"{model_dir}: params do not fit config.json: {'; '.join(problems[:6])}"
            + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
            + " (convert the checkpoint again)"
        )


def num_bytes(params: Params) -> int:
    """Bytes of all arrays in the tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
