"""Every way to use several devices learns what one process learns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.networks import micro_config, micro_model, micro_views, train_state
from tests.unit.xkd_core import distributed_steps
from tests.unit.xkd_core.parallel_steps import WAYS, run_steps
from xkd_core.config import ObjectiveConfig, OptimizerConfig
from xkd_core.optim import build_optimizer
from xkd_core.sharding import load_optimizer_state
from xkd_core.train_step import train_step
from xkd_core.transformer import checkpoint_activations
from xkd_core.views.views import split_views
from xkd_core.xkd import model_tensors


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """The folder of what two workers, in processes of their own, have found."""
    folder = tmp_path_factory.mktemp("workers")
    program = Path(__file__).with_name("parallel_steps.py")
    workers = [
        subprocess.Popen(
            [sys.executable, program, str(rank), folder / "meeting", folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=200)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


@pytest.fixture(scope="module")
def sharded(two_workers):
    """What they learn in each way."""
    return load_file(two_workers / "ways")


@pytest.fixture(scope="module")
def of_two_workers(two_workers):
    """What each of them gets from `distributed_steps.py`."""
    return [load_file(two_workers / str(rank)) for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    """What one process learns, by variant and whether with alignment."""
    return {
        (variant, is_aligned): run_steps(0, 1, variant=variant, is_aligned=is_aligned)
        for variant, is_aligned in {kind_of(way) for way in WAYS.values()}
    }


def kind_of(way):
    return way.get("variant", "modality_specific"), way.get("is_aligned", True)


@pytest.mark.parametrize("way", WAYS)
def test_two_workers_learn_what_one_process_learns(way, sharded, alone):
    expected = alone[kind_of(WAYS[way])]
    found = {
        name.removeprefix(f"{way}: "): tensor
        for name, tensor in sharded.items()
        if name.startswith(f"{way}: ")
    }
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=2e-4, msg=name)


def test_two_workers_agree_on_mmd_centers_and_weights(of_two_workers):
    """MMD over the rows of both, centres and weights."""
    alone = distributed_steps.run_steps(0, 1, lambda model: model)
    for together in of_two_workers:
        for name, tensor in alone.items():
            torch.testing.assert_close(together[name], tensor, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", distributed_steps.ALIGNMENTS)
def test_alignment_over_two_workers_is_that_of_one_with_all_rows(of_two_workers, name):
    alone, (first, second) = distributed_steps.run_alignment(0, 1), of_two_workers
    for worker in (first, second):
        torch.testing.assert_close(worker[f"value.{name}"], alone[f"value.{name}"])
        assert abs(worker[f"own.{name}"] - alone[f"value.{name}"]) > 1e-3
    gradient = torch.cat([first[f"gradient.{name}"], second[f"gradient.{name}"]])
    torch.testing.assert_close(gradient, alone[f"gradient.{name}"], atol=1e-7, rtol=1e-5)
    assert gradient.abs().max() > 1e-4


def test_parts_of_a_batch_give_the_gradients_of_the_whole(alone):
    parts = run_steps(0, 1, accumulation_steps=4, is_aligned=False)
    for name, tensor in alone["modality_specific", False].items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=2e-4, msg=name)


def test_recomputed_activations_change_no_bit(alone):
    recomputed = run_steps(0, 1, recompute=True)
    for name, tensor in alone["modality_specific", True].items():
        assert torch.equal(recomputed[name], tensor), name


def test_alignment_of_parts_is_their_mean():
    config = micro_config(objective=ObjectiveConfig(alignment_weight=1.0))
    views = micro_views(4)
    model = micro_model()
    tensors = {name: tensor.clone() for name, tensor in model_tensors(model).items()}

    def alignment(some_views, parts):
        model.load_state_dict(tensors, strict=False)
        state = train_state(model, config)
        schedule = {"total_steps": 9, "steps_per_epoch": 3.0}
        return train_step(state, some_views, config, accumulation_steps=parts, **schedule)[
            "loss/alignment"
        ]

    halves = [alignment(half, 1) for half in split_views(views, 2)]
    torch.testing.assert_close(alignment(views, 2), torch.stack(halves).mean())


def test_a_recomputed_block_keeps_its_tensors_names():
    model = micro_model()
    names = set(model_tensors(model))
    for block in model.learning_blocks():
        checkpoint_activations(block)
    assert set(model_tensors(model)) == names


def test_weights_change_only_after_the_last_call_before_the_update():
    config, model = micro_config(), micro_model()
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    seen = []

    def compare():
        now = model_tensors(model)
        seen.append(all(torch.equal(now[name], before[name]) for name in before))

    train_step(
        train_state(model, config),
        micro_views(),
        config,
        total_steps=9,
        steps_per_epoch=3.0,
        before_update=compare,
    )
    assert seen == [True]
    after = model_tensors(model)
    assert not all(torch.equal(after[name], before[name]) for name in before)


def test_loaded_moments_leave_the_optimizer_with_its_own_settings():
    before = OptimizerConfig(weight_decay=0.3, betas=(0.9, 0.95), eps=1e-8)
    after = OptimizerConfig(weight_decay=0.01, betas=(0.8, 0.9), eps=1e-6)
    model, config = micro_model(), micro_config(optimizer=before)
    state = train_state(model, config)
    train_step(state, micro_views(4), config, total_steps=9, steps_per_epoch=3.0)
    saved = state.optimizer.state_dict()
    optimizer = build_optimizer(model, after)
    load_optimizer_state(optimizer, saved)
    for group, weight_decay in zip(optimizer.param_groups, (0.01, 0.0), strict=True):
        assert (group["weight_decay"], group["betas"]) == (weight_decay, (0.8, 0.9))
        assert group["eps"] == 1e-6
    moments = optimizer.state_dict()["state"]
    assert torch.equal(moments[0]["exp_avg"], saved["state"][0]["exp_avg"])
