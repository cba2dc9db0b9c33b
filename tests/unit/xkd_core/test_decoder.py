"""Facts about the decoder."""

import torch

from xkd_core.decoder import Decoder
from xkd_core.masking import random_mask, take_tokens


def small_decoder(**sizes):
    defaults = {
        "encoder_width": 24,
        "width": 16,
        "depth": 2,
        "num_heads": 2,
        "num_tokens": 10,
        "patch_dim": 12,
    }
    return Decoder(**{**defaults, **sizes})


def test_every_patch_is_predicted():
    mask = random_mask(torch.rand(3, 10), 4)
    assert small_decoder()(torch.randn(3, 5, 24), mask.restore).shape == (3, 10, 12)


def test_wanted_patches_and_their_gradients_are_those_of_a_whole_prediction():
    decoder, tokens = small_decoder().double(), torch.randn(3, 5, 24, dtype=torch.float64)
    mask = random_mask(torch.rand(3, 10), 4)
    predictions = [
        decoder(tokens, mask.restore, mask.masked),
        take_tokens(decoder(tokens, mask.restore), mask.masked),
    ]
    torch.testing.assert_close(*predictions)
    parameters = list(decoder.parameters())
    gradients = [torch.autograd.grad(p.square().sum(), parameters) for p in predictions]
    torch.testing.assert_close(*gradients)


def test_hidden_patches_differ_only_by_their_positions():
    decoder = small_decoder()
    torch.nn.init.zeros_(decoder.position_table)
    mask = random_mask(torch.rand(1, 10), 4)
    patches = decoder(torch.randn(1, 5, 24), mask.restore)[0, mask.hidden[0]]
    torch.testing.assert_close(patches, patches[:1].expand_as(patches))


def test_the_order_in_which_visible_tokens_come_does_not_matter():
    decoder, tokens = small_decoder().double(), torch.randn(1, 5, 24, dtype=torch.float64)
    noise = torch.rand(1, 10)
    mask = random_mask(noise, 4)
    shuffle = torch.tensor([2, 0, 3, 1])
    positions = torch.cat([shuffle.argsort(), torch.arange(4, 10)])
    shuffled = torch.cat([tokens[:, :1], tokens[:, 1:][:, shuffle]], dim=1)
    torch.testing.assert_close(
        decoder(shuffled, positions[mask.restore]), decoder(tokens, mask.restore)
    )


def test_a_projection_between_equal_widths_is_left_out():
    decoder = small_decoder(encoder_width=16, patch_dim=16)
    assert not any("projection" in name for name, _ in decoder.named_parameters())


def test_initialisation_leaves_no_parameter_unset():
    decoder = small_decoder()
    for parameter in decoder.parameters():
        torch.nn.init.constant_(parameter, float("nan"))
    decoder.init_weights()
    assert all(parameter.isfinite().all() for parameter in decoder.parameters())
