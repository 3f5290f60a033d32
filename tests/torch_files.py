"""PyTorch files written byte by byte, as torch.save writes them, and as somebody with bad intentions might."""

import io
import struct
import zipfile

import ml_dtypes
import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "i2": "Short", "i1": "Char"}
KINDS |= {"u1": "Byte", "?": "Bool", ml_dtypes.bfloat16: "BFloat16"}
KINDS = {np.dtype(dtype): kind for dtype, kind in KINDS.items()}
PROTOCOL, STOP, MARK, REDUCE = b"\x80\x02", b".", b"(", b"R"
MACHINE = b"}(X\x10\x00\x00\x00protocol_versionM\xe9\x03X\x0d\x00\x00\x00little_endian\x88u"


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value):
    return b"J" + struct.pack("<i", value)


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def numbers(values):
    return MARK + b"".join(integer(value) for value in values) + b"t"


ORDERED_DICT = name("collections", "OrderedDict") + b")" + REDUCE


def storage(key, dtype, count, legacy):
    kind = name("torch", f"{KINDS[np.dtype(dtype)]}Storage")
    return MARK + text("storage") + kind + text(key) + text("cpu") + integer(count) + b"N" * legacy + b"tQ"


def tensor(stored, shape, strides, offset=0):
    where = stored + integer(offset) + numbers(shape) + numbers(strides)
    return name("torch._utils", "_rebuild_tensor_v2") + MARK + where + b"\x89" + ORDERED_DICT + b"tR"


def state_dict(entries):
    """Pickle of an OrderedDict of those pickled values, with the attribute that torch gives it."""
    items = b"".join(text(key) + value for key, value in entries.items())
    metadata = b"}" + text("_metadata") + ORDERED_DICT + text("") + b"}" + text("version") + b"K\x01sss"
    return PROTOCOL + ORDERED_DICT + MARK + items + b"u" + metadata + b"b" + STOP


def dense(array):
    """Shape and strides in elements of a contiguous array."""
    return array.shape, [step // array.itemsize for step in np.empty(array.shape, array.dtype).strides]


def zip_file(pickled, storages, compression=zipfile.ZIP_STORED, byteorder=b"little"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("weights/data.pkl", pickled)
        archive.writestr("weights/byteorder", byteorder)
        for key, array in storages.items():
            archive.writestr(f"weights/data/{key}", array.tobytes())
        archive.writestr("weights/version", b"3\n")
    return buffer.getvalue()


def legacy_file(pickled, storages, magic=0x1950A86A20F9469CFC6C, machine=MACHINE):
    keys = PROTOCOL + b"](" + b"".join(text(key) for key in storages) + b"e" + STOP
    head = PROTOCOL + b"\x8a\x0a" + magic.to_bytes(10, "little") + STOP + PROTOCOL + b"M\xe9\x03" + STOP
    data = b"".join(struct.pack("<q", array.size) + array.tobytes() for array in storages.values())
    return head + PROTOCOL + machine + STOP + pickled + keys + data


def write(arrays, legacy):
    """A file of those arrays, each with its own storage."""
    storages = {str(i): np.asarray(array) for i, array in enumerate(arrays.values())}
    entries = {
        entry: tensor(storage(key, array.dtype, array.size, legacy), *dense(array))
        for entry, (key, array) in zip(arrays, storages.items(), strict=True)
    }
    return (legacy_file if legacy else zip_file)(state_dict(entries), storages)
