"""Facts about the optimizer and the clipping."""

import pytest
import torch

from tests.helpers.networks import VARIANTS, micro_config, micro_model
from xkd_core.config import OptimizerConfig
from xkd_core.optim import (
    build_optimizer,
    clip_each_gradient,
    clipped_parameters,
    set_learning_rate,
    total_gradient_norm,
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_trainable_parameter_is_optimised_once_and_no_teacher(variant):
    model, config = micro_model(variant), micro_config(variant)
    groups = build_optimizer(model, config.optimizer).param_groups
    optimised = [id(parameter) for group in groups for parameter in group["params"]]
    trainable = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(optimised) == len(set(optimised))
    assert set(optimised) == trainable


def test_tokens_and_tables_decay_but_biases_and_norms_do_not():
    model = micro_model()
    decaying, plain = build_optimizer(model, micro_config().optimizer).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying_names = {names[id(parameter)] for parameter in decaying["params"]}
    plain_names = {names[id(parameter)] for parameter in plain["params"]}
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert {
        "video_student.cls_token",
        "audio_student.position_table",
        "video_decoder.mask_token",
        "audio_student_head.prototypes.weight",
    } <= decaying_names
    assert all(name.endswith(".bias") or "norm" in name for name in plain_names)
    assert not any(name.endswith(".bias") or "norm" in name for name in decaying_names)


def test_tokens_and_tables_can_be_spared_from_decay():
    model = micro_model()
    config = OptimizerConfig(decay_tokens_and_positions=False)
    decaying, plain = build_optimizer(model, config).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    spared = {names[id(p)] for p in plain["params"] if p.ndim >= 2}
    networks = ("video_student", "audio_student", "video_decoder", "audio_decoder")
    tokens = ("cls_token", "cls_token", "mask_token", "mask_token")
    tables = {f"{network}.position_table" for network in networks}
    assert spared == tables | {".".join(pair) for pair in zip(networks, tokens, strict=True)}
    assert len(decaying["params"]) + len(plain["params"]) == len(
        [p for p in model.parameters() if p.requires_grad]
    )


def test_each_gradient_is_clipped_by_its_own_norm():
    large, small = torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))
    large.grad, small.grad = torch.full((3, 4), 2.0), torch.full((5,), 0.01)
    unused = torch.nn.Parameter(torch.zeros(2))
    clip_each_gradient([large, small, unused], 0.3)
    assert large.grad.norm().item() == pytest.approx(0.3, rel=1e-5)
    assert torch.equal(small.grad, torch.full((5,), 0.01))
    assert unused.grad is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_students_are_clipped_but_decoders_are_not(variant):
    model = micro_model(variant)
    clipped = {id(parameter) for parameter in clipped_parameters(model)}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in clipped) == ("_student" in name.split(".")[0]), name


def test_the_gradient_norm_is_that_of_all_gradients_together():
    layer = torch.nn.Linear(3, 4)
    layer(torch.randn(2, 3)).square().sum().backward()
    everything = torch.cat([layer.weight.grad.flatten(), layer.bias.grad])
    torch.testing.assert_close(total_gradient_norm(layer), everything.norm())


def test_the_learning_rate_is_the_same_in_every_group():
    optimizer = build_optimizer(micro_model(), micro_config().optimizer)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
