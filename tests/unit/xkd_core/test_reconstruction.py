"""Facts about reconstructions for reports."""

import torch

from tests.helpers.networks import micro_model
from xkd_core.masking import random_mask
from xkd_core.patches import normalize_patches, spectrogram_to_patches, to_patches
from xkd_core.reconstruction import reconstruct_audio, reconstruct_video


def test_visible_parts_of_a_video_are_shown_and_hidden_ones_predicted():
    model, video, noise = micro_model(), torch.randn(2, 3, 8, 32, 32), torch.rand(2, 64)
    reconstructed = reconstruct_video(model, video, noise)
    hidden = random_mask(noise, model.num_visible_video).hidden
    patch_size = model.video_student.patch_size
    shown, given = (to_patches(clip, patch_size) for clip in (reconstructed, video))
    assert (~hidden).sum().item() == 2 * 10
    assert torch.equal(shown[~hidden], given[~hidden])
    assert not (shown == given)[hidden].any()


def test_predicted_patches_take_mean_and_deviation_from_the_input():
    model, noise = micro_model(), torch.rand(2, 32)
    spectrogram = torch.randn(2, 1, 16, 64)
    reconstructed = reconstruct_audio(model, 3.0 + 2.0 * spectrogram, noise)
    mask = random_mask(noise, model.num_visible_audio)
    predicted = model.audio_decoder(
        model.audio_student(3.0 + 2.0 * spectrogram, mask.keep), mask.restore
    )
    patches = spectrogram_to_patches(3.0 + 2.0 * spectrogram, 4, 8)
    expected = predicted * patches.std(dim=-1, keepdim=True) + patches.mean(dim=-1, keepdim=True)
    result = spectrogram_to_patches(reconstructed, 4, 8)
    torch.testing.assert_close(result[mask.hidden], expected[mask.hidden], atol=1e-4, rtol=1e-4)
    assert normalize_patches(patches).shape == predicted.shape
