"""What workers tell each other when a step is recorded."""

import torch
from torch import distributed, multiprocessing

from pipelines.training.records import reduce_metrics


def test_one_worker_has_its_own_numbers():
    assert reduce_metrics({"loss/total": torch.tensor(1.5)}, 0.25) == ({"loss/total": 1.5}, 0.25)


def tell(rank, meeting_file):
    distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_file}", rank=rank, world_size=2
    )
    metrics = {"loss/total": torch.tensor(1.0 + rank), "loss/alignment": torch.tensor(4.0)}
    numbers, waited = reduce_metrics({"schedule/epoch": 0.1, **metrics}, [0.5, 3.0][rank])
    assert numbers == {"schedule/epoch": 0.1, "loss/total": 1.5, "loss/alignment": 4.0}
    assert waited == 3.0
    distributed.destroy_process_group()


def test_two_workers_have_the_mean_and_the_longest_wait(tmp_path):
    multiprocessing.spawn(tell, args=(tmp_path / "meeting",), nprocs=2)
