"""Views of the next batch, made on a stream of their own while the device computes a step.

    step's stream   | forward, backward, update of k ........ | forward of k + 1
    views' stream      copy k + 1 | views k + 1 |               ^ waits for the views
    host            launches k | reads k + 1, launches its copy and views

The host gets ahead of a GPU, so it needs no thread for that. On a CPU there is one stream.
"""

import torch

from pipelines.training.read_ahead import FeedBatch
from xkd_core.config import MethodConfig
from xkd_core.views.log_mel import LogMel
from xkd_core.views.parameters import draw_view_parameters
from xkd_core.views.transfer import copy_together
from xkd_core.views.views import Views, make_views


class DeviceViews:
    """Copies clips to a device and makes their views there."""

    def __init__(self, config: MethodConfig, seed: int, device: torch.device) -> None:
        self._config, self._seed, self._device = config, seed, device
        self._log_mel = LogMel(config.model.audio).to(device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here
            # Buffers of the log-mel were filled on the stream of the steps.
            self._stream.wait_stream(torch.cuda.current_stream(device))

    def make(self, batch: FeedBatch) -> Views:
        """Returns views that the current stream may use at once."""
        if self._stream is None:
            return self._make(batch)
        steps = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            views = self._make(batch)
        steps.wait_stream(self._stream)
        for tensor in views:
            # Its memory must not be used again before the step has read it.
            tensor.record_stream(steps)
        return views

    def _make(self, batch: FeedBatch) -> Views:
        parameters = draw_view_parameters(batch.clip_ids, batch.epochs, self._seed, self._config)
        # Through pinned memory: another copy first waits for everything queued on the GPU. PyTorch
        # reuses pinned memory once the event after its copy has passed.
        clips = copy_together(batch.clips, self._device)
        return make_views(clips, parameters, self._config, self._log_mel)
