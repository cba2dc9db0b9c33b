"""A registered encoder as a program that needs none of its code: torch.export and ONNX.

    embeddings.pt2    torch.export.load(FILE).module()(clips)       Python or C++ with torch
    embeddings.onnx   onnxruntime.InferenceSession(FILE)            anything else

Both take clips as integers (`EncoderModule`), any number at once, and video frames of any size.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.export import Dim

from pipelines.models.encoder_module import EncoderModule

PROGRAM_FILE = "embeddings.pt2"
ONNX_FILE = "embeddings.onnx"
INPUT_NAME = "clips"
OUTPUT_NAME = "embeddings"
_MAX_BATCH = 65_536
_MAX_SIDE = 16_384


def export_program(module: EncoderModule, file: Path) -> None:
    """Writes the program of an encoder, on the CPU and in float32."""
    example, shapes = _example(module)
    with torch.no_grad():
        program = torch.export.export(_plain(module), (example,), dynamic_shapes=(shapes,))
    torch.export.save(program, file)


def export_onnx(module: EncoderModule, file: Path) -> None:
    """Writes an ONNX model whose input is `clips` and whose output is `embeddings`.

    Raises:
        ImportError: If onnx or onnxscript is not installed.
    """
    example, shapes = _example(module)
    with torch.no_grad():
        torch.onnx.export(
            _plain(module),
            (example,),
            file,
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            external_data=False,
            verbose=False,
        )


def _plain(module: EncoderModule) -> EncoderModule:
    return module.cpu().float().eval()


def _example(module: EncoderModule) -> tuple[Tensor, dict[int, Dim]]:
    """Three clips, and which of their axes may have another length."""
    batch = Dim("batch", min=1, max=_MAX_BATCH)
    model = module.info.model
    if module.info.modality == "audio":
        return torch.zeros((3, model.audio.num_samples), dtype=torch.int16), {0: batch}
    height, width = (Dim(side, min=8, max=_MAX_SIDE) for side in ("height", "width"))
    # Different lengths: equal ones would be taken for one.
    size = model.video.size
    shape = (3, model.video.num_frames, size + 16, size + 48, 3)
    frames = torch.zeros(shape, dtype=torch.uint8)
    return frames, {0: batch, 2: height, 3: width}
