"""Published files go in and come out to the bit, and whatever else a file is, it is refused."""

import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy._core import multiarray
from safetensors.torch import load_file

from tests.helpers.networks import VARIANTS, micro_model
from xkd_core.losses import Centers
from xkd_core.published.files import (
    read_published_tensors,
    save_published_model,
)
from xkd_core.published.names import load_published
from xkd_core.published.pickles import NumberType, read_pickle


@pytest.fixture
def weights(golden_dir):
    return load_file(golden_dir / "modality_specific" / "weights.safetensors")


def whole(weights):
    """As training writes it: the names of a distributed model, an optimizer, a loss scaler."""
    return {
        "optimizer": {
            "state": {0: {"exp_avg": torch.ones(3)}},
            "param_groups": [{"lr": np.float64(1e-4), "weight_decay": np.float64(0.3)}],
        },
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


def as_numpy_1(file):
    """The same file as NumPy 1 wrote it, whose `multiarray` was in `numpy.core`."""
    old = file.with_name(f"old_{file.name}")
    if not zipfile.is_zipfile(file):
        old.write_bytes(file.read_bytes().replace(b"numpy._core.multi", b"numpy.core.multi"))
        return old
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(old, "w") as target:
        for record in source.namelist():
            content = source.read(record)
            if record.endswith("/data.pkl"):
                content = content.replace(b"numpy._core.multi", b"numpy.core.multi")
            target.writestr(record, content)
    return old


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "number",
    [
        *(np.dtype(code).type(1) for code in ["f8", "f4", "f2", "i8", "i4", "u1", "?"]),
        np.dtype(">f8").type(1),
    ],
    ids=lambda number: number.dtype.name,
)
def test_numbers_of_both_numpys_beside_the_weights_are_read(tmp_path, weights, number, zipped):
    values = whole(weights)
    values["optimizer"]["param_groups"][0]["lr"] = number
    file = written(tmp_path, values, _use_new_zipfile_serialization=zipped)
    assert_same(read_published_tensors(file), weights)
    assert b"numpy.core.multi" in as_numpy_1(file).read_bytes()
    assert_same(read_published_tensors(as_numpy_1(file)), weights)


def test_a_number_keeps_its_value_and_byte_order(tmp_path):
    big_endian = Calls(multiarray.scalar, np.dtype(">f8"), struct.pack(">d", 0.3))
    numbers = [np.float64(1e-4), np.float32(0.1), np.int64(-3), np.bool_(True), big_endian]
    values = read_pickle(written(tmp_path, {"numbers": numbers}))
    assert values == {"numbers": [1e-4, float(np.float32(0.1)), -3, True, 0.3]}
    assert {type(number) for number in values["numbers"]} == {float, int, bool}


class Calls:
    """Pickled as a call of a function."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """Pickled as a NumPy type whose state is any that one likes."""

    def __init__(self, code, state) -> None:
        self.parts = np.dtype, (code, False, True), state

    def __reduce__(self):
        return self.parts


ADDRESSES = (3, "|", None, None, None, 8, 8, 63)  # flags: its bytes point to Python objects
FIELDS = (3, "|", None, ("a",), {"a": (np.dtype("f8"), 0)}, 8, 1, 0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.str_("text"), r"holds a NumPy value that is not a plain number"),
        (np.complex64(1), r"holds a NumPy value that is not a plain number"),
        (np.datetime64("2020-01-01"), r"holds a NumPy value that is not a plain number"),
        (np.dtype([("a", "f8")]), r"holds a NumPy value that is not a plain number"),
        (Builds("O8", ADDRESSES), r"holds a NumPy value that is not a plain number"),
        (Builds("V8", ADDRESSES), r"holds a NumPy value that is not a plain number"),
        (Builds("f8", FIELDS), r"holds a NumPy value that is not a plain number"),
        (Builds("f8", (3, "?", None, None, None, 8, 8, 0)), r"NumPy number of an unknown byte ord"),
        (Calls(multiarray.scalar, np.dtype("O"), None), r"NumPy value that is not a plain number"),
        (Calls(multiarray.scalar, 3, b"12345678"), r"NumPy value that is not a plain number"),
        (Calls(multiarray.scalar, np.dtype("f8"), b"1234"), r"NumPy number that is not 8 bytes"),
        (Calls(multiarray.scalar, np.dtype("f8"), "text"), r"NumPy number that is not 8 bytes"),
        (np.ones(3), r"holds numpy\._core\.multiarray\._reconstruct, which is not weights"),
        (Path("a"), r"holds pathlib\.PosixPath, which is not weights"),
        (Calls(eval, "1"), r"holds builtins\.eval, which is not weights"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_else_lies_beside_the_weights_is_named_in_one_line(tmp_path, value, message, zipped):
    file = written(
        tmp_path,
        {"cls_token": torch.ones(1), "args": value},
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(ValueError, match=message + r".*; nothing in it was run$") as caught:
        read_published_tensors(file)
    assert str(caught.value).startswith(str(file))
    assert str(caught.value).isprintable()


def test_a_state_that_claims_addresses_never_reaches_numpy():
    """NumPy itself takes it, and would follow any eight bytes as an address."""
    honest = np.dtype("V8")
    honest.__setstate__(ADDRESSES)
    assert honest.hasobject
    with pytest.raises(ValueError, match=r"not a plain number"):
        NumberType("V8").__setstate__(ADDRESSES)


class Runs:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("position", ["cls_token", "optimizer", "model"])
def test_nothing_in_a_file_is_run(tmp_path, weights, position, zipped):
    marker = tmp_path / "run"
    values = {**whole(weights), position: Runs(marker)}
    file = written(tmp_path, values, _use_new_zipfile_serialization=zipped)
    marker.unlink(missing_ok=True)  # `torch.save` looks at what it writes
    with pytest.raises(ValueError, match=r"holds _?io\.open, which is not weights; nothing"):
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
        position = generator.randrange(len(content))
        damage = bytes([content[position] ^ (1 << generator.randrange(8))])
        changed.write_bytes(content[:position] + damage + content[position + 1 :])
        try:
            assert_same(read_published_tensors(changed), values)  # a byte that nobody reads
        except ValueError:
            refused += 1
    assert refused > 200


def test_a_number_that_changed_is_named_by_its_record(tmp_path):
    values = {"cls_token": torch.arange(48.0)}
    content = written(tmp_path, values).read_bytes()
    position = content.index(values["cls_token"].numpy().tobytes())
    changed = tmp_path / "changed.pth.tar"
    changed.write_bytes(content[: position + 9] + b"\xff" + content[position + 10 :])
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
    with pytest.raises(ValueError, match=r"damaged: \S+ is compressed, as in no checkpoint"):
        read_published_tensors(packed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([torch.ones(3)], r"must hold tensors by name, but holds a list"),
        ({}, r"must hold tensors by name, at its top or under 'model', but has nothing$"),
        ({"model": {}}, r"must hold tensors by name, .*, but has nothing$"),
        ({"state_dict": {"a": torch.ones(1)}, "epoch": 3}, r", but has state_dict, epoch$"),
        ({"epoch": 3, "cls_token": torch.ones(1)}, r"epoch must be a tensor, but is of type int"),
        ({3: torch.ones(1)}, r"^3 is not the name of a tensor"),
        ({"a\x1b[31m\nb": torch.ones(1)}, r"^a\[31mb is not the name of a tensor"),
        ({"a" * 10**6: torch.ones(1)}, r"^a{120}\.\.\. is not the name of a tensor"),
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


HOSTILE_TEXT = b"cposix\nsystem\n(S'exit 1'\ntR."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty$"),
        (b"hello world\n" * 100, r"is truncated, damaged, or not written by torch\.save"),
        (b'{"cls_token": [1.0]}', r"is truncated, damaged, or not written by torch\.save"),
        (bytes(1000), r"is truncated, damaged, or not written by torch\.save"),
        (pickle.dumps({"cls_token": 1}, 2), r"is truncated, damaged, or not written by torch\.sa"),
        (pickle.dumps({"cls_token": 1}, 5), r"is truncated, damaged, or not written by torch\.sa"),
        (HOSTILE_TEXT, r"holds posix\.system, which is not weights; nothing in it was run$"),
        (HOSTILE_TEXT.replace(b"sys", b"\x1b[31m sys"), r"holds posix\.\[31m system, which is not"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "other.pth.tar"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"other\.pth\.tar {message}") as caught:
        read_published_tensors(file)
    assert str(caught.value).isprintable()


def test_a_zip_of_another_kind_is_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", cls_token=np.ones(3))
    with pytest.raises(ValueError, match=r"arrays\.npz is a zip that torch\.save did not write"):
        read_published_tensors(tmp_path / "arrays.npz")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        archive.writestr("program/data.pkl", b"")
        archive.writestr("program/constants.pkl", b"")
    with pytest.raises(ValueError, match=r"program\.pt is a TorchScript program, not a file of"):
        read_published_tensors(tmp_path / "program.pt")
