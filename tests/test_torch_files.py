import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from torch_files import MARK, PROTOCOL, REDUCE, STOP, integer, name, state_dict, storage, tensor, text

from threedim.evaluation.metrics.torch_files import check_entries, not_as_published, read_state_dict

FLAT = np.arange(24, dtype=np.float32) - 5
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@pytest.fixture
def read(tmp_path):
    def read(data, file="w.pth"):
        (tmp_path / file).write_bytes(data)
        return read_state_dict(tmp_path / file)

    return read


@pytest.fixture
def refused(read):
    def refused(data, message, file="w.pth"):
        with pytest.raises(ValueError, match=message):
            read(data, file)

    return refused


def file_of(entries, legacy=False):
    return (torch_files.legacy_file if legacy else torch_files.zip_file)(state_dict(entries), {"0": FLAT})


def view(legacy, shape, strides, offset=0, count=24):
    return tensor(storage("0", "f4", count, legacy), shape, strides, offset)


WHOLE = {legacy: view(legacy, (4, 6), (6, 1)) for legacy in (False, True)}


@FORMATS
def test_reads_every_dtype_and_shape_in_order(read, legacy):
    rng = np.random.default_rng(0)
    arrays = {f"layer.{i}": rng.normal(0, 40, (2, 3, 1, 4)).astype(d) for i, d in enumerate(torch_files.KINDS)}
    arrays |= {"scalar": np.array(7, np.int64), "none": np.zeros((0, 3), np.float32), "é": np.ones(1, np.float64)}
    found = read(torch_files.write(arrays, legacy))
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array, strict=True)
        assert found[key].flags.owndata


@FORMATS
def test_views_of_one_storage(read, legacy):
    entries = {
        "all": WHOLE[legacy],
        "transposed": view(legacy, (6, 4), (1, 6)),
        "part": view(legacy, (2, 3), (6, 2), offset=7),
        "one": view(legacy, (1, 2), (2_000_000_000, 1), offset=22),
    }
    found, whole = read(file_of(entries, legacy), "w.pt"), FLAT.reshape(4, 6)
    for key, expected in zip(entries, (whole, whole.T, whole[1:3, 1::2], FLAT[None, 22:]), strict=True):
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].flags.c_contiguous


def test_memo(read):
    """torch.save writes a repeated object once and refers to it by number."""
    entries = {"a": WHOLE[True] + b"q\x07", "b": view(True, (24,), (1,)) + b"r\x08\x00\x00\x00"}
    found = read(file_of(entries | {"c": b"h\x07", "d": b"j\x08\x00\x00\x00"}, True))
    for key, shape in zip("abcd", ((4, 6), (24,)) * 2, strict=True):
        np.testing.assert_array_equal(found[key], FLAT.reshape(shape))


def old_tensor(size):
    where = storage("0", "f4", 24, True) + integer(0) + size + torch_files.numbers([6, 1])
    return name("torch._utils", "_rebuild_tensor") + MARK + where + b"t" + REDUCE


def test_python_2(read):
    """OrderedDict with a list of pairs, text as bytes, tensors from an older function, as in the LPIPS weights."""
    parameter = name("torch._utils", "_rebuild_parameter") + MARK + view(True, (24,), (1,)) + b"\x88"
    parameter += torch_files.ORDERED_DICT + b"t" + REDUCE
    pairs = b"](](U\x03old" + old_tensor(torch_files.numbers([4, 6])) + b"e]" + text("new") + b"a" + parameter + b"ae"
    pickled = PROTOCOL + name("collections", "OrderedDict") + pairs + b"\x85" + REDUCE + STOP
    found = read(torch_files.legacy_file(pickled, {"0": FLAT}))
    np.testing.assert_array_equal(found["old"], FLAT.reshape(4, 6))
    np.testing.assert_array_equal(found["new"], FLAT)


def test_parameters_of_2017(read, refused):
    """Made from a tensor, then given flags, with a type for sizes, as in the VGG16 weights."""
    size = name("torch", "Size") + torch_files.numbers([4, 6]) + b"\x85" + REDUCE
    parameter = name("torch.nn.parameter", "Parameter") + old_tensor(size) + b"\x85" + REDUCE
    for flags in (b"\x88\x89" + torch_files.ORDERED_DICT + b"\x87b", b"\x88\x89N\x87b"):
        np.testing.assert_array_equal(read(file_of({"a": parameter + flags}, True))["a"], FLAT.reshape(4, 6))
    # Other attributes would be the numbers.
    for attributes in (MARK + storage("0", "f4", 24, True) + b"K\x01))tb", b"}b", b"\x88\x89\x86b"):
        refused(file_of({"a": parameter + attributes}, True), "belongs")


def test_tensors_saved_from_a_gpu(read):
    data = file_of({"a": WHOLE[True]}, True)
    for cpu, gpu in ((b"ctorch\nFloat", b"ctorch.cuda\nFloat"), (text("cpu"), text("cuda:0"))):
        assert cpu in data
        data = data.replace(cpu, gpu)
    np.testing.assert_array_equal(read(data)["a"], FLAT.reshape(4, 6))


def hostile_pickles(marker):
    """Each would make a folder if it were unpickled."""
    argument, mkdir, allowed = text(str(marker)), name("os", "mkdir"), name("collections", "OrderedDict")
    direct = argument + b"\x85"
    return {
        "reduce": PROTOCOL + mkdir + direct + REDUCE + STOP,
        "in a state dict": state_dict({"weight": mkdir + direct + REDUCE}),
        "in attributes": PROTOCOL + torch_files.ORDERED_DICT + mkdir + direct + REDUCE + b"b" + STOP,
        "behind tensors": state_dict({"a": view(True, (24,), (1,)), "b": mkdir + direct + REDUCE}),
        "as a storage": state_dict({"a": mkdir + direct + REDUCE + b"Q"}),
        "protocol 0": b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.",
        "instance": b"(" + argument + b"ios\nmkdir\n.",
        "object": PROTOCOL + b"(" + mkdir + argument + b"o" + STOP,
        "new object": PROTOCOL + mkdir + direct + b"\x81" + STOP,
        "new allowed object": PROTOCOL + allowed + b")\x81" + STOP,
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + direct + REDUCE + STOP,
        "extension": PROTOCOL + b"\x82\x01" + direct + REDUCE + STOP,
        "eval": PROTOCOL + name("builtins", "eval") + text(f"__import__('os').mkdir({str(marker)!r})") + b"\x85R.",
        "dotted on": PROTOCOL + name("collections", "OrderedDict.__init__") + direct + REDUCE + STOP,
        "storage called": PROTOCOL + name("torch", "FloatStorage") + direct + REDUCE + STOP,
    }


@pytest.mark.parametrize("kind", hostile_pickles("x"))
def test_hostile_pickles_are_refused(tmp_path, refused, kind):
    payload, good = hostile_pickles(tmp_path / "marker")[kind], torch_files.write({"a": FLAT}, legacy=True)
    for data in (
        torch_files.zip_file(payload, {"0": FLAT}),
        payload,
        good[:15] + payload,  # as version
        torch_files.legacy_file(state_dict({}), {}, machine=payload.removeprefix(PROTOCOL)[:-1]),
        torch_files.legacy_file(payload, {"0": FLAT}),
        torch_files.legacy_file(state_dict({"a": WHOLE[True]}) + payload, {}),  # as keys
    ):
        refused(data, "not readable as a PyTorch file")
        assert not (tmp_path / "marker").exists()
    reasons = {"reduce": "asks for 'os mkdir', which tensors do not need"}
    reasons |= {"storage called": "calls 'torch FloatStorage'"}
    if kind in reasons:
        refused(payload, f"it {reasons[kind]}; nothing was executed")


@FORMATS
def test_truncated_anywhere(refused, legacy):
    whole = torch_files.write({"a": FLAT, "b": FLAT[:3]}, legacy)
    for length in range(0, len(whole), 3):
        refused(whole[:length], "w.pth: ")
    refused(whole[:-1], "w.pth: ")


@FORMATS
def test_damaged_anywhere(read, legacy):
    """Gives arrays or a ValueError, never anything else."""
    whole, rng, refused = torch_files.write({"a": FLAT, "b": FLAT[:3]}, legacy), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            assert all(isinstance(array, np.ndarray) for array in read(damaged).values())
        except ValueError:
            refused += 1
    assert refused > 100


@FORMATS
def test_tensors_stay_within_their_storage(refused, legacy):
    beyond, natural = "reaches beyond its storage", "natural numbers"
    for shape, strides, offset, message in (
        ((25,), (1,), 0, beyond),
        ((24,), (1,), 1, beyond),
        ((4, 6), (7, 1), 0, beyond),
        ((30000, 30000), (0, 0), 0, beyond),
        ((4,), (-1,), 4, natural),
        ((-4,), (1,), 0, natural),
        ((4,), (1,), -1, natural),
        ((4, 6), (1,), 0, "2 axes with 1 strides"),
    ):
        refused(file_of({"weight": view(legacy, shape, strides, offset)}, legacy), message)


@FORMATS
def test_other_contents(refused, legacy):
    for count in (23, 25, 2**31 - 1):
        refused(file_of({"weight": view(legacy, (2,), (1,), count=count)}, legacy), "storage 0 has")
    for entry, message in (
        (b"}", "'weight' is a dict, not a tensor"),
        (b"K\x01", "'weight' is a int, not a tensor"),
        (b"})s", "a str where a dict belongs"),
        (b"})K\x01s", "dictionary with a tuple for a key"),
        (b"h\x07", "damaged"),
        (b"S'\\|'\n", "invalid escape"),
        (WHOLE[legacy] + b"20", "has the opcode DUP, which tensors do not need; nothing was executed"),
        (storage("0", "f4", 24, legacy).replace(b"storage", b"garbage"), "other than a storage"),
    ):
        refused(file_of({"weight": entry}, legacy), message)
    entries = {"a": view(legacy, (24,), (1,)), "b": tensor(storage("0", "i4", 24, legacy), (24,), (1,))}
    refused(file_of(entries, legacy), "'b' contradicts")


def test_legacy_head(refused):
    good, big = state_dict({"a": WHOLE[True]}), torch_files.MACHINE.replace(b"\x88u", b"\x89u")
    refused(torch_files.legacy_file(good, {"0": FLAT}, magic=0x1950A86A20F9469CFC6D), "magic number")
    refused(torch_files.legacy_file(good, {"0": FLAT}, machine=big), "big-endian")
    refused(torch_files.legacy_file(good, {"1": FLAT}), "list of storages")
    refused(torch_files.legacy_file(good, {}), "list of storages")
    refused(b"model/" + bytes(251) + b"ustar" + bytes(300), r"before PyTorch 0\.1\.10")
    refused(b"<!DOCTYPE html>", "error page")


def test_order_of_legacy_storages(read):
    """The file lists the keys of its storages in any order; here they have the same size."""
    entries = {key: tensor(storage(key, "f4", 3, True), (3,), (1,)) for key in "012"}
    data = torch_files.legacy_file(state_dict(entries), {key: FLAT[:3] + int(key) for key in "201"})
    for key, array in read(data).items():
        np.testing.assert_array_equal(array, FLAT[:3] + int(key))


def test_zip_archive(refused):
    good, other = state_dict({"a": WHOLE[False]}), io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", b"")
    refused(torch_files.zip_file(good, {}), "no weights/data/0")
    refused(torch_files.zip_file(good, {"0": FLAT}, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")
    refused(torch_files.zip_file(good, {"0": FLAT}, byteorder=b"big"), "big-endian")
    refused(other.getvalue(), "0 files data.pkl")


def test_npz_and_safetensors(tmp_path, refused):
    arrays = {"a.weight": FLAT.reshape(4, 6), "b": np.array(3, np.int64), "c": FLAT[:2].astype(np.float16)}
    np.savez(tmp_path / "w.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    for file in ("w.npz", "w.safetensors"):
        found, whole = read_state_dict(tmp_path / file), (tmp_path / file).read_bytes()
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[key], array, strict=True)
        for length in (0, 5, len(whole) // 2, len(whole) - 3):
            refused(whole[:length], "not a readable", f"damaged{(tmp_path / file).suffix}")
    refused(safetensors.numpy.save({"a": FLAT.astype(ml_dtypes.bfloat16)}), "BF16", "w.safetensors")
    np.save(tmp_path / "one.npy", FLAT)
    data = (tmp_path / "w.npz").read_bytes()
    refused(
        data.replace(bytes.fromhex("0000803f"), bytes.fromhex("0100803f"), 1),
        "the checksum of .* does not match",
        "copy.npz",
    )
    at = data.index(b"PK\1\2")
    length = len(data) - 22 - at - 46 - len("a.weight.npy")  # of a comment that covers the rest
    refused(
        data[: at + 32] + length.to_bytes(2, "little") + data[at + 34 :],
        "3 entries are listed, but 1 found",
        "copy.npz",
    )
    refused(data[: at + 16] + bytes(8) + data[at + 24 :], "is no array", "copy.npz")  # checksum and length of the data
    np.savez(tmp_path / "objects.npz", a=np.array([{"key": 1}], object))
    for file in ("one.npy", "objects.npz"):
        refused((tmp_path / file).read_bytes(), r"not a readable \.npz of plain arrays", "copy.npz")


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"weights must be in a file named \.npz, \.safetensors, \.pth"):
        read_state_dict(tmp_path / "weights.h5")


def test_check_entries_lists_everything():
    shapes = {"a": (2, 3), "b": (), "c": (4,)}
    check_entries({"c": np.zeros(4), "a": np.zeros((2, 3)), "b": np.zeros(())}, shapes, "file.npz")
    with pytest.raises(ValueError, match=r"file\.npz: .* 3 entries differ") as error:
        check_entries({"a": np.zeros((3, 2)), "c": np.zeros(4), "d": np.zeros(5)}, shapes, "file.npz")
    many = {f"n{index}": (1,) for index in range(600)}
    with pytest.raises(ValueError, match=r"600 entries differ(.|\n)*\n  and 580 more$"):
        check_entries({}, many, "file.npz")
    for line in ("missing: b ()", "not expected: d (5,)", "a is (3, 2), must be (2, 3)"):
        assert line in str(error.value)
    many = {f"entry{i}": np.zeros(1) for i in range(1000)}
    with pytest.raises(ValueError, match="1003 entries differ") as error:
        check_entries(many, shapes, "file.npz")
    assert len(str(error.value).splitlines()) < 30
    check_entries({"a": np.zeros((2, 3)), "b": np.zeros(())}, shapes, "file.npz", unused=("c",))
    with pytest.raises(ValueError, match=r"c is \(5,\), must be \(4,\)"):
        check_entries({"a": np.zeros((2, 3)), "b": np.zeros(()), "c": np.zeros(5)}, shapes, "file.npz", unused=("c",))


def test_names_of_data_parallel_are_named_in_one_line():
    with pytest.raises(ValueError, match=r"file\.pth: all names begin with 'module\.'.*DataParallel") as error:
        check_entries({"module.a": np.zeros(3), "module.b": np.zeros(2)}, {"a": (3,), "b": (2,)}, "file.pth")
    assert "\n" not in str(error.value)


def test_other_files_than_the_published_are_named():
    file = {"name": "own.npz", "sha256": "12345678" + 56 * "0"}
    assert not_as_published("FID", file, "12345678") == []
    (warning,) = not_as_published("FID", file, "87654321")
    assert warning.startswith("FID: own.npz is not the published file of weights (87654321...) by its sha256")
