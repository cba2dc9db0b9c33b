"""Published files go in and come out to the bit, and whatever else a file is, it is refused."""

import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.networks import VARIANTS, micro_model
from xkd_core.losses import Centers
from xkd_core.published.files import (
    read_published_tensors,
    save_published_model,
)
from xkd_core.published.names import load_published


@pytest.fixture
def weights(golden_dir):
    return load_file(golden_dir / "modality_specific" / "weights.safetensors")


def whole(weights):
    """As training writes it: the names of a distributed model, an optimizer, a loss scaler."""
    return {
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 1e-4}]},
        "model": {f"module.{name}": tensor for name, tensor in weights.items()},
        "epoch": 800,
        "amp": {"scale": 65536.0, "_growth_tracker": 7},
    }


def written(folder, values, **options):
    file = folder / "checkpoint.pth.tar"
    torch.save(values, file, **options)
    return file


def assert_same(tensors, expected):
    assert list(tensors) == list(expected)
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_whole_checkpoint_goes_through_the_model_to_the_bit(golden_dir, tmp_path, variant):
    weights = load_file(golden_dir / variant / "weights.safetensors")
    tensors = read_published_tensors(written(tmp_path, whole(weights)))
    assert_same(tensors, weights)
    model = micro_model(variant)
    centers = load_published(model, tensors)
    save_published_model(model, centers, tmp_path / "again.pth.tar", epoch=800)
    again = read_published_tensors(tmp_path / "again.pth.tar")
    assert_same(dict(sorted(again.items())), dict(sorted(weights.items())))


def test_a_whole_checkpoint_is_written_as_training_writes_it(tmp_path):
    centers = Centers(torch.ones(96), torch.zeros(96))
    save_published_model(micro_model(), centers, tmp_path / "checkpoint.pth.tar", epoch=3)
    values = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)
    assert values.keys() == whole({}).keys()
    assert values["epoch"] == 3
    assert values["model"]["module.vt2as_ce_loss.center"].shape == (1, 96)
    assert all(name.startswith("module.") for name in values["model"])


def test_a_file_of_before_zips_is_read(tmp_path, weights):
    file = written(tmp_path, weights, _use_new_zipfile_serialization=False)
    assert_same(read_published_tensors(file), weights)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["cls_token", "optimizer", "model"])
def test_nothing_in_a_file_is_run(tmp_path, weights, place, zipped):
    marker = tmp_path / "run"
    values = {**whole(weights), place: Runs(marker)}
    file = written(tmp_path, values, _use_new_zipfile_serialization=zipped)
    marker.unlink(missing_ok=True)  # `torch.save` looks at what it writes
    with pytest.raises(ValueError, match=r"is not a file of weights alone: "):
        read_published_tensors(file)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, zipped):
    values = {"cls_token": torch.randn(1, 1, 48), "enc_pos_embed": torch.randn(1, 65, 48)}
    content = written(tmp_path, values, _use_new_zipfile_serialization=zipped).read_bytes()
    cut = tmp_path / "cut.pth.tar"
    for length in {*range(0, len(content), 97), 1, 2, 4, len(content) - 1, len(content) - 22}:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"cut\.pth\.tar"):
            read_published_tensors(cut)


def test_a_zip_with_a_changed_byte_is_refused_or_the_same(tmp_path):
    values = {"cls_token": torch.randn(1, 1, 48), "enc_pos_embed": torch.randn(1, 65, 48)}
    content = written(tmp_path, values).read_bytes()
    changed = tmp_path / "changed.pth.tar"
    generator = random.Random(0)
    refused = 0
    for _ in range(300):
        place = generator.randrange(len(content))
        damage = bytes([content[place] ^ (1 << generator.randrange(8))])
        changed.write_bytes(content[:place] + damage + content[place + 1 :])
        try:
            assert_same(read_published_tensors(changed), values)  # a byte that nobody reads
        except ValueError:
            refused += 1
    assert refused > 200


def test_a_number_that_changed_is_named_by_its_record(tmp_path):
    values = {"cls_token": torch.arange(48.0)}
    content = written(tmp_path, values).read_bytes()
    place = content.index(values["cls_token"].numpy().tobytes())
    changed = tmp_path / "changed.pth.tar"
    changed.write_bytes(content[: place + 9] + b"\xff" + content[place + 10 :])
    with pytest.raises(ValueError, match=r"damaged: the checksum of \S+/data/0 is wrong"):
        read_published_tensors(changed)


def test_a_compressed_record_is_refused(tmp_path, weights):
    packed = tmp_path / "packed.pth.tar"
    with (
        zipfile.ZipFile(written(tmp_path, weights)) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for record in source.namelist():
            target.writestr(record, source.read(record))
    with pytest.raises(ValueError, match=r"is compressed, as in no checkpoint"):
        read_published_tensors(packed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([torch.ones(3)], r"must hold tensors by name, but holds a list"),
        ({}, r"must hold tensors by name, but holds a dict"),
        ({"model": {}}, r"must hold tensors by name, but holds a dict"),
        ({"cls_token": "text"}, r"cls_token must be a tensor, but is a str"),
        ({"epoch": 3, "cls_token": torch.ones(1)}, r"epoch must be a tensor, but is a int"),
        ({"cls_token": torch.ones(1, dtype=torch.int64)}, r"cls_token must be a dense tensor of"),
        ({"cls_token": torch.ones(3, 3).to_sparse()}, r"cls_token must be a dense tensor of"),
        (
            {"cls_token": torch.ones(1).expand(10**15)},
            r"cls_token has fewer numbers than its shape",
        ),
    ],
)
def test_what_is_no_tensor_by_name_is_named(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        read_published_tensors(written(tmp_path, values))


def test_a_file_that_is_not_there_or_a_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth\.tar does not exist"):
        read_published_tensors(tmp_path / "nowhere.pth.tar")
    with pytest.raises(ValueError, match=r"does not exist or is no file"):
        read_published_tensors(tmp_path)
