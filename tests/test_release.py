"""Unpacking the release's zips: whole or not at all, and never outside of the target."""

import stat
import zipfile

import pytest
from synthetic import make_objects

from threedim import files
from threedim.data import release
from threedim.data.objects import find_objects, read_object
from threedim.errors import UserError


def zip_folder(folder, archive, extra=()):
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                opened.write(path, path.relative_to(folder.parent))
        for name, content in extra:
            opened.writestr(name, content)


@pytest.fixture
def source(tmp_path):
    """A folder with chairs_train.zip, nested as released."""
    made = tmp_path / "made/chairs_train"
    make_objects(made / "chairs_2.0_train", count=2)
    (tmp_path / "source").mkdir()
    zip_folder(made, tmp_path / "source/chairs_train.zip", [("__MACOSX/chairs_train/._x", b"resource fork")])
    return tmp_path / "source"


def link_entry():
    entry = zipfile.ZipInfo("chairs_train/link")
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def test_split_from_zip_is_unpacked_once(tmp_path, source):
    folder = release.find_split(source, "chairs_train", tmp_path / "unpacked")
    assert folder == tmp_path / "unpacked/chairs_train"
    assert [path.name for path in find_objects(folder)] == ["object_000", "object_001"]
    assert len(read_object(find_objects(folder)[1]).pngs) == 4
    assert sorted(path.name for path in folder.iterdir()) == [".unpacked_from", "chairs_train"]
    (folder / "mark").write_text("")
    assert release.find_split(source, "chairs_train", tmp_path / "unpacked") == folder
    assert (folder / "mark").exists()
    zip_folder(tmp_path / "made/chairs_train", source / "chairs_train.zip", [("chairs_train/new.txt", b"new")])
    with pytest.raises(FileExistsError, match="was not unpacked from"):
        release.find_split(source, "chairs_train", tmp_path / "unpacked")
    (source / "chairs_train").mkdir()
    assert release.find_split(source, "chairs_train", tmp_path / "unpacked") == source / "chairs_train"


@pytest.mark.parametrize(
    "entry", ["../x.txt", "chairs_train/../../x.txt", "/tmp/x.txt", "..\\x.txt", "C:\\x.txt", "C:/x.txt", link_entry()]
)
def test_dangerous_entries_are_refused_before_anything_is_written(tmp_path, entry):
    folders = make_objects(tmp_path / "made/chairs_train", count=1, views=1)
    zip_folder(folders[0].parent, tmp_path / "chairs_train.zip", [(entry, b"/etc/passwd")])
    before = sorted(tmp_path.rglob("*"))
    message = "outside of the target" if isinstance(entry, str) else "is a link"
    with pytest.raises(ValueError, match=rf"chairs_train\.zip: .*{message}"):
        release.unpack_zip(tmp_path / "chairs_train.zip", tmp_path / "unpacked/chairs_train")
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_zips_leave_nothing(tmp_path, source):
    archive = source / "chairs_train.zip"
    data = archive.read_bytes()
    flipped = data[:200] + bytes([data[200] ^ 255]) + data[201:]  # inside the first file
    for content in (b"<html>Quota exceeded</html>", data[: len(data) // 2], flipped):
        archive.write_bytes(content)
        with pytest.raises(ValueError, match=r"chairs_train\.zip: not a complete zip file"):
            release.unpack_zip(archive, tmp_path / "unpacked/chairs_train")
        assert list((tmp_path / "unpacked").glob("*")) == []
    zip_folder(tmp_path / "nothing", archive, [("__MACOSX/x", b"")])
    with pytest.raises(ValueError, match="contains no files"):
        release.unpack_zip(archive, tmp_path / "a")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damaged_entries_of_any_method_are_named(tmp_path, method):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w", method) as opened:
        opened.writestr("a", bytes(range(256)) * 9)
    whole = archive.read_bytes()
    directory = whole.rindex(b"PK\1\2")
    for start, content in ((31, b"\xff" * 20), (directory + 16, bytes(8))):  # the data; checksum and length of the data
        archive.write_bytes(whole[:start] + content + whole[start + len(content) :])
        with pytest.raises(UserError, match=r"x\.zip: not a complete zip file"):
            release.unpack_zip(archive, tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "cut",
    [lambda at, data: data[: at + 32] + (39 * 49).to_bytes(2, "little") + data[at + 34 :], lambda _, data: data[4:]],
)
def test_a_damaged_directory_hides_nothing(tmp_path, cut):
    """The length of an entry's comment, which covers the entries after it; and bytes that are missing before them."""
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for index in range(40):
            opened.writestr(f"{index:03d}", b"content")
    data = archive.read_bytes()
    archive.write_bytes(cut(data.index(b"PK\1\2"), data))
    with pytest.raises(UserError, match=r"x\.zip: not a complete zip file"):
        release.unpack_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_entries_than_two_bytes_count(tmp_path):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for index in range(65_600):
            opened.writestr(zipfile.ZipInfo(f"{index}"), b"")
    with zipfile.ZipFile(archive) as opened:
        files.check_zip(opened)
    data = archive.read_bytes()
    at = data.index(b"PK\1\2")
    archive.write_bytes(data[: at + 32] + (47 * 4).to_bytes(2, "little") + data[at + 34 :])
    with zipfile.ZipFile(archive) as opened, pytest.raises(zipfile.BadZipFile, match="65600 entries are listed, but"):
        files.check_zip(opened)


def test_absent_split_says_what_to_download_and_where_to_put_it(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        release.find_split(tmp_path / "SRN", "chairs_test", tmp_path / "unpacked")
    for words in ("chairs_train.zip, chairs_val.zip, chairs_test.zip", "Google Drive", str(tmp_path / "SRN")):
        assert words in str(raised.value)


def test_backslashes_separate_folders(tmp_path, source):
    with zipfile.ZipFile(source / "chairs_train.zip") as old, zipfile.ZipFile(tmp_path / "new.zip", "w") as new:
        new.writestr("chairs_train\\", b"")
        for name in old.namelist():
            new.writestr(name.replace("/", "\\"), old.read(name))
    folder = release.unpack_zip(tmp_path / "new.zip", tmp_path / "unpacked")
    assert [path.name for path in find_objects(folder)] == ["object_000", "object_001"]
    assert release.unpack_zip(tmp_path / "new.zip", tmp_path / "unpacked") == folder
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as twice:
        twice.writestr("a/b", b"1")
        twice.writestr("a\\b", b"2")
    with pytest.raises(ValueError, match="two entries 'a/b'"):
        release.unpack_zip(tmp_path / "twice.zip", tmp_path / "other")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (8, 9, r"compression method 9 \(Deflate64\) of 'a/b.txt' is not supported; unpack it yourself"),
        (8, 77, r"method 77 \(unknown\)"),
        (6, 1, r"entry 'a/b.txt' is encrypted; unpack it yourself"),
    ],
)
def test_methods_that_python_does_not_read_are_named(tmp_path, place, value, message):
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a/b.txt", b"content")
    data = bytearray(archive.read_bytes())
    data[place] = data[data.index(b"PK\1\2") + place + 2] = value
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=rf"x\.zip: .*{message}"):
        release.unpack_zip(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
