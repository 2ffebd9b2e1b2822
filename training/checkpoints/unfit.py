"""Folders that hold something else than one model's whole weights: quantised, an adapter, parts of a training state."""

import json
from collections.abc import Mapping
from pathlib import Path

from copyscope.training.errors import InputError

_SCALES = (
    "qweight",
    "qzeros",
    "weight_scale",
    "weight_scale_inv",
    "weight_packed",
    "SCB",
    "absmax",
    "quant_map",
    "g_idx",
)
_PARTS = {
    "*.distcp": "parts of a torch.distributed checkpoint",
    "*zero_pp_rank_*": "DeepSpeed's parts of a training state",
    "mp_rank_*": "Megatron's or DeepSpeed's parts of a training state",
    "pytorch_model_fsdp*": "FSDP's parts of a training state",
}


def refuse_unfit(folder: Path, dtypes: Mapping[str, str]) -> None:
    """Raises InputError saying what it is if the config or the tensors (name → safetensors' dtype) are no plain
    weights."""
    why = why_unfit(folder, dtypes)
    if why:
        raise InputError(f"{folder}: {why}")


def why_unfit(folder: Path, dtypes: Mapping[str, str]) -> str | None:
    """What a folder holds and what to do, if its config or its tensors are not those of plain weights; else None."""
    method = _quantised(folder)
    if method:
        return f"quantised weights ({method}), which are not measured; save the model dequantised"
    for name, dtype in dtypes.items():
        if ".lora_" in name or name.endswith((".lora_A", ".lora_B")):
            return f"an adapter ({name}), not the whole model; merge it into the model and save that"
        narrow = dtype.startswith(("I", "U", "F8", "F4", "F6")) and name.endswith("weight")
        if name.rpartition(".")[2] in _SCALES or narrow:
            return f"quantised weights ({name} is of {dtype}), which are not measured; save the model dequantised"
    return None


def why_no_weights(folder: Path) -> str:
    """What is there instead of safetensors, and what to do."""
    if any((folder / name).is_file() for name in ("adapter_config.json", "adapter_model.safetensors")):
        return "an adapter, not the whole model; merge it into the model and save that"
    for pattern, what in _PARTS.items():
        if any(folder.glob(pattern)) or any(folder.glob(f"*/{pattern}")):
            return f"{what}, not a saved model; gather them and save the model in Hugging Face format"
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if pickled:
        return f"only pickled weights ({pickled[0]}), which are never opened; save the model as safetensors"
    other = sorted(path.name for path in folder.glob("*.safetensors"))
    if other:
        return f"model.safetensors is missing ({other[0]} is not read); fetch or save it again"
    return "model.safetensors is missing; fetch or save it again"


def _quantised(folder: Path) -> str | None:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        held = config.get("quantization_config") or config.get("compression_config")
    except (OSError, ValueError, RecursionError, AttributeError):
        return None  # which is said by whoever reads the config
    return str(held.get("quant_method", "quantization_config")) if isinstance(held, dict) else None
