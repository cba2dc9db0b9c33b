"""What three steps of a micro-sized model come to, so that a refactor that changes a loss fails.

Weights and inputs come from NumPy's generator, whose numbers never change. After a change that is
meant, `pytest tests/unit/xkd_core/test_own_golden.py --update-golden` renews the numbers.
"""

import numpy as np
import pytest
import torch

from tests.helpers.networks import VARIANTS, micro_config, micro_model, train_state
from xkd_core.config import ObjectiveConfig, OptimizerConfig
from xkd_core.masking import video_mask_noise
from xkd_core.train_step import train_step
from xkd_core.views.views import Views

OBJECTIVES = {
    "default": {},
    "published_code": {"teacher_view": "first_local", "alignment_over_workers": False},
    "softmax_refinement": {"refinement": "softmax"},
    "cross_refinement": {"refinement": "cross"},
    "no_refinement": {"refinement": "none"},
    "unbiased_median_mmd": {"mmd_bandwidth": "median", "mmd_unbiased": True},
    "unit_sphere_mmd": {"mmd_unit_sphere": True},
    "coral": {"alignment": "coral"},
    "undivided": {"divide_by_weights": False},
}
# With a large eps AdamW does not turn the rounding of a tiny gradient into a whole step.
OPTIMIZER = OptimizerConfig(warmup_epochs=0.0, learning_rate=1e-3, eps=1e-2)


def drawn_model(variant, generator):
    model = micro_model(variant)
    with torch.no_grad():
        for parameter in model.parameters():
            values = 0.1 * generator.standard_normal(parameter.shape)
            parameter.copy_(torch.from_numpy(values))
            if parameter.ndim == 1:  # LayerNorms about 1; biases do no harm
                parameter.add_(1.0)
    return model


def drawn_views(generator, num_video_globals=1):
    def normal(*shape):
        return torch.from_numpy(generator.standard_normal(shape)).float()

    video_noise = generator.random((3 * num_video_globals, 64))
    return Views(
        video_global=normal(3 * num_video_globals, 3, 8, 32, 32),
        video_locals=normal(2, 3, 3, 2, 24, 24),
        audio_global=normal(3, 1, 16, 64),
        audio_locals=normal(1, 3, 1, 16, 16),
        video_mask_noise=torch.from_numpy(video_noise).float(),
        audio_mask_noise=torch.from_numpy(generator.random((3, 32))).float(),
    )


def history(config, views, generator):
    """Losses, norms and centres of three steps by name."""
    state = train_state(drawn_model(config.model.variant, generator), config)
    found = {}
    for step in range(3):
        metrics = train_step(state, views, config, total_steps=9, steps_per_epoch=3.0)
        for name, value in metrics.items():
            if not name.startswith("schedule/"):
                found[f"{step}/{name}"] = value.item()
        found[f"{step}/center_norm/video"] = state.centers.video.norm().item()
        found[f"{step}/center_norm/audio"] = state.centers.audio.norm().item()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["default", "published_code"])
def test_variants_come_to_the_same_numbers(own_golden, name, variant):
    generator = np.random.default_rng(0)
    objective = ObjectiveConfig(**OBJECTIVES[name])
    config = micro_config(variant, objective=objective, optimizer=OPTIMIZER)
    views = drawn_views(generator)
    own_golden(f"{name}/{variant}", history(config, views, generator))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if "_code" not in name])
def test_objectives_come_to_the_same_numbers(own_golden, name):
    generator = np.random.default_rng(1)
    objective = ObjectiveConfig(**OBJECTIVES[name])
    config = micro_config(objective=objective, optimizer=OPTIMIZER)
    views = drawn_views(generator)
    own_golden(f"objective/{name}", history(config, views, generator))


def test_two_global_views_in_tubes_come_to_the_same_numbers(own_golden):
    generator = np.random.default_rng(2)
    video = micro_config().model.video.model_copy(update={"masking": "tube"})
    model = micro_config().model.model_copy(update={"video": video})
    config = micro_config(model=model, optimizer=OPTIMIZER)
    views = drawn_views(generator, num_video_globals=2)
    noise = video_mask_noise(views.video_mask_noise, video)
    views = views._replace(video_mask_noise=noise)
    own_golden("two_tubed_globals", history(config, views, generator))
