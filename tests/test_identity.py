"""Who an image is, and which copies count: sidecars and generations (design section 5, invariant 8).

The last test is the proof: every instant at which three successive starts can be broken off, with copies absent from
any of them. A copy that counts has every write; a copy that was always there always counts.
"""

import itertools
import json
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import pytest

from qorumctl import files, identity
from qorumctl.errors import RefusedError
from qorumctl.identity import Host, Sidecar, judge
from qorumctl.model.spec import CopySpec, DeviceSource, FileSource, SetSpec

HERE, THERE = Host("here", "1"), Host("there", "2")
UUIDS = [UUID(int=n) for n in (1, 2)]


def a_set(directory: Path = Path("/images"), *, devices: str = "", names: str = "abc", **changes: object) -> SetSpec:
    copies = tuple(
        CopySpec(
            name=n,
            source=DeviceSource(path=f"/dev/{n}") if n in devices else FileSource(path=str(directory / f"{n}.raw")),
        )
        for n in names
    )
    return SetSpec.model_validate({"name": "web01", "uuid": UUIDS[0], "size": 1 << 20, "copies": copies} | changes)


def card(copy: str, generation: int, *, preparing: int | None = None, members: str = "abc", clean: bool = True,
         host: Host = HERE, **changes: object) -> Sidecar:  # fmt: skip
    values = {
        "uuid": str(UUIDS[0]), "set": "web01", "copy_": copy, "generation": generation, "preparing": preparing,
        "members": tuple(members), "host": host.name, "host_id": host.id, "clean": clean,
    }  # fmt: skip
    return Sidecar.model_validate(values | changes)


def cards(**by_name: Sidecar | None) -> dict[str, Sidecar | None]:
    return dict(by_name)


class TestFiles:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        image = tmp_path / "a.raw"
        identity.write(image, card("a", 7, preparing=8))
        assert identity.read(image) == card("a", 7, preparing=8)
        path = tmp_path / "a.raw.qorum"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert json.loads(path.read_text())["schema"] == "qorum.sidecar/1"
        identity.remove(image)
        identity.remove(image)
        assert identity.read(image) is None

    @pytest.mark.parametrize(
        "content",
        [b"", b"garbage", b"\xff", b"[]", b"{}", b"x" * (65 << 10), b"[" * 60_000,
         card("a", 1).model_dump_json().replace('"generation":1', '"generation":"1"').encode(),
         card("a", 1).model_dump_json().replace('"generation":1', '"generation":-1').encode(),
         card("a", 1).model_dump_json().replace("sidecar/1", "sidecar/2").encode(),
         card("a", 1).model_dump_json().replace("{", '{"more":1,', 1).encode()],
    )  # fmt: skip
    def test_garbage_is_refused_and_named(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "a.raw.qorum").write_bytes(content)
        with pytest.raises(RefusedError, match=r"a\.raw\.qorum holds something else") as caught:
            identity.read(tmp_path / "a.raw")
        assert caught.value.remedy

    def test_a_symbolic_link_is_refused(self, tmp_path: Path) -> None:
        identity.write(tmp_path / "other", card("a", 1))
        (tmp_path / "a.raw.qorum").symlink_to("other.qorum")
        with pytest.raises(RefusedError, match="is a symbolic link"):
            identity.read(tmp_path / "a.raw")

    def test_a_write_that_fails_keeps_the_old_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        identity.write(tmp_path / "a.raw", card("a", 1))

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(files.os, "fsync", full)
            with pytest.raises(RefusedError, match="No space left"):
                identity.write(tmp_path / "a.raw", card("a", 2))
        assert identity.read(tmp_path / "a.raw") == card("a", 1)
        assert [p.name for p in tmp_path.iterdir()] == ["a.raw.qorum"]

    def test_a_whole_life_on_disk(self, tmp_path: Path) -> None:
        spec = a_set(tmp_path)
        identity.found(spec, HERE)
        for generation in (1, 2):
            seen = judge(identity.read_all(spec), spec, HERE.id)
            assert (seen.generation, seen.unclean, seen.stale, seen.missing) == (generation - 1, False, set(), set())
            assert identity.prepare_start(spec, seen, HERE) == generation
            identity.commit_start(spec, seen, HERE, generation)
            assert judge(identity.read_all(spec), spec, HERE.id).unclean
            identity.mark_clean(spec)
        # c leaves, and comes back after it was re-synced
        seen = judge(identity.read_all(spec), spec, HERE.id)
        identity.commit_start(spec, seen, HERE, identity.prepare_start(spec, seen, HERE, without={"c"}), without={"c"})
        assert judge(identity.read_all(spec), spec, HERE.id).stale == {"c"}
        identity.admit(spec, "c", HERE)
        assert judge(identity.read_all(spec), spec, HERE.id).stale == set()


def test_the_host_is_known_by_a_hash_that_does_not_change() -> None:
    host = identity.this_host()
    assert host == identity.this_host()
    machine_id = Path("/etc/machine-id")
    assert not machine_id.exists() or machine_id.read_text().strip() not in host.id


class TestJudge:
    def test_equal_generations_are_all_current(self) -> None:
        seen = judge(cards(a=card("a", 3), b=card("b", 3), c=card("c", 3)), a_set(), HERE.id)
        assert (seen.generation, seen.stale, seen.missing, seen.unclean, seen.foreign_host) == (
            3, frozenset(), frozenset(), False, None,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("b", "stale"),
        [
            (card("b", 2), "b"),  # behind
            (card("b", 2, preparing=3), ""),  # a start was broken off between its commits
            (card("b", 2, preparing=3, members="ab"), ""),  # only the list of the highest generation counts
            (card("b", 3, members="ab"), "c"),  # c is being admitted, and not yet listed everywhere
            (None, "b"),  # lost
        ],
    )
    def test_who_is_stale(self, b: Sidecar | None, stale: str) -> None:
        seen = judge(cards(a=card("a", 3), b=b, c=card("c", 3)), a_set(), HERE.id)
        assert seen.stale == set(stale)

    def test_who_is_no_member_is_stale_whatever_it_was_prepared_for(self) -> None:
        known = cards(a=card("a", 3, members="ab"), b=card("b", 3, members="ab"), c=card("c", 2, preparing=3))
        assert judge(known, a_set(), HERE.id).stale == {"c"}

    def test_a_device_that_was_away_is_stale_though_it_has_no_sidecar(self) -> None:
        known = cards(a=card("a", 3, members="ab"), b=card("b", 3, members="ab"))
        assert judge(known, a_set(devices="c"), HERE.id).stale == {"c"}
        known = cards(a=card("a", 3), b=card("b", 3))
        assert judge(known, a_set(devices="c"), HERE.id).stale == set()

    def test_no_sidecar_at_all_makes_nobody_stale(self) -> None:
        seen = judge(cards(a=None, b=None, c=None), a_set(), HERE.id)
        assert (seen.stale, seen.missing, seen.generation) == (set(), set("abc"), 0)
        assert judge({}, a_set(devices="abc"), HERE.id).missing == set()

    def test_one_current_copy_that_was_not_stopped_in_order_makes_the_set_unclean(self) -> None:
        known = cards(a=card("a", 3), b=card("b", 3, clean=False), c=card("c", 3))
        assert judge(known, a_set(), HERE.id).unclean
        known = cards(a=card("a", 3), b=card("b", 3), c=card("c", 2, clean=False))
        assert not judge(known, a_set(), HERE.id).unclean

    def test_an_unclean_owner_elsewhere_is_named(self) -> None:
        elsewhere = {n: card(n, 3, clean=False, host=THERE) for n in "abc"}
        assert judge(elsewhere, a_set(), HERE.id).foreign_host == "there"
        assert judge(elsewhere, a_set(), THERE.id).foreign_host is None
        stopped = {n: card(n, 3, host=THERE) for n in "abc"}
        assert judge(stopped, a_set(), HERE.id).foreign_host is None

    @pytest.mark.parametrize(
        ("wrong", "words"),
        [
            (card("b", 3, uuid=str(UUIDS[1]), set="db"), "copy 'b', /images/b.raw, belongs to set 'db'."),
            (
                card("b", 3, uuid=str(UUIDS[1])),
                "copy 'b', /images/b.raw, belongs to set 'web01' of another definition.",
            ),
            (card("b", 3, set="old"), "copy 'b', /images/b.raw, belongs to set 'old'."),
            (card("c", 3), "copy 'b', /images/b.raw, is that of copy 'c'."),
        ],
    )
    def test_an_image_that_belongs_elsewhere_is_refused(self, wrong: Sidecar, words: str) -> None:
        with pytest.raises(RefusedError) as caught:
            judge(cards(a=card("a", 3), b=wrong, c=card("c", 3)), a_set(), HERE.id)
        assert caught.value.message == f"The image of {words}"
        assert (caught.value.copy, caught.value.remedy is not None) == ("b", True)


class Killed(Exception):
    """The process ends between two writes."""


@dataclass
class World:
    """Sidecars in memory, the newest write that each copy holds, and a process that can be killed."""

    sidecars: dict[str, Sidecar]
    written: dict[str, int]
    writes_left: int | None = None
    always_there: set[str] = field(default_factory=set)

    def copy(self) -> "World":
        return World(dict(self.sidecars), dict(self.written), None, set(self.always_there))

    def read(self, image: str | Path) -> Sidecar | None:
        return self.sidecars.get(Path(image).stem)

    def write(self, image: str | Path, sidecar: Sidecar) -> None:
        if self.writes_left is not None:
            if self.writes_left == 0:
                raise Killed
            self.writes_left -= 1
        self.sidecars[Path(image).stem] = sidecar

    def latest(self) -> int:
        return max(self.written.values())

    def guest_writes(self, to: set[str]) -> None:
        number = self.latest() + 1
        self.written |= dict.fromkeys(to, number)


SPEC = a_set()
EVERY = frozenset("abc")
SUBSETS = [frozenset(s) for size in (3, 2) for s in itertools.combinations("abc", size)]


def seen_by(world: World, present: frozenset[str]) -> identity.Identity:
    sidecars: Mapping[str, Sidecar | None] = {n: world.sidecars.get(n) if n in present else None for n in "abc"}
    return judge(sidecars, SPEC, HERE.id)


def life(world: World, present: frozenset[str], *, admits: bool) -> Iterator[None]:
    """One start, and what follows it; yields where nothing but the guest would act."""
    seen = seen_by(world, present)
    members = present - seen.stale
    if len(members) < 2:
        return  # no majority is there: the start is refused
    absent = EVERY - present
    generation = identity.prepare_start(SPEC, seen, HERE, without=absent)
    identity.commit_start(SPEC, seen, HERE, generation, without=absent)
    world.guest_writes(set(members))
    yield
    if admits:
        for name in sorted(present - members):
            world.written[name] = world.latest()  # re-synced and verified; every write reaches it from here on
            members |= {name}
            identity.admit(SPEC, name, HERE)
            world.guest_writes(set(members))
            yield
    identity.mark_clean(SPEC)


def futures(world: World, *, admits: bool, killed_anywhere: bool = True) -> Iterator[World]:
    """The worlds after one more start, for each choice of copies that are there and each instant to be killed at."""
    for present in SUBSETS:
        for writes in itertools.count() if killed_anywhere else [1000]:
            after = world.copy()
            after.writes_left = writes
            killed = True
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(identity, "read", after.read)
                patch.setattr(identity, "write", after.write)
                # Of a set with copies away, `read_all` sees what is there.
                patch.setattr(
                    identity,
                    "read_all",
                    lambda _, without=frozenset(), w=after, p=present: {
                        n: w.sidecars[n] if n in p else None for n in EVERY
                    },
                )
                try:
                    for _ in life(after, present, admits=admits):
                        pass
                    killed = False
                except Killed:
                    pass
            after.always_there &= present
            yield after
            if not killed:
                break


def check(world: World) -> None:
    for present in SUBSETS:
        seen = seen_by(world, present)
        counting = present - seen.stale
        assert {world.written[n] for n in counting} <= {world.latest()}, "a copy that missed writes counts"
    assert not world.always_there & seen_by(world, EVERY).stale, "a copy that was always there is stale"


def test_no_crash_makes_a_current_copy_stale_or_a_stale_one_current() -> None:
    start = World({n: card(n, 0) for n in "abc"}, dict.fromkeys("abc", 0), always_there=set("abc"))
    checked = 0
    for first in futures(start, admits=False):
        check(first)
        for second in futures(first, admits=True):
            check(second)
            for third in futures(second, admits=False, killed_anywhere=False):
                check(third)
                checked += 1
    assert checked > 1000
