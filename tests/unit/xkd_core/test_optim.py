"""Facts about the optimizer and the clipping."""

import copy

import numpy as np
import pytest
import torch

from tests.helpers import networks
from tests.helpers.networks import VARIANTS, micro_config, micro_model, micro_views, train_state
from xkd_core import train_step as step_module
from xkd_core.config import OptimizerConfig
from xkd_core.optim import (
    build_optimizer,
    clip_each_gradient,
    clipped_parameters,
    freeze_first_blocks,
    norms_of_gradients,
    set_learning_rate,
    total_norm,
)
from xkd_core.sharding import load_optimizer_state
from xkd_core.train_step import train_step
from xkd_core.xkd import load_model_tensors, model_tensors


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
    torch.testing.assert_close(
        total_norm(norms_of_gradients(layer.parameters())), everything.norm()
    )


def test_the_learning_rate_is_the_same_in_every_group():
    optimizer = build_optimizer(micro_model(), micro_config().optimizer)
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


RATE = 0.1
GRADIENT_NORMS = (0.05, 4.0, 0.6)
"""AdamW does not see the scale of gradients, but it sees that clipping changes their ratios."""


def drawn_gradients(weights):
    """Gradients of each step by name, the same on every machine."""
    generator = np.random.default_rng(0)
    steps = []
    for norm in GRADIENT_NORMS:
        drawn = {name: generator.standard_normal(w.shape) for name, w in weights.items()}
        steps.append({name: norm * g / np.linalg.norm(g) for name, g in drawn.items()})
    return steps


def weights_of(model):
    return {
        name: parameter.detach().double().numpy().copy()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def trained_weights(variant="modality_specific", **settings):
    """Weights before and after a step of `train_step` for each of the drawn gradients."""
    optimizer = OptimizerConfig(learning_rate=RATE, warmup_epochs=0.0, **settings)
    config, model = micro_config(variant, optimizer=optimizer), micro_model(variant)
    state, before = train_state(model, config), weights_of(model)
    for gradients in drawn_gradients(before):

        def set_gradients(gradients=gradients):
            for name, parameter in model.named_parameters():
                if name in gradients:
                    parameter.grad = torch.from_numpy(gradients[name]).float()

        train_step(
            state,
            micro_views(2),
            config,
            total_steps=10**9,
            steps_per_epoch=1e9,
            before_update=set_gradients,
        )
    return before, weights_of(model)


def published_weights(before, steps):
    """The published rule in float64: AdamW, decay of matrices, each student tensor clipped."""
    after = {}
    for name, start in before.items():
        weight, mean, square = start.copy(), np.zeros_like(start), np.zeros_like(start)
        decay = 0.0 if name.endswith(".bias") or start.ndim == 1 else 0.3
        for count, gradients in enumerate(steps, start=1):
            gradient = gradients[name]
            if name.startswith(("video_student", "audio_student")):
                gradient = gradient * min(1.0, 0.3 / np.linalg.norm(gradient))
            mean = 0.9 * mean + 0.1 * gradient
            square = 0.95 * square + 0.05 * gradient**2
            weight *= 1.0 - RATE * decay
            update = mean / (1 - 0.9**count) / (np.sqrt(square / (1 - 0.95**count)) + 1e-8)
            weight -= RATE * update
        after[name] = weight
    return after


def largest_difference(before, after):
    expected = published_weights(before, drawn_gradients(before))
    return max(np.abs(after[name] - expected[name]).max() for name in expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_three_steps_lead_to_the_published_weights(variant):
    assert largest_difference(*trained_weights(variant)) < 1e-4


def decay_everything(monkeypatch):
    def one_group(model, config):
        optimizer = build_optimizer(model, config)
        for group in optimizer.param_groups:
            group["weight_decay"] = config.weight_decay
        return optimizer

    monkeypatch.setattr(networks, "build_optimizer", one_group)


def clip_decoders(monkeypatch):
    monkeypatch.setattr(step_module, "clipped_parameters", lambda model: list(model.parameters()))


def clip_nothing(monkeypatch):
    monkeypatch.setattr(step_module, "clip_each_gradient", lambda *_: None)


def clip_all_together(monkeypatch):
    def clip(parameters, max_norm, _):
        torch.nn.utils.clip_grad_norm_(parameters, max_norm)

    monkeypatch.setattr(step_module, "clip_each_gradient", clip)


@pytest.mark.parametrize(
    ("settings", "patch"),
    [
        pytest.param({"weight_decay": 0.0}, None, id="no weight decay"),
        pytest.param({"decay_tokens_and_positions": False}, None, id="tokens without decay"),
        pytest.param({"betas": (0.9, 0.999)}, None, id="another second beta"),
        pytest.param({"betas": (0.95, 0.95)}, None, id="another first beta"),
        pytest.param({"max_grad_norm": 1.0}, None, id="another norm"),
        pytest.param({}, decay_everything, id="norms and biases decay"),
        pytest.param({}, clip_nothing, id="no clipping"),
        pytest.param({}, clip_all_together, id="one norm for all"),
        pytest.param({}, clip_decoders, id="clipped decoders"),
    ],
)
def test_another_optimizer_leads_to_other_weights(monkeypatch, settings, patch):
    if patch is not None:
        patch(monkeypatch)
    assert largest_difference(*trained_weights(**settings)) > 1e-3


RATES_AT_HALF = {
    "patch_projection": 1 / 16,
    "cls_token": 1 / 16,
    "position_table": 1 / 16,
    "blocks.0": 1 / 8,
    "blocks.1": 1 / 4,
    "blocks.2": 1 / 2,
    "norm": 1.0,
}
"""A depth of 3 and a decay of 0.5, by hand: 0.5 to the power of 4, 3, 2, 1, 0."""


def rates(model, **settings):
    """The learning rate of each parameter by name, at a scheduled rate of 0.25."""
    optimizer = build_optimizer(model, OptimizerConfig(**settings))
    set_learning_rate(optimizer, 0.25)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_rates_decay_by_depth(variant):
    found = rates(micro_model(variant), layer_decay=0.5)
    for name, rate in found.items():
        network, _, layer = name.partition(".")
        factor = 1.0
        if network in ("video_student", "audio_student"):
            (factor,) = (f for part, f in RATES_AT_HALF.items() if layer.startswith(part))
        assert rate == 0.25 * factor, name
    in_students = {name for name in found if name.split(".")[0] == "audio_student"}
    assert {"audio_student.cls_token", "audio_student.norm.bias"} <= in_students


def test_the_published_table_of_rates():
    """A ViT-B fine-tuned at 0.45: 13 - id for ids of 0, block + 1 and 13 (method of BEiT)."""
    model = micro_model()
    found = rates(model, layer_decay=0.45)
    assert found["video_student.patch_projection.weight"] == pytest.approx(0.25 * 0.45**4)
    assert found["video_student.blocks.2.mlp.fc1.weight"] == pytest.approx(0.25 * 0.45)


def test_layer_decay_keeps_weight_decay():
    model = micro_model()
    groups = build_optimizer(model, OptimizerConfig(layer_decay=0.5)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    plain = build_optimizer(model, OptimizerConfig()).param_groups
    assert decays == {id(p): group["weight_decay"] for group in plain for p in group["params"]}
    assert len(plain) == 2


def test_layer_decay_slows_the_first_blocks_down():
    def moved(layer_decay):
        before, after = trained_weights(layer_decay=layer_decay, weight_decay=0.0)
        return {name: np.abs(after[name] - before[name]).max() for name in before}

    full, decayed = moved(1.0), moved(0.5)
    first, last = "video_student.blocks.0.mlp.fc1.weight", "video_student.blocks.2.mlp.fc1.weight"
    assert decayed[first] == pytest.approx(full[first] / 8, rel=1e-3)
    assert decayed[last] == pytest.approx(full[last] / 2, rel=1e-3)
    assert decayed["video_decoder.mask_token"] == pytest.approx(full["video_decoder.mask_token"])


FROZEN = ("patch_projection", "cls_token", "position_table", "blocks.0", "blocks.1")


@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_blocks_have_neither_gradients_nor_optimizer_state(variant):
    optimizer = OptimizerConfig(frozen_video_blocks=2, warmup_epochs=0.0, learning_rate=0.01)
    config, model = micro_config(variant, optimizer=optimizer), micro_model(variant)
    freeze_first_blocks(model, optimizer)
    state = train_state(model, config)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def check_gradients():
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name

    for _ in range(2):
        train_step(
            state,
            micro_views(),
            config,
            total_steps=9,
            steps_per_epoch=3.0,
            before_update=check_gradients,
        )
    frozen = {
        name
        for name in before
        for part in FROZEN
        if name.startswith(f"video_student.{part}")
        or (
            (variant != "modality_specific" and name.startswith(f"audio_student.{part}"))
            and part.startswith("blocks")
        )
    }
    for name, tensor in model.state_dict().items():
        learns = not name.startswith(("video_teacher", "audio_teacher")) and name not in frozen
        assert torch.equal(tensor, before[name]) != learns or "teacher" in name, name
    in_state = {id(parameter) for parameter in state.optimizer.state}
    held = {n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in in_state}
    assert not held & frozen
    # The teacher began as its student, and so follows what is frozen to the bit.
    for name in frozen:
        if name.startswith("video_student"):
            teacher = name.replace("_student", "_teacher")
            assert torch.equal(model.state_dict()[teacher], before[teacher]), teacher


def test_no_more_blocks_can_be_frozen_than_there_are():
    micro_config(optimizer=OptimizerConfig(frozen_audio_blocks=3))
    with pytest.raises(ValueError, match=r"frozen_audio_blocks \(4\) must not be above .* \(3\)"):
        micro_config(optimizer=OptimizerConfig(frozen_audio_blocks=4))


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_a_resumed_optimizer_goes_on_as_if_it_had_not_stopped(layer_decay):
    optimizer = OptimizerConfig(
        layer_decay=layer_decay, frozen_audio_blocks=1, warmup_epochs=0.0, learning_rate=0.01
    )
    config = micro_config(optimizer=optimizer)
    views = [micro_views() for _ in range(4)]

    def begun(tensors=None, moments=None, centers=None, step=0):
        model = micro_model()
        freeze_first_blocks(model, optimizer)
        state = train_state(model, config)
        if tensors is not None:
            load_model_tensors(model, tensors)
            load_optimizer_state(state.optimizer, moments)
            state.centers, state.step = centers, step
        return state

    def step_on(state, steps):
        for number in steps:
            train_step(state, views[number], config, total_steps=9, steps_per_epoch=3.0)

    torch.manual_seed(4)
    whole = begun()
    step_on(whole, range(2))
    tensors = {name: tensor.clone() for name, tensor in model_tensors(whole.model).items()}
    moments = copy.deepcopy(whole.optimizer.state_dict())
    resumed = begun(tensors, moments, whole.centers, 2)
    for state in (whole, resumed):
        step_on(state, range(2, 4))
    theirs = model_tensors(resumed.model)
    assert all(torch.equal(t, theirs[name]) for name, t in model_tensors(whole.model).items())
