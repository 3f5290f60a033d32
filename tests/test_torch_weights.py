import io
import zipfile

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files
from torch_files import MARK, PROTOCOL, REDUCE, STOP, dense, integer, name, state_dict, storage, tensor, text

from threedim.evaluation.metrics.torch_files import check_entries, read_state_dict

FLAT = np.arange(24, dtype=np.float32) - 5
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


def write_file(path, data):
    path.write_bytes(data)
    return path


def file_of(entries, legacy, storages=None):
    write = torch_files.legacy_file if legacy else torch_files.zip_file
    return write(state_dict(entries), {"0": FLAT} if storages is None else storages)


def view(legacy, shape, strides, offset=0, count=24):
    return tensor(storage("0", "f4", count, legacy), shape, strides, offset)


@FORMATS
def test_reads_every_dtype_and_shape_in_order(tmp_path, legacy):
    rng = np.random.default_rng(0)
    arrays = {f"layer.{i}": rng.normal(0, 40, (2, 3, 1, 4)).astype(d) for i, d in enumerate(torch_files.KINDS)}
    arrays |= {"scalar": np.array(7, np.int64), "none": np.zeros((0, 3), np.float32), "é": np.ones(1, np.float64)}
    found = read_state_dict(write_file(tmp_path / "w.pth", torch_files.write(arrays, legacy)))
    assert list(found) == list(arrays)
    for key, array in arrays.items():
        assert found[key].dtype == array.dtype
        assert found[key].shape == array.shape
        np.testing.assert_array_equal(found[key], array)
        assert found[key].flags.owndata
        assert found[key].flags.writeable


@FORMATS
def test_views_of_one_storage(tmp_path, legacy):
    entries = {
        "all": view(legacy, (4, 6), (6, 1)),
        "transposed": view(legacy, (6, 4), (1, 6)),
        "part": view(legacy, (2, 3), (6, 2), offset=7),
        "one": view(legacy, (1, 2), (2_000_000_000, 1), offset=22),
    }
    found = read_state_dict(write_file(tmp_path / "w.pt", file_of(entries, legacy)))
    whole = FLAT.reshape(4, 6)
    for key, expected in zip(entries, (whole, whole.T, whole[1:3, 1::2], FLAT[None, 22:]), strict=True):
        np.testing.assert_array_equal(found[key], expected)
        assert found[key].flags.c_contiguous


def test_files_of_python_2_and_parameters(tmp_path):
    """Its OrderedDict came with a list of pairs, its text as bytes, and its tensors from an older function."""
    stored = storage("0", "f4", 24, True)
    old = name("torch._utils", "_rebuild_tensor") + MARK + stored + integer(0) + torch_files.numbers([4, 6])
    old += torch_files.numbers([6, 1]) + b"t" + REDUCE
    parameter = name("torch._utils", "_rebuild_parameter") + MARK + view(True, (24,), (1,)) + b"\x88"
    parameter += torch_files.ORDERED_DICT + b"t" + REDUCE
    pairs = b"](](U\x03oldq\x05" + old + b"e](" + text("parameter") + parameter + b"ee"
    pickled = PROTOCOL + name("collections", "OrderedDict") + pairs + b"\x85" + REDUCE + STOP
    found = read_state_dict(write_file(tmp_path / "w.pth", torch_files.legacy_file(pickled, {"0": FLAT})))
    np.testing.assert_array_equal(found["old"], FLAT.reshape(4, 6))
    np.testing.assert_array_equal(found["parameter"], FLAT)


def test_files_of_2017(tmp_path):
    """Their state dicts may hold parameters: made from a tensor, then given flags. Sizes had a type of their own."""
    size = name("torch", "Size") + torch_files.numbers([4, 6]) + b"\x85" + REDUCE
    where = storage("0", "f4", 24, True) + integer(0) + size + torch_files.numbers([6, 1])
    old = name("torch._utils", "_rebuild_tensor") + MARK + where + b"t" + REDUCE
    parameter = name("torch.nn.parameter", "Parameter") + old + b"\x85" + REDUCE
    flags = b"\x88\x89" + torch_files.ORDERED_DICT + b"\x87b"
    for attributes in (flags, b"\x88\x89N\x87b"):
        pickled = state_dict({"weight": parameter + attributes})
        found = read_state_dict(write_file(tmp_path / "w.pth", torch_files.legacy_file(pickled, {"0": FLAT})))
        np.testing.assert_array_equal(found["weight"], FLAT.reshape(4, 6))
    # Other attributes would be the numbers.
    for attributes in (MARK + storage("0", "f4", 24, True) + b"K\x01))tb", b"}b", b"\x88\x89\x86b"):
        pickled = state_dict({"weight": parameter + attributes})
        with pytest.raises(ValueError, match="belongs"):
            read_state_dict(write_file(tmp_path / "w.pth", torch_files.legacy_file(pickled, {"0": FLAT})))


def test_files_written_from_a_gpu(tmp_path):
    data = file_of({"a": view(True, (4, 6), (6, 1))}, True)
    for cpu, gpu in ((b"ctorch\nFloat", b"ctorch.cuda\nFloat"), (text("cpu"), text("cuda:0"))):
        assert cpu in data
        data = data.replace(cpu, gpu)
    found = read_state_dict(write_file(tmp_path / "w.pth", data))
    np.testing.assert_array_equal(found["a"], FLAT.reshape(4, 6))


def hostile_pickles(marker):
    """Each would make a folder if it were unpickled."""
    argument = text(str(marker))
    direct = argument + b"\x85"
    mkdir = name("os", "mkdir")
    return {
        "reduce": PROTOCOL + mkdir + direct + REDUCE + STOP,
        "in a state dict": state_dict({"weight": mkdir + direct + REDUCE}),
        "in attributes": PROTOCOL + torch_files.ORDERED_DICT + mkdir + direct + REDUCE + b"b" + STOP,
        "hidden behind tensors": state_dict({"a": view(True, (24,), (1,)), "b": mkdir + direct + REDUCE}),
        "as a storage": state_dict({"a": mkdir + direct + REDUCE + b"Q"}),
        "protocol 0": b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR.",
        "instance": b"(" + argument + b"ios\nmkdir\n.",
        "object": PROTOCOL + b"(" + mkdir + argument + b"o" + STOP,
        "new object": PROTOCOL + mkdir + direct + b"\x81" + STOP,
        "stack global": b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + direct + REDUCE + STOP,
        "extension": PROTOCOL + b"\x82\x01" + direct + REDUCE + STOP,
        "eval": PROTOCOL + name("builtins", "eval") + text(f"__import__('os').mkdir({str(marker)!r})") + b"\x85R.",
        "allowed name, dotted on": PROTOCOL + name("collections", "OrderedDict.__init__") + direct + REDUCE + STOP,
        "allowed name called": PROTOCOL + name("torch", "FloatStorage") + direct + REDUCE + STOP,
    }


@pytest.mark.parametrize("kind", hostile_pickles("x"))
def test_hostile_pickles_are_refused_wherever_they_are(tmp_path, kind):
    marker = tmp_path / "marker"
    payload = hostile_pickles(marker)[kind]
    good = torch_files.write({"a": FLAT}, legacy=True)
    files = {
        "zip": torch_files.zip_file(payload, {"0": FLAT}),
        "bare": payload,
        "as version": good[:15] + payload,
        "as machine": torch_files.legacy_file(state_dict({}), {}, machine=payload.removeprefix(PROTOCOL)[:-1]),
        "as tensors": torch_files.legacy_file(payload, {"0": FLAT}),
        "as keys": torch_files.legacy_file(state_dict({"a": view(True, (24,), (1,))}) + payload, {}),
    }
    for place, data in files.items():
        with pytest.raises(ValueError, match=r"w\.pth: not readable as a PyTorch file"):
            read_state_dict(write_file(tmp_path / "w.pth", data))
        assert not marker.exists(), place


def test_says_which_function_was_asked_for(tmp_path):
    payload = hostile_pickles(tmp_path / "marker")["reduce"]
    with pytest.raises(ValueError, match=r"asks for 'os mkdir', which tensors do not need; nothing was executed"):
        read_state_dict(write_file(tmp_path / "w.pth", torch_files.zip_file(payload, {})))


@FORMATS
def test_truncated_anywhere(tmp_path, legacy):
    whole = torch_files.write({"a": FLAT, "b": FLAT[:3]}, legacy)
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"w\.pth"):
            read_state_dict(write_file(tmp_path / "w.pth", whole[:length]))


@FORMATS
def test_damaged_anywhere(tmp_path, legacy):
    """Never anything but arrays or a ValueError."""
    whole, rng, refused = torch_files.write({"a": FLAT, "b": FLAT[:3]}, legacy), np.random.default_rng(0), 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        try:
            found = read_state_dict(write_file(tmp_path / "w.pth", damaged))
        except ValueError:
            refused += 1
        else:
            assert all(isinstance(array, np.ndarray) for array in found.values())
    assert refused > 500


@FORMATS
@pytest.mark.parametrize(
    ("shape", "strides", "offset", "message"),
    [
        ((25,), (1,), 0, "reaches beyond its storage"),
        ((24,), (1,), 1, "reaches beyond its storage"),
        ((4, 6), (7, 1), 0, "reaches beyond its storage"),
        ((30000, 30000), (0, 0), 0, "reaches beyond its storage"),
        ((4,), (-1,), 4, "natural numbers"),
        ((-4,), (1,), 0, "natural numbers"),
        ((4,), (1,), -1, "natural numbers"),
        ((4, 6), (1,), 0, "2 axes with 1 strides"),
    ],
)
def test_tensors_stay_within_their_storage(tmp_path, legacy, shape, strides, offset, message):
    data = file_of({"weight": view(legacy, shape, strides, offset)}, legacy)
    with pytest.raises(ValueError, match=message):
        read_state_dict(write_file(tmp_path / "w.pth", data))


@FORMATS
@pytest.mark.parametrize("count", [23, 25, 2**31 - 1])
def test_storages_of_another_size(tmp_path, legacy, count):
    data = file_of({"weight": view(legacy, (2,), (1,), count=count)}, legacy)
    with pytest.raises(ValueError, match="storage 0 has"):
        read_state_dict(write_file(tmp_path / "w.pth", data))


@FORMATS
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (b"}", "'weight' is a dict, not a tensor"),
        (b"K\x01", "'weight' is a int, not a tensor"),
        (b"N", "'weight' is a NoneType, not a tensor"),
        (b"})s", "a str where a dict belongs"),
        (b"})K\x01s", "dictionary with a tuple for a key"),
        (b"h\x07", "damaged"),
    ],
)
def test_other_contents(tmp_path, legacy, entry, message):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write_file(tmp_path / "w.pth", file_of({"weight": entry}, legacy, {})))


def test_legacy_head(tmp_path):
    good = state_dict({"a": view(True, (24,), (1,))})
    big = torch_files.MACHINE.replace(b"\x88u", b"\x89u")
    for data, message in (
        (torch_files.legacy_file(good, {"0": FLAT}, magic=0x1950A86A20F9469CFC6D), "magic number"),
        (torch_files.legacy_file(good, {"0": FLAT}, machine=big), "big-endian"),
        (torch_files.legacy_file(good, {"1": FLAT}), "list of storages"),
        (torch_files.legacy_file(good, {}), "list of storages"),
        (b"model/" + bytes(251) + b"ustar" + bytes(300), r"before PyTorch 0\.1\.10"),
        (b"<!DOCTYPE html>", "error page"),
        (b"", "no end|exhausted|damaged"),
    ):
        with pytest.raises(ValueError, match=message):
            read_state_dict(write_file(tmp_path / "w.pth", data))


def test_zip_archive(tmp_path):
    good = state_dict({"a": view(False, (24,), (1,))})
    other = io.BytesIO()
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", b"")
    for data, message in (
        (torch_files.zip_file(good, {}), "no weights/data/0"),
        (torch_files.zip_file(good, {"0": FLAT}, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted"),
        (torch_files.zip_file(good, {"0": FLAT}, byteorder=b"big"), "big-endian"),
        (other.getvalue(), "0 files data.pkl"),
    ):
        with pytest.raises(ValueError, match=message):
            read_state_dict(write_file(tmp_path / "w.pth", data))


def test_contradicting_storages(tmp_path):
    entries = {"a": view(False, (24,), (1,)), "b": tensor(storage("0", "i4", 24, False), (24,), (1,))}
    with pytest.raises(ValueError, match="'b' contradicts"):
        read_state_dict(write_file(tmp_path / "w.pth", file_of(entries, False)))


def test_npz_and_safetensors(tmp_path):
    arrays = {"a.weight": FLAT.reshape(4, 6), "b": np.array(3, np.int64), "c": FLAT[:2].astype(np.float16)}
    np.savez(tmp_path / "w.npz", **arrays)
    safetensors.numpy.save_file(arrays, tmp_path / "w.safetensors")
    for file in ("w.npz", "w.safetensors"):
        found = read_state_dict(tmp_path / file)
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert found[key].dtype == array.dtype
            np.testing.assert_array_equal(found[key], array)
        whole = (tmp_path / file).read_bytes()
        for length in (0, 5, len(whole) // 2, len(whole) - 3):
            damaged = write_file(tmp_path / f"damaged{(tmp_path / file).suffix}", whole[:length])
            with pytest.raises(ValueError, match=r"damaged\.(npz|safetensors): not a readable"):
                read_state_dict(damaged)


def test_npz_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.array([{"key": 1}], object))
    with pytest.raises(ValueError, match=r"not a readable \.npz of plain arrays"):
        read_state_dict(tmp_path / "w.npz")


def test_single_array_is_no_npz(tmp_path):
    np.save(tmp_path / "w.npy", FLAT)
    (tmp_path / "w.npy").rename(tmp_path / "w.npz")
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        read_state_dict(tmp_path / "w.npz")


def test_safetensors_in_bfloat16(tmp_path):
    safetensors.numpy.save_file({"a": FLAT.astype(ml_dtypes.bfloat16)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="BF16"):
        read_state_dict(tmp_path / "w.safetensors")


def test_paths(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth: no such file"):
        read_state_dict(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"weights are read from files named \.npz, \.safetensors, \.pth"):
        read_state_dict(tmp_path / "weights.h5")


def test_check_entries_lists_everything():
    shapes = {"a": (2, 3), "b": (), "c": (4,)}
    check_entries({"c": np.zeros(4), "a": np.zeros((2, 3)), "b": np.zeros(())}, shapes, "file.npz")
    with pytest.raises(ValueError, match=r"file\.npz: .* 3 entries differ") as error:
        check_entries({"a": np.zeros((3, 2)), "c": np.zeros(4), "d": np.zeros(5)}, shapes, "file.npz")
    for line in ("missing: b ()", "not expected: d (5,)", "a is (3, 2), must be (2, 3)"):
        assert line in str(error.value)
    assert dense(np.zeros((2, 3), np.float32)) == ((2, 3), [3, 1])
