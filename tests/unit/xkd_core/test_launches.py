"""How many operations a step gives to its device; on a GPU each is at least one launch."""

from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from xkd_core.train_step import train_step

WITHOUT_LAUNCH = {"view", "detach", "t", "transpose", "expand", "unsqueeze", "squeeze", "permute"}
WITHOUT_LAUNCH |= {"select", "slice", "split", "unbind", "_unsafe_view", "alias", "diagonal"}
LARGEST = 1010
"""Of a step of the smallest networks, three blocks an encoder. With each view by itself and with
the kernels of the alignment one by one it takes 1363."""


class Counter(TorchDispatchMode):
    """Counts operations that are no mere views."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ not in WITHOUT_LAUNCH
        return func(*args, **(kwargs or {}))


def test_a_step_takes_no_more_operations_than_it_did():
    config, views = micro_config(), micro_views()
    state = train_state(micro_model(), config)
    train_step(state, views, config, total_steps=10, steps_per_epoch=1.0)  # makes the moments
    with Counter() as counter:
        train_step(state, views, config, total_steps=10, steps_per_epoch=1.0)
    assert 0 < counter.count <= LARGEST, counter.count
