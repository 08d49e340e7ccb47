"""`NAME.toml`: read strictly, explained in words, rewritten with every comment kept."""

import os
import stat
import string
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qorumctl import definitions, files
from qorumctl.errors import DefinitionError
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, NbdSource, ScrubSpec, SetSpec, VolumeSpec

GOOD = """\
# The web shop's disk. Ask Jo before changing it.
name = "web01"
uuid = "6f3c2b0e-6c55-4c8e-9d5d-0d4b1d6a9c11"
size = "20480MiB"   # as ordered
threshold = 2
policy = "repair"

# rack 1
[[copies]]
name = "a"
source = { type = "file", path = "/images/a.raw", format = "raw" }   # NFS
cache = "none"

[[copies]]   # rack 2
name = "b"
source = { type = "device", path = "/dev/vg/b" }

[[copies]]
name = "c"
source = { type = "nbd", uri = "nbd://c.example/web01" }

[scrub]
rate = "200MiB/s"   # nights only
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "web01.toml"


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o640)
    return path


def a_spec(**changes: object) -> SetSpec:
    values: dict[str, object] = {
        "name": "web01",
        "uuid": UUID("6f3c2b0e-6c55-4c8e-9d5d-0d4b1d6a9c11"),
        "size": 20 << 30,
        "copies": tuple(CopySpec(name=n, source=FileSource(path=f"/images/{n}.raw")) for n in "abc"),
    }
    return SetSpec.model_validate(values | changes)


class TestLoad:
    def test_a_good_definition_with_its_defaults(self, path: Path) -> None:
        spec = definitions.load(put(path, GOOD))
        assert (spec.name, spec.size, spec.threshold, spec.policy) == ("web01", 20 << 30, 2, "repair")
        assert [copy.source.label for copy in spec.copies] == ["/images/a.raw", "/dev/vg/b", "nbd://c.example/web01"]
        assert (spec.scrub.rate, spec.volume.mode, spec.copies[1].cache) == (200 << 20, "0600", "none")

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("threshold =", "threshhold =", "web01.toml: unknown key 'threshhold'. Did you mean 'threshold'?"),
            ('path = "/i', 'pth = "/i', "web01.toml: copy 'a': unknown key 'source.pth'. Did you mean 'path'?"),
            ("rate =", "speed =", "web01.toml: unknown key 'scrub.speed'. Known here: rate."),
            ("size =", "# size =", "web01.toml: 'size' is missing. Add it, as in size = \"20GiB\"."),
            ('name = "c"', "", "web01.toml: copy number 3: 'name' is missing. Add it, as in name = \"web01\"."),
            (
                "threshold = 2",
                "threshold = 1",
                "web01.toml: threshold 1 is no strict majority of 3 copies: use 2 to 3.",
            ),
            ("threshold = 2", 'threshold = "two"', "web01.toml: 'threshold' is 'two'. It must be a whole number."),
            ("20480MiB", "20GB", "web01.toml: 'size': '20GB' is not a size. Use bytes, or a number with KiB,"),
            ("20480MiB", "1000", "web01.toml: size 1000 is not a multiple of 512. Correct it."),
            ('policy = "repair"', 'policy = "heal"', "web01.toml: 'policy' is 'heal'. Use 'repair' or 'report'."),
            ('type = "device"', 'type = "disk"', "web01.toml: copy 'b': 'source.type' is 'disk'. Use 'file', 'device'"),
            ('type = "device", ', "", "web01.toml: copy 'b': 'source.type' is missing. Add it, as in type = \"file\"."),
            ("/dev/vg/b", "b.raw", "web01.toml: copy 'b': 'source.path': 'b.raw' is not an absolute path."),
            (
                "nbd://c.example",
                "http://c",
                "web01.toml: copy 'c': 'source': 'http://c/web01' is not an NBD URI: use nbd",
            ),
            ('name = "c"', 'name = "a"', "web01.toml: two copies are named 'a'. Correct it."),
            (
                "/dev/vg/b",
                "/images/a.raw",
                "web01.toml: '/images/a.raw' is named twice: each copy needs its own image.",
            ),
            (
                'uuid = "6f',
                'uuid = "zz',
                "web01.toml: 'uuid' is 'zz3c2b0e-6c55-4c8e-9d5d-0d4b1d6a9c11'. It must be a UUID",
            ),
            (
                "[scrub]",
                '[volume]\nmode = "0666"\n[scrub]',
                "web01.toml: 'volume.mode' is '0666'. Use \"0600\" or \"0660\".",
            ),
            ('name = "web01"', 'name = "web02"', "web01.toml: the set is named 'web02', but its file 'web01'. Make"),
            ('name = "web01"', 'name = "Web 01"', "web01.toml: 'name': 'Web 01' cannot name a set: use 1 to 32 of a-z"),
            ("[scrub]\n", "[x]\n", "web01.toml: unknown key 'x'. Known here: name, uuid, size"),
            ("threshold = 2", "threshold = ", "web01.toml is not TOML: Invalid value (at line 5, column 13). Correct"),
            ("size = ", 'size = "1GiB"\nsize = ', "web01.toml is not TOML: Cannot overwrite a value (at line 5"),
        ],
    )
    def test_what_is_wrong_is_said_in_words(self, path: Path, old: str, new: str, message: str) -> None:
        assert old in GOOD
        with pytest.raises(DefinitionError) as caught:
            definitions.load(put(path, GOOD.replace(old, new, 1)))
        assert str(caught.value).startswith(message)
        assert caught.value.path == str(path)

    def test_two_copies_are_too_few(self, path: Path) -> None:
        text = GOOD.partition('[[copies]]\nname = "c"')[0]
        with pytest.raises(DefinitionError, match="a set has 3, 5, 7 or 9 copies, not 2"):
            definitions.load(put(path, text))

    def test_a_missing_file_is_an_unknown_set(self, path: Path) -> None:
        with pytest.raises(DefinitionError, match="There is no set 'web01'"):
            definitions.load(path)

    @pytest.mark.parametrize("mode", [0o660, 0o646, 0o666])
    def test_a_file_that_others_can_write_is_refused(self, path: Path, mode: int) -> None:
        put(path, GOOD).chmod(mode)
        with pytest.raises(DefinitionError, match="can be written by other users"):
            definitions.load(path)

    def test_a_file_that_others_can_replace_is_refused(self, path: Path) -> None:
        put(path, GOOD)
        path.parent.chmod(0o770)
        with pytest.raises(DefinitionError, match="can be replaced by other users"):
            definitions.load(path)
        path.parent.chmod(0o1777)
        assert definitions.load(path).name == "web01"

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file to somebody else")
    def test_a_file_of_somebody_else_is_refused(self, path: Path) -> None:
        os.chown(put(path, GOOD), 54321, -1)
        with pytest.raises(DefinitionError, match="belongs to another user"):
            definitions.load(path)

    def test_what_is_no_text_file_is_refused(self, path: Path) -> None:
        with pytest.raises(DefinitionError, match="larger than 1048576 bytes"):
            definitions.load(put(path, b"#" * (definitions.MOST_BYTES + 1)))
        with pytest.raises(DefinitionError, match="not UTF-8 text: byte 2 is wrong"):
            definitions.load(put(path, b"a=\xff"))
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(DefinitionError, match="not a regular file"):
            definitions.load(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(DefinitionError, match="not a regular file"):
            definitions.load(path)


TOML_VALUES = st.sampled_from(
    ["1", "-1", "1e400", "nan", "true", '""', '"a"', "[]", "{}", "[[]]", "1979-05-27", "{ type = 'file' }", "9" * 5000,
     "[" * 3000 + "]" * 3000, "{a=" * 1500 + "1" + "}" * 1500, '"\\u0000"', "0x" + "f" * 40, '["a", "b", "c"]',
     '"nbd://[::1"', '"nbd://h:99999/e"', '"nbd://\\u2100/x"', '"' + "1" * 5000 + '"', "[{name='a'},{},{}]", "\x00"]
)  # fmt: skip
KEYS = [line.split("=")[0].strip() for line in GOOD.splitlines() if "=" in line and not line.startswith("#")]


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    text = GOOD
    for _ in range(draw(st.integers(1, 3))):
        match draw(st.integers(0, 3)):
            case 0:  # another value for a key
                lines = text.splitlines()
                places = [i for i, line in enumerate(lines) if "=" in line]
                if places:
                    place = draw(st.sampled_from(places))
                    lines[place] = f"{lines[place].split('=')[0]}= {draw(TOML_VALUES)}"
                    text = "\n".join(lines)
            case 1:  # a piece cut out
                start = draw(st.integers(0, len(text)))
                text = text[:start] + text[start + draw(st.integers(1, 80)) :]
            case 2:  # something put in
                start = draw(st.integers(0, len(text)))
                text = text[:start] + draw(st.text(max_size=8)) + text[start:]
            case _:  # a further key
                text = f"{draw(st.sampled_from([*KEYS, 'x', 'a.b']))} = {draw(TOML_VALUES)}\n{text}"
    return text.encode(errors="surrogatepass")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(mangled(), st.binary(max_size=200), st.text(alphabet=string.printable, max_size=200).map(str.encode)))
@example(b"")
@example(b"copies = 3")
@example(GOOD.replace('"20480MiB"', "9" * 5000).encode())
@example(GOOD.replace('"20480MiB"', f'"{"9" * 5000}"').encode())
def test_a_mangled_definition_is_a_definition_error_and_nothing_else(tmp_path: Path, content: bytes) -> None:
    path = put(tmp_path / "web01.toml", content)
    refused: DefinitionError | None = None
    try:
        definitions.load(path)
    except DefinitionError as error:
        refused = error
    if refused is not None:
        assert refused.message.startswith("web01.toml")
        assert refused.remedy
        assert len(str(refused)) < 1000


class TestSave:
    def test_what_is_written_reads_back_the_same(self, path: Path) -> None:
        spec = a_spec(
            policy="report",
            copies=(
                CopySpec(name="a", source=FileSource(path='/odd "name"\\ü.qcow2', format="qcow2"), cache="writeback"),
                CopySpec(name="b", source=DeviceSource(path="/dev/vg/b")),
                CopySpec(name="c", source=NbdSource(uri="nbd+unix:///e?socket=/s")),
            ),
            volume=VolumeSpec(group="kvm", mode="0660"),
            scrub=ScrubSpec(rate=1000),
        )
        definitions.save(path, spec)
        assert definitions.load(path) == spec
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_a_new_file_has_the_documented_layout(self, path: Path) -> None:
        definitions.save(path, a_spec())
        text = path.read_text()
        assert 'size = "20GiB" #' in text
        assert 'source = {type = "file", path = "/images/a.raw", format = "raw"}' in text
        assert text.count("[[copies]]") == 3

    def test_saving_the_same_changes_not_a_byte(self, path: Path) -> None:
        definitions.save(path, definitions.load(put(path, GOOD)))
        assert path.read_text() == GOOD

    def test_a_change_keeps_comments_and_everything_else(self, path: Path) -> None:
        spec = definitions.load(put(path, GOOD))
        definitions.save(path, spec.model_copy(update={"policy": "report", "volume": VolumeSpec(group="kvm")}))
        text = path.read_text()
        assert text.startswith(GOOD.replace('policy = "repair"', 'policy = "report"'))
        assert definitions.load(path).volume.group == "kvm"

    def test_a_rate_can_be_taken_out(self, path: Path) -> None:
        spec = definitions.load(put(path, GOOD))
        definitions.save(path, spec.model_copy(update={"scrub": ScrubSpec()}))
        assert definitions.load(path).scrub.rate is None

    def test_copies_come_and_go_and_the_others_keep_their_comments(self, path: Path) -> None:
        spec = definitions.load(put(path, GOOD))
        replaced = tuple(
            c if c.name != "a" else CopySpec(name="d", source=FileSource(path="/images/d.raw")) for c in spec.copies
        )
        grown = (*spec.copies[1:], replaced[0])
        changed = spec.model_copy(update={"copies": grown})
        definitions.save(path, changed)
        assert definitions.load(path) == changed
        assert "# rack 2" in path.read_text()
        moved = CopySpec(name="b", source=NbdSource(uri="nbd://other/b"), cache="writeback")
        changed = changed.model_copy(update={"copies": (moved, *grown[1:])})
        definitions.save(path, changed)
        assert definitions.load(path) == changed
        assert "# rack 2" in path.read_text()

    def test_a_file_that_is_no_definition_is_left_alone(self, path: Path) -> None:
        put(path, "not = [toml")
        with pytest.raises(DefinitionError):
            definitions.save(path, a_spec())
        assert path.read_text() == "not = [toml"

    def test_a_name_that_is_not_the_file_s_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DefinitionError, match=r"must be web01\.toml"):
            definitions.save(tmp_path / "other.toml", a_spec())

    def test_a_write_that_fails_leaves_the_old_definition(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(path, GOOD)

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(DefinitionError, match="No space left"):
            definitions.save(path, a_spec())
        assert [p.name for p in path.parent.iterdir()] == ["web01.toml"]
        assert path.read_text() == GOOD

    def test_a_linked_definition_is_changed_where_it_lies(self, tmp_path: Path, path: Path) -> None:
        (tmp_path / "repo").mkdir(mode=0o700)
        put(tmp_path / "repo" / "x.toml", GOOD)
        path.symlink_to("repo/x.toml")
        definitions.save(path, a_spec())
        assert path.is_symlink()
        assert definitions.load(path) == a_spec()


class TestDigest:
    def test_tells_what_the_daemon_is_built_from(self) -> None:
        spec = a_spec()
        assert definitions.digest(spec) == definitions.digest(a_spec())
        devices = tuple(CopySpec(name=n, source=DeviceSource(path=f"/images/{n}.raw")) for n in "abc")
        for changed in (a_spec(policy="report"), a_spec(threshold=3), a_spec(copies=devices), a_spec(size="30GiB")):
            assert definitions.digest(changed) != definitions.digest(spec)

    def test_a_rate_takes_no_restart(self) -> None:
        assert definitions.digest(a_spec(scrub=ScrubSpec(rate=5))) == definitions.digest(a_spec())

    def test_stays_what_it_was_in_the_last_version(self) -> None:
        expected = "70acdf6b23e6f89132a19299d9f3b915bb1f433ce1cb203316821fa9abc0d055"
        assert definitions.digest(a_spec()) == expected


def test_names_are_those_of_definitions(tmp_path: Path) -> None:
    for name in ("web01.toml", "db.toml", "README.md", "Not.toml", ".web01.toml.x.tmp", "web01.toml~"):
        (tmp_path / name).touch()
    assert definitions.names(tmp_path) == ["db", "web01"]
    assert definitions.names(tmp_path / "none") == []
    with pytest.raises(DefinitionError, match="cannot be listed"):
        definitions.names(tmp_path / "db.toml")
