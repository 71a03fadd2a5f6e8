"""Fetching from a server on this machine, which misbehaves as asked."""

import hashlib
import io
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import numpy as np
import pytest

from detector.data import download as module
from detector.data.download import download, unpack
from detector.errors import InputError
from scripts import download_voc

DATA = np.random.default_rng(0).bytes(100_000)
OTHER = np.random.default_rng(1).bytes(120_000)


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


@pytest.fixture
def server(monkeypatch):
    """`files` by path; `cuts`: after so many bytes the next answers end; `sent`: (status, Range, bytes) of each."""
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    state = SimpleNamespace(files={"/a.tar": DATA}, version='"1"', cuts=[], ranges=True, shift=0, sent=[])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            data, asked = state.files.get(self.path), self.headers.get("Range")
            if data is None or isinstance(data, int):
                state.sent.append((data or 404, asked, 0))
                return self.send_error(data or 404)
            begin = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and state.ranges else 0
            if self.headers.get("If-Range", state.version) != state.version:
                begin = 0
            if begin >= len(data):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(data)}")
                self.send_header("Content-Length", "0")
                state.sent.append((416, asked, 0))
                return self.end_headers()
            self.send_response(206 if begin else 200)
            if begin:
                self.send_header("Content-Range", f"bytes {begin + state.shift}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - begin))
            if state.version:
                self.send_header("ETag", state.version)
            self.end_headers()
            piece = data[begin:][: state.cuts.pop(0) if state.cuts else None]
            state.sent.append((206 if begin else 200, asked, len(piece)))  # before anybody can know that it came
            self.wfile.write(piece)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
        thread.join()


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_file_is_fetched_once(server, tmp_path):
    for _ in range(2):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert files(tmp_path) == ["a.tar"]
    assert server.sent == [(200, None, 100_000)]


def test_a_download_resumes_after_a_cut_connection(server, tmp_path):
    server.cuts = [60_000, 10_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert server.sent == [(200, None, 60_000), (206, "bytes=60000-", 10_000), (206, "bytes=70000-", 30_000)]


def test_a_later_call_goes_on_after_a_server_that_stays_away(server, tmp_path):
    server.cuts = [60_000, *[0] * module.TRIES]
    with pytest.raises(InputError, match=r"connection was cut, 5 times. 60000 bytes .*resume from there"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert not (tmp_path / "a.tar").exists()
    server.cuts, server.sent = [], []
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert server.sent == [(206, "bytes=60000-", 40_000)]


def test_without_ranges_it_begins_anew(server, tmp_path):
    server.ranges, server.cuts = False, [60_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [status for status, *_ in server.sent] == [200, 200]


def test_another_piece_than_asked_for_is_not_taken(server, tmp_path):
    server.shift, server.cuts = 7, [60_000]
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert [asked for _, asked, _ in server.sent] == [None, "bytes=60000-", None]


def begun(server, tmp_path, size: int) -> None:
    server.cuts = [size, *[0] * module.TRIES]
    with pytest.raises(InputError):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    server.cuts, server.sent = [], []


@pytest.mark.parametrize("version", ['"2"', 'W/"2"', ""])
def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path, version):
    begun(server, tmp_path, 60_000)
    server.files, server.version = {"/a.tar": OTHER}, version
    download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(OTHER))
    assert (tmp_path / "a.tar").read_bytes() == OTHER
    assert [status for status, *_ in server.sent] == [200]


def test_a_whole_or_too_long_part_from_before(server, tmp_path):
    for part, sent in ((DATA, [416]), (DATA + b"more", [416, 200])):
        (tmp_path / "a.tar.part").write_bytes(part)
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
        assert [status for status, *_ in server.sent] == sent
        (tmp_path / "a.tar").unlink()
        server.sent.clear()


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(InputError, match=rf"the md5 {md5(DATA)}, not {md5(OTHER)}.*--mirror"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(OTHER))
    assert files(tmp_path) == []
    (tmp_path / "a.tar").write_text("mine")
    with pytest.raises(InputError, match=r"a\.tar: its md5 is .*: delete or move it"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert (tmp_path / "a.tar").read_text() == "mine"


def test_a_full_disk_is_not_the_server_s_fault(server, tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("detector.data.download.open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        download(f"{server.url}/a.tar", tmp_path / "a.tar", md5(DATA))
    assert len(server.sent) == 1


def test_a_server_that_refuses(server, tmp_path):
    with pytest.raises(InputError, match=r"b\.tar: the server answers 404 Not Found"):
        download(f"{server.url}/b.tar", tmp_path / "b.tar", md5(DATA))
    assert len(server.sent) == 1
    server.files["/c.tar"] = 503
    with pytest.raises(InputError, match=r"c\.tar: the server answers 503 Service Unavailable, 5 times"):
        download(f"{server.url}/c.tar", tmp_path / "c.tar", md5(DATA))
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1/a\.tar: .*refused, 5 times"):
        download("http://127.0.0.1:1/a.tar", tmp_path / "a.tar", md5(DATA))
    with pytest.raises(InputError, match="only http:// and https:// are supported"):
        download("file:///etc/passwd", tmp_path / "a.tar", md5(DATA))


def tar(path: Path, members: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            data = b"" if isinstance(content, tarfile.TarInfo) else content
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_archives_are_unpacked_beside_what_is_there(tmp_path):
    root = tmp_path / "data"
    (root / "kit/VOC").mkdir(parents=True)
    (root / "kit/VOC/mine.txt").write_text("mine")
    (root / "kit/VOC/same.txt").write_bytes(b"same")
    first = tar(tmp_path / "1.tar", {"kit/VOC/same.txt": b"same", "kit/VOC/new/a.txt": b"a", "kit/b.txt": b"b"})
    unpack(first, root)
    unpack(tar(tmp_path / "2.tgz", {"kit/VOC/new/c.txt": b"c"}, "w:gz"), root)
    there = ["kit/VOC/mine.txt", "kit/VOC/new/a.txt", "kit/VOC/new/c.txt", "kit/VOC/same.txt", "kit/b.txt"]
    assert files(root) == there
    assert (root / "kit/VOC/mine.txt").read_text() == "mine"
    (root / "kit/b.txt").write_text("changed")
    with pytest.raises(InputError, match=r"1 files of 1\.tar are there already with other content.*kit/b\.txt"):
        unpack(first, root)
    assert files(root) == there
    assert (root / "kit/b.txt").read_text() == "changed"


def special(name: str, kind: bytes, target: str = "") -> dict[str, tarfile.TarInfo]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return {name: info}


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"../evil.txt": b"x"}, r"'\.\./evil\.txt' in it leads out of the folder"),
        ({"a/../../evil.txt": b"x"}, "leads out of the folder"),
        ({"/tmp/evil.txt": b"x"}, r"'/tmp/evil\.txt' in it leads out of the folder"),
        (special("link", tarfile.SYMTYPE, "/etc") | {"link/evil.txt": b"x"}, "'link' in it is neither a file nor a"),
        (special("link", tarfile.LNKTYPE, "../../secret"), "'link' in it is neither"),
        (special("device", tarfile.CHRTYPE), "'device' in it is neither"),
        (special("pipe", tarfile.FIFOTYPE), "'pipe' in it is neither"),
        ({"a": b"x" * 600, "b": b"x" * 600}, "holds more than 1000 bytes"),
    ],
)
def test_archives_that_mean_harm_are_refused(tmp_path, monkeypatch, members, says):
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 1000)
    archive = tar(tmp_path / "a.tar", {"good.txt": b"good"} | members)
    with pytest.raises(InputError, match=rf"a\.tar: refused, .*{says}"):
        unpack(archive, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []
    assert files(tmp_path) == ["a.tar"]


def test_a_damaged_archive(tmp_path):
    whole = tar(tmp_path / "a.tgz", {"a": DATA}, "w:gz").read_bytes()
    for name, data in (("cut.tgz", whole[:5000]), ("junk.tar", b"junk" * 1000), ("empty.tar", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}: cannot be unpacked"):
            unpack(tmp_path / name, tmp_path / "data")
    assert files(tmp_path / "data") == []


def test_the_command(server, tmp_path, capsys):
    """Two archives fill one folder; what is done is not done again, what is not done is."""
    contents = {
        "one.tar": tar(tmp_path / "1", {"kit/a.txt": b"a"}).read_bytes(),
        "two.tar": tar(tmp_path / "2", {"kit/b.txt": b"b"}).read_bytes(),
    }
    server.files = {f"/voc/{name}": data for name, data in contents.items()}
    archives = {
        name: (download_voc.Archive(f"{name}.tar", "http://127.0.0.1:1/", md5(contents[f"{name}.tar"])),)
        for name in ("one", "two")
    }
    root = tmp_path / "data"

    def run(*options: str) -> int:
        return download_voc.main(["--root", str(root), "--mirror", f"{server.url}/voc", *options], archives)

    assert run("--only", "one") == 0
    assert files(root) == ["downloads/one.tar", "downloads/one.tar.unpacked", "kit/a.txt"]
    (root / "downloads/one.tar").unlink()
    assert run() == 0
    assert (root / "kit/b.txt").read_text() == "b"
    assert len(server.sent) == 2
    (root / "downloads/two.tar.unpacked").unlink()
    (root / "downloads/two.tar").write_text("mine")
    assert run() == 2
    assert "two.tar: its md5 is" in capsys.readouterr().err
    assert download_voc.main(["--root", str(tmp_path / "1/x")], archives) == 2
    assert "--root: " in capsys.readouterr().err


def test_an_old_python_is_told_so(monkeypatch, tmp_path):
    monkeypatch.delattr(tarfile, "data_filter")
    with pytest.raises(InputError, match=r"needs Python 3\.11\.4 or newer"):
        unpack(tmp_path / "a.tar", tmp_path)
