"""Image files: nothing that exists is ever touched, nothing that leads elsewhere is ever taken."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qorumctl import images
from qorumctl.errors import RefusedError
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, Source

MIB = 1 << 20
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for devices")


def raw(path: Path) -> FileSource:
    return FileSource(path=str(path))


def qcow2(path: Path) -> FileSource:
    return FileSource(path=str(path), format="qcow2")


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


class TestInspect:
    def test_a_raw_file_is_as_long_as_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"x" * 1024)
        info = images.inspect(raw(tmp_path / "a"))
        assert (info.exists, info.size_bytes) == (True, 1024)

    def test_a_missing_file_does_not_exist(self, tmp_path: Path) -> None:
        assert images.inspect(raw(tmp_path / "a")) == images.ImageInfo(str(tmp_path / "a"), exists=False)

    @pytest.mark.parametrize("compat", ["0.10", "1.1"])
    def test_a_qcow2_is_as_long_as_its_header_says(self, tmp_path: Path, compat: str) -> None:
        qemu_img("create", "-f", "qcow2", "-o", f"compat={compat}", tmp_path / "a", "10M")
        assert images.inspect(qcow2(tmp_path / "a")).size_bytes == 10 * MIB

    def test_a_raw_file_may_hold_anything_a_qcow2_header_too(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(images.QCOW2_MAGIC + bytes(508))
        assert images.inspect(raw(tmp_path / "a")).size_bytes == 512

    @pytest.mark.parametrize("content", [b"", b"QFI\xfb", bytes(512), b"QFI" + bytes(509)])
    def test_a_qcow2_without_its_header_is_refused(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(RefusedError, match="is not a qcow2 image"):
            images.inspect(qcow2(tmp_path / "a"))

    def test_a_backing_file_is_refused(self, tmp_path: Path) -> None:
        qemu_img("create", "-f", "raw", tmp_path / "base", "1M")
        qemu_img("create", "-f", "qcow2", "-b", tmp_path / "base", "-F", "raw", tmp_path / "a")
        with pytest.raises(RefusedError, match="backing file"):
            images.inspect(qcow2(tmp_path / "a"))

    def test_an_external_data_file_is_refused(self, tmp_path: Path) -> None:
        qemu_img("create", "-f", "qcow2", "-o", f"data_file={tmp_path / 'data'}", tmp_path / "a", "1M")
        with pytest.raises(RefusedError, match="data in another file"):
            images.inspect(qcow2(tmp_path / "a"))

    @pytest.mark.parametrize(
        ("at", "byte", "words"), [(7, 4, "version 4"), (35, 2, "is encrypted"), (79, 2, "marked as corrupt")]
    )
    def test_a_header_that_nobody_should_write_to_is_refused(
        self, tmp_path: Path, at: int, byte: int, words: str
    ) -> None:
        qemu_img("create", "-f", "qcow2", tmp_path / "a", "1M")
        with (tmp_path / "a").open("r+b") as file:
            file.seek(at)
            file.write(bytes([byte]))
        with pytest.raises(RefusedError, match=words):
            images.inspect(qcow2(tmp_path / "a"))

    def test_a_symbolic_link_leads_to_a_file_or_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("real")
        with pytest.raises(RefusedError, match="symbolic link to something that does not exist"):
            images.inspect(raw(tmp_path / "link"))
        (tmp_path / "real").write_bytes(bytes(512))
        assert images.inspect(raw(tmp_path / "link")).size_bytes == 512

    def test_what_is_no_regular_file_is_refused(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
            with pytest.raises(RefusedError, match="not a regular file"):
                images.inspect(raw(path))
        with pytest.raises(RefusedError, match="cannot be opened: Not a directory"):
            images.inspect(raw(tmp_path / "file" / "a"))


class TestCreateExclusive:
    def test_a_raw_image_has_its_length_and_is_ours_alone(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            fd = images.create_exclusive(str(tmp_path / "a"), 3 * MIB, "raw")
        finally:
            os.umask(before)
        facts = os.fstat(fd)
        assert (facts.st_size, stat.S_IMODE(facts.st_mode), os.get_inheritable(fd)) == (3 * MIB, 0o600, False)
        os.close(fd)

    def test_a_qcow2_image_is_empty_until_it_is_formatted(self, tmp_path: Path) -> None:
        fd = images.create_exclusive(str(tmp_path / "a"), 3 * MIB, "qcow2")
        assert os.fstat(fd).st_size == 0
        os.close(fd)

    def test_nothing_that_exists_is_touched(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"precious")
        (tmp_path / "link").symlink_to("file")
        (tmp_path / "dangling").symlink_to("nowhere")
        for name in ("file", "link", "dangling"):
            with pytest.raises(RefusedError, match="exists already"):
                images.create_exclusive(str(tmp_path / name), 512, "raw")
        assert (tmp_path / "file").read_bytes() == b"precious"
        assert not (tmp_path / "nowhere").exists()

    def test_the_directory_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match=f"The directory {tmp_path}/none does not exist"):
            images.create_exclusive(str(tmp_path / "none" / "a"), 512, "raw")

    def test_a_length_that_the_file_system_cannot_hold_leaves_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match="cannot be made 8388608 TiB long"):
            images.create_exclusive(str(tmp_path / "a"), (1 << 63) - 512, "raw")
        assert list(tmp_path.iterdir()) == []


class TestRemoveCreated:
    def test_removes_what_was_created(self, tmp_path: Path) -> None:
        fd = images.create_exclusive(str(tmp_path / "a"), 512, "raw")
        assert images.remove_created(fd, str(tmp_path / "a"))
        assert not images.remove_created(fd, str(tmp_path / "a"))
        os.close(fd)
        assert list(tmp_path.iterdir()) == []

    def test_leaves_what_somebody_else_put_there(self, tmp_path: Path) -> None:
        fd = images.create_exclusive(str(tmp_path / "a"), 512, "raw")
        (tmp_path / "a").rename(tmp_path / "ours")
        (tmp_path / "a").write_bytes(b"theirs")
        assert not images.remove_created(fd, str(tmp_path / "a"))
        os.close(fd)
        assert (tmp_path / "a").read_bytes() == b"theirs"


class TestFreeSpace:
    def test_new_images_are_summed_up_per_file_system(self, tmp_path: Path) -> None:
        usage = os.statvfs(tmp_path)
        half = usage.f_bavail * usage.f_frsize // 2
        new: list[Source] = [raw(tmp_path / name) for name in "abc"]
        images.check_free_space(new[:1], half)
        with pytest.raises(RefusedError, match=rf"{tmp_path} has .* free, and the new images there need .*iB\."):
            images.check_free_space(new, half)

    def test_images_that_exist_and_those_elsewhere_need_none(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        sources: list[Source] = [raw(tmp_path / "a"), DeviceSource(path="/dev/x"), NbdSource(uri="nbd://h/e")]
        images.check_free_space(sources, 1 << 60)

    def test_a_missing_directory_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match=f"The directory {tmp_path}/none does not exist"):
            images.check_free_space([qcow2(tmp_path / "none" / "a")], 512)


def copies(*sources: Source) -> list[CopySpec]:
    return [CopySpec(name=name, source=source) for name, source in zip("abcde", sources, strict=False)]


class TestDistinct:
    def test_different_images_are_fine(self, tmp_path: Path) -> None:
        (tmp_path / "a").touch()
        (tmp_path / "b").touch()
        images.distinct(copies(raw(tmp_path / "a"), raw(tmp_path / "b"), raw(tmp_path / "missing")))
        images.distinct(copies(NbdSource(uri="nbd://h/a"), NbdSource(uri="nbd://h/b"), NbdSource(uri="nbd://h:1/a")))

    @pytest.mark.parametrize("exists", [True, False])
    def test_one_image_under_two_names_is_refused(self, tmp_path: Path, exists: bool) -> None:
        (tmp_path / "d").mkdir()
        (tmp_path / "linked").symlink_to("d")
        image = tmp_path / "d" / "a"
        if exists:
            image.touch()
            (tmp_path / "link").symlink_to(image)
            (tmp_path / "hard").hardlink_to(image)
        names = [tmp_path / "d" / ".." / "d" / "a", tmp_path / "linked" / "a"]
        for other in [*names, *([tmp_path / "link", tmp_path / "hard"] if exists else [])]:
            with pytest.raises(RefusedError, match="Copies 'a' and 'c' are the same image"):
                images.distinct(copies(raw(image), raw(tmp_path / "b"), raw(other)))

    def test_an_image_that_is_another_s_sidecar_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match="same image"):
            images.distinct(copies(raw(tmp_path / "a"), raw(tmp_path / "a.qorum")))

    def test_one_export_under_two_spellings_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RefusedError, match="same image"):
            images.distinct(copies(NbdSource(uri="nbd://Host/a"), NbdSource(uri="nbd://host:10809/a")))
        (tmp_path / "link").symlink_to("sock")
        sockets = [NbdSource(uri=f"nbd+unix:///e?socket={tmp_path / name}") for name in ("sock", "link")]
        with pytest.raises(RefusedError, match="same image"):
            images.distinct(copies(*sockets))

    def test_the_set_s_own_volume_is_refused(self, tmp_path: Path) -> None:
        own = NbdSource(uri=f"nbd+unix:///volume?socket={tmp_path}/nbd.sock")
        with pytest.raises(RefusedError, match="the set's own volume"):
            images.distinct(copies(own), own_socket=tmp_path / "nbd.sock")


@contextmanager
def loop_device(path: Path) -> Iterator[str]:
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@as_root
class TestDevices:
    def test_a_device_has_a_size_and_an_alignment(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes(3 * MIB))
        with loop_device(tmp_path / "a") as device:
            assert images.device_size(device) == 3 * MIB
            assert images.alignment(DeviceSource(path=device)) == 512

    def test_a_device_over_a_file_is_that_file(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(bytes(3 * MIB))
        with loop_device(tmp_path / "a") as device:
            with pytest.raises(RefusedError, match="same image"):
                images.distinct(copies(raw(tmp_path / "a"), DeviceSource(path=device)))
            with pytest.raises(RefusedError, match=r'is a block device\. Use type = "device"'):
                images.inspect(FileSource(path=device))


def test_what_is_no_device_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(RefusedError, match="not a block device"):
        images.device_size(str(tmp_path / "a"))
    with pytest.raises(RefusedError, match="cannot be opened"):
        images.alignment(DeviceSource(path="/dev/qorum-none"))


def test_a_file_s_alignment_is_a_power_of_two_of_at_least_a_sector(tmp_path: Path) -> None:
    alignment = images.alignment(raw(tmp_path / "a"))
    assert alignment >= 512
    assert alignment & (alignment - 1) == 0
