"""The code of one registered encoder.

    import sys; sys.path.append("MODEL/code")
    from xkd_1a2b3c4d import load_module
    encoder = load_module()

The last line gives a `torch.nn.Module`; its docstring says what it takes.
"""

from pathlib import Path
from typing import Any

_MODEL = Path(__file__).resolve().parents[2]


def load_module(folder: str | Path = _MODEL) -> Any:
    """Loads the encoder of this folder, or of another one with the same code, onto the CPU.

    Args:
        folder: A model with `config.json` and `model.safetensors`.

    Returns:
        An `EncoderModule` in evaluation mode, whose parameters require gradients.
    """
    # Here, because processes that decode media import this package, and they need no torch.
    from pipelines.models.encoder_module import load_module as load

    return load(Path(folder))
