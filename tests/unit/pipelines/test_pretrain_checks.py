"""What is found wrong with a training before it starts."""

import pytest
from training import folder_of, tiny_config, tiny_dataset

from pipelines.clip_dataset import ClipDataset
from pipelines.errors import UserError
from pipelines.pretrain import _open_run
from pipelines.pretrain_checks import check_pretrain, worker_resources


@pytest.mark.parametrize(
    ("workers", "nodes", "cpus"),
    [
        (1, [16], 16),
        (3, [16], 5),
        (1, [8, 8], 8),  # not 16, which no node has
        (3, [8, 8], 4),
        (2, [2, 0, 12], 6),
        (4, [2], 1),  # an elastic group takes what there is
    ],
)
def test_cpus_are_shared_out_node_by_node(tmp_path, workers, nodes, cpus):
    config = tiny_config(tmp_path, tmp_path, num_workers=[1, workers], batch_size=24)
    config = config.model_copy(update={"cpus_per_worker": None})
    assert worker_resources(config, [{"CPU": have} for have in nodes]) == {"CPU": cpus}


@pytest.mark.parametrize(
    ("settings", "nodes", "message"),
    [
        ({"cpus_per_worker": 9}, [{"CPU": 8}] * 2, r"cpus_per_worker \(9\) .* the 8 CPUs of the"),
        (
            {"num_workers": 2, "cpus_per_worker": 3},
            [{"CPU": 5}, {"CPU": 2}],
            r"num_workers \(2\) needs 2 x 3 CPUs, but .* have 5 CPUs; 2 CPUs: room for 1",
        ),
        (
            {"use_gpu": True},
            [{"CPU": 8}],
            r"num_workers \(1\) needs 1 x 1 CPUs and 1 x 1 GPUs, .* 8 CPUs, 0 GPUs: room for 0",
        ),
    ],
)
def test_workers_that_fit_on_no_node_are_refused(tmp_path, settings, nodes, message):
    with pytest.raises(UserError, match=message):
        worker_resources(tiny_config(tmp_path, tmp_path, **settings), nodes)


def test_a_list_of_excluded_clips_that_changed_is_refused(tmp_path):
    dataset = tiny_dataset(tmp_path / "clips")
    ids = ClipDataset.open(dataset).index.clip_id.tolist()
    exclude = tmp_path / "leaks.txt"
    exclude.write_text("\n".join(ids[:3]))
    config = tiny_config(tmp_path, dataset, exclude=str(exclude))
    folder_of(config).mkdir(parents=True)
    _open_run(config, folder_of(config), None)
    exclude.write_text("# in another order\n" + "\n".join(reversed(ids[:3])))
    assert check_pretrain(config) == []
    exclude.write_text("\n".join(ids[:4]))
    (mistake,) = check_pretrain(config)
    assert f"exclude ({exclude}) names other clips than when the run tiny began" in mistake
    exclude.unlink()
    (mistake,) = check_pretrain(config)
    assert "cannot be read" in mistake
