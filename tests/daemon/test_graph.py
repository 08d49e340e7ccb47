"""The block graph as QMP arguments: what a definition becomes, word for word."""

from __future__ import annotations

import pytest

from qorumctl.daemon import graph
from qorumctl.model.spec import CopySpec, SetSpec


def copy(source: dict[str, object], **keys: object) -> CopySpec:
    return CopySpec.model_validate({"name": "a", "source": source, **keys})


def spec(names: str = "abc", **keys: object) -> SetSpec:
    copies = [{"name": name, "source": {"type": "file", "path": f"/{name}.raw"}} for name in names]
    uuid = "6f1d0a52-9b6e-4a54-8a53-0d7b6f5b6a11"
    return SetSpec.model_validate({"name": "web01", "uuid": uuid, "size": "1GiB", "copies": copies, **keys})


FILE = {"type": "file", "path": "/m/a.raw"}
QCOW2 = {"type": "file", "path": "/m/a.qcow2", "format": "qcow2"}
DEVICE = {"type": "device", "path": "/dev/sdx"}
TCP = {"type": "nbd", "uri": "nbd://10.0.0.1/web"}
TCP6 = {"type": "nbd", "uri": "nbd://[fd00::1]:99/web"}
UNIX = {"type": "nbd", "uri": "nbd+unix:///web?socket=/run/x.sock"}
TLS = {"type": "nbd", "uri": "nbds://store/web?tls-certificates=/etc/certs"}
TLS_UNIX = {"type": "nbd", "uri": "nbds+unix:///web?socket=/run/x.sock"}

DIRECT = {"direct": True, "no-flush": False}
# Threads would reorder overlapping writes, each copy in its own way.
NATIVE = {"aio": "native", "cache": DIRECT}
CACHED = {"direct": False, "no-flush": False}


def test_names_are_the_contract() -> None:
    assert (graph.QUORUM, graph.FENCE, graph.VOLUME, graph.HEAL) == ("quorum", "fence", "volume", "heal")
    assert graph.copy_node("nfs-1") == "copy-nfs-1"
    assert graph.file_node("nfs-1") == "copy-nfs-1-file"


@pytest.mark.parametrize(
    ("node", "name"), [("copy-a", "a"), ("copy-nfs-1", "nfs-1"), ("copy-a-file", None), ("quorum", None)]
)
def test_a_node_is_told_to_be_a_copy_by_its_name(node: str, name: str | None) -> None:
    assert graph.copy_of_node(node) == name


@pytest.mark.parametrize(
    ("source", "cache", "expected"),
    [
        (FILE, "none", {"driver": "file", "filename": "/m/a.raw", "locking": "on", **NATIVE}),
        (
            FILE,
            "writeback",
            {"driver": "file", "filename": "/m/a.raw", "locking": "on", "aio": "threads", "cache": CACHED},
        ),
        (QCOW2, "none", {"driver": "file", "filename": "/m/a.qcow2", "locking": "on", **NATIVE}),
        (DEVICE, "none", {"driver": "host_device", "filename": "/dev/sdx", **NATIVE}),
        (
            TCP,
            "none",
            {
                "driver": "nbd",
                "server": {"type": "inet", "host": "10.0.0.1", "port": "10809"},
                "export": "web",
                "reconnect-delay": 0,
            },
        ),
        (
            TCP6,
            "none",
            {
                "driver": "nbd",
                "server": {"type": "inet", "host": "fd00::1", "port": "99"},
                "export": "web",
                "reconnect-delay": 0,
            },
        ),
        (
            UNIX,
            "none",
            {
                "driver": "nbd",
                "server": {"type": "unix", "path": "/run/x.sock"},
                "export": "web",
                "reconnect-delay": 0,
            },
        ),
        (
            TLS_UNIX,
            "none",
            {
                "driver": "nbd",
                "server": {"type": "unix", "path": "/run/x.sock"},
                "export": "web",
                "reconnect-delay": 0,
                "tls-creds": "tls-a",
                "tls-hostname": "localhost",
            },
        ),
        (
            TLS,
            "none",
            {
                "driver": "nbd",
                "server": {"type": "inet", "host": "store", "port": "10809"},
                "export": "web",
                "reconnect-delay": 0,
                "tls-creds": "tls-a",
            },
        ),
    ],
)
def test_protocol_node(source: dict[str, object], cache: str, expected: dict[str, object]) -> None:
    always = {"node-name": "copy-a-file", "read-only": False, "auto-read-only": False}
    assert graph.protocol_node(copy(source, cache=cache), read_only=False) == always | expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (FILE, {"driver": "raw", "cache": DIRECT}),
        (QCOW2, {"driver": "qcow2", "backing": None, "cache": DIRECT}),
        (DEVICE, {"driver": "raw", "cache": DIRECT}),
        (TCP, {"driver": "raw"}),
    ],
)
def test_format_node(source: dict[str, object], expected: dict[str, object]) -> None:
    always = {"node-name": "copy-a", "file": "copy-a-file", "read-only": True, "auto-read-only": False}
    assert graph.format_node(copy(source), read_only=True) == always | expected


@pytest.mark.parametrize(
    ("source", "directory"),
    [(TLS, "/etc/certs"), ({"type": "nbd", "uri": "nbds://store/web"}, graph.DEFAULT_TLS_DIRECTORY)],
)
def test_a_copy_behind_nbds_has_credentials(source: dict[str, object], directory: str) -> None:
    assert graph.tls_object(copy(source)) == {
        "qom-type": "tls-creds-x509",
        "id": "tls-a",
        "endpoint": "client",
        "verify-peer": True,
        "dir": directory,
    }


@pytest.mark.parametrize("source", [FILE, DEVICE, TCP, UNIX])
def test_other_copies_have_none(source: dict[str, object]) -> None:
    assert graph.tls_object(copy(source)) is None


@pytest.mark.parametrize(
    ("definition", "threshold", "rewrite"),
    [
        (spec(), 2, True),
        (spec(policy="report"), 2, False),
        (spec("abcde"), 3, True),
        (spec("abcde", threshold=4), 4, True),
    ],
)
def test_quorum_node(definition: SetSpec, threshold: int, rewrite: bool) -> None:
    assert graph.quorum_node(definition) == {
        "driver": "quorum",
        "node-name": "quorum",
        "vote-threshold": threshold,
        "rewrite-corrupted": rewrite,
        "children": [f"copy-{name}" for name in definition.copy_names],
    }


def test_the_fence_is_a_copy_on_read_filter_over_the_quorum() -> None:
    assert graph.fence_node() == {"driver": "copy-on-read", "node-name": "fence", "file": "quorum"}


@pytest.mark.parametrize(
    ("arguments", "name", "node", "writable"),
    [
        (graph.copy_export("a"), "copy-a", "copy-a", False),
        (graph.heal_export(), "heal", "fence", False),
        (graph.volume_export(), "volume", "fence", True),
    ],
)
def test_exports(arguments: dict[str, object], name: str, node: str, writable: bool) -> None:
    assert arguments == {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": writable}


def test_an_export_may_carry_bitmaps() -> None:
    assert graph.export("w", "fence", bitmaps=["w"])["bitmaps"] == ["w"]
