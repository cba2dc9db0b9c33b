"""Encoders come out of published files as what they are; the micro weights stand for the files."""

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.networks import VARIANTS, micro_config
from xkd_core.config import ModelConfig, TransformerConfig, VideoConfig
from xkd_core.encoders import build_encoder
from xkd_core.published.encoders import (
    PublishedEncoder,
    build_published_encoder,
    infer_model,
    read_published_encoders,
)
from xkd_core.published.files import read_published_tensors, save_published_encoder
from xkd_core.published.names import to_published_encoder

PREFIXES = {"video": "vid_teacher.backbone.", "audio": "aud_teacher.backbone."}
VIDEO, AUDIO = micro_config().model.video, micro_config().model.audio


@pytest.fixture
def weights(golden_dir):
    return load_file(golden_dir / "modality_specific" / "weights.safetensors")


def backbone(weights, modality):
    prefix = PREFIXES[modality]
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if name.startswith(prefix)
    }


def write(folder, tensors, name="encoder.pth.tar"):
    torch.save(tensors, folder / name)
    return folder / name


def build(published):
    return build_published_encoder(
        published, infer_model(published, video=VIDEO, audio=AUDIO, num_heads=3)
    )


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("modality", ["video", "audio"])
@pytest.mark.parametrize("naming", ["training", "evaluation"])
def test_an_encoder_goes_through_both_namings_to_the_bit(
    golden_dir, tmp_path, variant, modality, naming
):
    weights = load_file(golden_dir / variant / "weights.safetensors")
    file = write(tmp_path, backbone(weights, modality))
    (published,) = read_published_encoders(file)
    assert (published.modality, published.role) == (modality, None)
    again = tmp_path / "again.pth.tar"
    save_published_encoder(build(published), again, naming=naming)
    (back,) = read_published_encoders(again, modality=modality)
    assert back.modality == modality
    assert back.tensors.keys() == published.tensors.keys()
    assert all(torch.equal(back.tensors[name], t) for name, t in published.tensors.items())
    save_published_encoder(build(back), again)
    third = read_published_tensors(again)
    assert all(torch.equal(third[name], t) for name, t in backbone(weights, modality).items())


def test_names_of_evaluation_are_those_that_it_loads(tmp_path, weights):
    (published,) = read_published_encoders(write(tmp_path, backbone(weights, "video")))
    save_published_encoder(build(published), tmp_path / "e.pth.tar", naming="evaluation")
    names = set(read_published_tensors(tmp_path / "e.pth.tar"))
    assert {"pos_embed", "norm.bias", "blocks.2.attn.qkv.weight", "cls_token"} < names
    assert {name for name in names if "embed." in name} == {
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    }


def test_an_encoder_of_a_file_gives_the_published_tokens(golden_dir, tmp_path, weights):
    folder = golden_dir / "modality_specific"
    inputs, outputs = (load_file(folder / f"{n}.safetensors") for n in ("inputs", "outputs"))
    for modality, view in (("video", "frames_global"), ("audio", "spec_global")):
        (published,) = read_published_encoders(write(tmp_path, backbone(weights, modality)))
        tokens = build(published)(inputs[view])
        expected = outputs[f"{modality}_teacher_tokens_global"]
        torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)


def test_a_whole_checkpoint_gives_its_four_encoders(tmp_path, weights):
    values = {"model": {f"module.{name}": tensor for name, tensor in weights.items()}, "epoch": 1}
    file = write(tmp_path, values, "checkpoint.pth.tar")
    found = {(one.modality, one.role): one for one in read_published_encoders(file)}
    assert len(found) == 4
    student = build(found["audio", "student"]).state_dict()
    expected = weights["aud_student.backbone.encoder.blocks.1.mlp.fc1.weight"]
    assert torch.equal(student["blocks.1.mlp.fc1.weight"], expected)
    only = read_published_encoders(file, modality="video", role="teacher")
    assert [(one.modality, one.role) for one in only] == [("video", "teacher")]


def test_an_encoder_that_is_not_in_the_file_is_named(tmp_path, weights):
    videos = {name: t for name, t in weights.items() if name.startswith("vid_teacher.")}
    file = write(tmp_path, {"model": videos})
    with pytest.raises(ValueError, match=r"has no audio student; it has video teacher$"):
        read_published_encoders(file, modality="audio", role="student")
    with pytest.raises(ValueError, match=r"no audio encoder: its cuboid_embed\.proj\.weight is th"):
        read_published_encoders(write(tmp_path, backbone(weights, "video")), modality="audio")


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("XKD_pretext_kinetics400_ep799vid_teacher.pth.tar", "teacher"),
        ("XKD_pretext_kinetics400_ep799vid_student.pth.tar", "student"),
        ("model.pth.tar", None),
    ],
)
def test_the_name_of_the_file_tells_the_role(tmp_path, weights, name, role):
    (published,) = read_published_encoders(write(tmp_path, backbone(weights, "video"), name))
    assert published.role == role


@pytest.mark.parametrize("modality", ["video", "audio"])
@pytest.mark.parametrize(
    ("width", "depth", "num_heads"),
    [(192, 12, 3), (384, 12, 6), (768, 12, 12), (1024, 24, 16)],
)
@pytest.mark.parametrize("naming", ["training", "evaluation"])
def test_every_published_size_is_inferred(tmp_path, modality, width, depth, num_heads, naming):
    size = TransformerConfig(width=width, depth=depth, num_heads=num_heads)
    with torch.device("meta"):
        encoder = build_encoder(ModelConfig(encoder=size), modality)
    tensors = {  # one number each, since files of these sizes are large; shapes are what counts
        name: torch.zeros(1).expand(tensor.shape)
        for name, tensor in to_published_encoder(encoder).items()
    }
    published = PublishedEncoder(modality, None, tensors)
    model = infer_model(published)
    assert model == ModelConfig(encoder=size)
    built = build_published_encoder(published, model) if width == 192 else None
    if built is not None:  # the smallest goes through a file
        save_published_encoder(built, tmp_path / "e.pth.tar", naming=naming)
        (back,) = read_published_encoders(tmp_path / "e.pth.tar")
        assert back.modality == modality
        assert infer_model(back) == model


def test_the_size_of_the_picture_follows_from_the_table():
    large = ModelConfig(video=VideoConfig(size=224))
    with torch.device("meta"):
        tensors = to_published_encoder(build_encoder(large, "video"))
    published = PublishedEncoder("video", None, tensors)
    assert infer_model(published).video.grid == (8, 14, 14)
    with pytest.raises(
        ValueError, match=r"enc_pos_embed is for 1568 patches, but the clip .* 8 x "
    ):
        infer_model(published, video=VideoConfig(size=112))


def test_names_of_evaluation_of_another_patch_need_the_modality(tmp_path, weights):
    (published,) = read_published_encoders(write(tmp_path, backbone(weights, "video")))
    file = tmp_path / "e.pth.tar"
    save_published_encoder(build(published), file, naming="evaluation")
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj\.weight has shape \(48, 384\), .* giv"
    ):
        read_published_encoders(file)


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("cls_token", None, r"cls_token is missing"),
        ("enc_pos_embed", None, r"enc_pos_embed is missing"),
        ("cls_token", torch.ones(48), r"cls_token has shape \(48,\), but must have three axes"),
        ("enc_pos_embed", torch.ones(1, 7, 48), r"enc_pos_embed is for 6 patches, but the clip"),
        ("enc_pos_embed", torch.ones(1, 65, 8), r"enc_pos_embed has shape \(1, 65, 8\), but the"),
        ("encoder_norm.bias", None, r"missing: \['encoder_norm\.bias'\]"),
        ("encoder.blocks.0.norm1.bias", None, r"missing: \['encoder\.blocks\.0\.norm1\.bias'\]"),
        ("stray", torch.ones(3), r"unexpected: \['stray'\]"),
        ("encoder.blocks.4.norm1.bias", torch.ones(48), r"encoder\.blocks\.3 is missing"),
        ("encoder.blocks.1.mlp.fc1.bias", torch.ones(3), r"fc1\.bias has shape \(3,\), but the"),
        ("encoder_norm.bias", torch.full((48,), torch.nan), r"encoder_norm\.bias has numbers that"),
        (
            "cuboid_embed.proj.weight",
            torch.ones(48, 32),
            r"cuboid_embed\.proj\.weight has shape \(48, 32\), but the model needs \(48, 384\)",
        ),
        ("cuboid_embed.proj.weight", None, r"neither cuboid_embed\.proj\.weight nor patch_embed"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, weights, name, replacement, message):
    tensors = backbone(weights, "video")
    tensors.pop(name, None)
    if replacement is not None:
        tensors[name] = replacement
    with pytest.raises(ValueError, match=message):
        build(read_published_encoders(write(tmp_path, tensors))[0])


def test_heads_that_no_file_tells_must_be_given_and_divide(tmp_path, weights):
    (published,) = read_published_encoders(write(tmp_path, backbone(weights, "video")))
    with pytest.raises(ValueError, match=r"cls_token has width 48, no multiple of 64: num_heads"):
        infer_model(published, video=VIDEO, audio=AUDIO)
    with pytest.raises(ValueError, match=r"num_heads \(5\) must divide the width of cls_token"):
        infer_model(published, video=VIDEO, audio=AUDIO, num_heads=5)
