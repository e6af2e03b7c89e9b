"""The download against a real server that misbehaves in every way, and against real kills."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from whycam.data import open_source
from whycam.data.download import Archive, download_archive
from whycam.data.fetch import RetryPolicy
from whycam.errors import WhycamError

FOLDER = "cifar-10-batches-bin"
FILE_SIZE = 200_000
FAST_RETRY = RetryPolicy(timeout=0.4, attempts=3, pause=0.01)


def contents() -> dict[str, bytes]:
    """Six incompressible files of the layout."""
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    return {name: np.random.default_rng(number).bytes(FILE_SIZE) for number, name in enumerate(names)}


def packed(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


GOOD = packed({f"{FOLDER}/{name}": data for name, data in {**contents(), "batches.meta.txt": b"airplane\n"}.items()})


class Server(http.server.ThreadingHTTPServer):
    """Serves ``body`` as ``respond`` says; remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = GOOD
        self.requests: list[dict[str, str]] = []
        self.respond: Callable[[Handler, int], None] = lambda handler, number: handler.serve()
        self.hung = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/cifar-10-binary.tar.gz"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that goes away is part of the tests


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        self.server.respond(self, len(self.server.requests))

    def serve(
        self,
        *,
        most: int | None = None,
        length: int | None = -1,
        hang: bool = False,
        slow: float = 0,
    ) -> None:
        """Send ``most`` bytes of the body at most, announce another length (None: none), hang at the end."""
        body = self.server.body
        self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(len(body) if length == -1 else length))
        self.end_headers()
        end = len(body) if most is None else min(most, len(body))
        for position in range(0, end, 2**14):
            self.wfile.write(body[position : min(position + 2**14, end)])
            time.sleep(slow)
        self.wfile.flush()
        if hang:
            self.server.hung.wait(20)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.hung.set()
        server.shutdown()
        thread.join()


def archive_of(server: Server, body: bytes = GOOD) -> Archive:
    return Archive(
        url=server.url,
        size=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        folder=FOLDER,
        file_size=FILE_SIZE,
        files={name: hashlib.sha256(data).hexdigest() for name, data in contents().items()},
    )


def assert_complete(directory: Path, *others: str) -> None:
    """The folder is complete, and nothing else is left in the directory."""
    for name, data in contents().items():
        assert (directory / FOLDER / name).read_bytes() == data
    assert sorted(path.name for path in directory.iterdir()) == sorted([FOLDER, *others])


def refused(server: Server, directory: Path, **changes: object) -> str:
    with pytest.raises(WhycamError) as caught:
        download_archive(dataclasses.replace(archive_of(server), **changes), directory, retry=FAST_RETRY)
    assert not (directory / FOLDER).exists()
    assert not list(directory.glob(".*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_download_and_second_call(server, tmp_path, capfd):
    steps: list[tuple[int, int]] = []
    folder = download_archive(archive_of(server), tmp_path / "new" / "data", progress=lambda *step: steps.append(step))
    assert folder == tmp_path / "new" / "data" / FOLDER
    assert_complete(tmp_path / "new" / "data")
    assert steps[0] == (0, len(GOOD))
    assert steps[-1] == (len(GOOD), len(GOOD))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert download_archive(archive_of(server), tmp_path / "new" / "data") == folder
    assert download_archive(archive_of(server), folder) == folder
    assert len(server.requests) == 1
    assert capfd.readouterr() == ("", "")


def test_redirects_are_followed(server, tmp_path):
    def respond(handler: Handler, number: int) -> None:
        if number == 1:
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.end_headers()
        else:
            handler.serve()

    server.respond = respond
    download_archive(archive_of(server), tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize("hang", [False, True], ids=["truncated", "stalled"])
def test_broken_connections_are_retried(server, tmp_path, hang):
    half = len(GOOD) // 2
    server.respond = lambda handler, number: handler.serve(most=half if number < 3 else None, hang=hang and number < 3)
    steps: list[tuple[int, int]] = []
    download_archive(archive_of(server), tmp_path, progress=lambda *step: steps.append(step), retry=FAST_RETRY)
    assert_complete(tmp_path)
    assert len(server.requests) == 3
    assert [step for step in steps if step[0] == 0] == [(0, len(GOOD))] * 3
    assert steps[-1] == (len(GOOD), len(GOOD))


def test_a_stall_before_the_answer(server, tmp_path):
    def respond(handler: Handler, number: int) -> None:
        handler.server.hung.wait(1.0) if number == 1 else handler.serve()

    server.respond = respond
    download_archive(archive_of(server), tmp_path, retry=FAST_RETRY)
    assert_complete(tmp_path)


def test_a_trickle_of_bytes_counts_as_stalled(server, tmp_path):
    """A byte now and then keeps a socket from timing out; it is a stall all the same."""

    def respond(handler: Handler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(GOOD)))
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.respond = respond
    assert "failed 3 times in a row (the connection stalled)" in refused(server, tmp_path)


def test_stalls_are_retried_a_bounded_number_of_times(server, tmp_path):
    server.respond = lambda handler, number: handler.serve(most=100, hang=True)
    message = refused(server, tmp_path)
    assert "failed 3 times in a row (the connection stalled): run the same again later, or download http" in message
    assert len(server.requests) == 3
    assert list(tmp_path.iterdir()) == []
    server.respond = lambda handler, number: handler.serve()
    download_archive(archive_of(server), tmp_path)
    assert_complete(tmp_path)


@pytest.mark.parametrize("length", [-1, None], ids=["announced", "not announced"])
def test_a_connection_that_always_breaks(server, tmp_path, length):
    server.respond = lambda handler, number: handler.serve(most=300_000, length=length)
    assert "failed 3 times in a row (the connection ended after 300,000 bytes)" in refused(server, tmp_path)


def test_the_pause_doubles_with_each_failure(server, tmp_path):
    times: list[float] = []

    def respond(handler: Handler, number: int) -> None:
        times.append(time.monotonic())
        handler.send_error(503)

    server.respond = respond
    with pytest.raises(WhycamError):
        download_archive(archive_of(server), tmp_path, retry=RetryPolicy(attempts=4, pause=0.05))
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert all(pause >= least for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True))


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_wrong_content_length(server, tmp_path, difference):
    server.respond = lambda handler, number: handler.serve(length=len(GOOD) + difference)
    message = refused(server, tmp_path)
    assert f"sends {len(GOOD) + difference:,} bytes, but the file has {len(GOOD):,}: it is another file" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_longer_than_announced(server, tmp_path):
    server.body = GOOD + b"more"
    server.respond = lambda handler, number: handler.serve(length=None)
    assert f"sends more than {len(GOOD):,} bytes" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_announced_length_is_fine(server, tmp_path):
    server.respond = lambda handler, number: handler.serve(length=None)
    download_archive(archive_of(server), tmp_path)
    assert_complete(tmp_path)


def test_a_wrong_checksum(server, tmp_path):
    server.body = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
    message = refused(server, tmp_path)
    assert f"{server.url} is damaged or another file (" in message
    assert f"expected sha256:{archive_of(server).sha256} but got {hashlib.sha256(server.body).hexdigest()})" in message
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (500, 3), (503, 3), (429, 3)])
def test_http_errors(server, tmp_path, code, requests):
    server.respond = lambda handler, number: handler.send_error(code)
    message = refused(server, tmp_path)
    assert str(code) in message
    assert "put it at" in message
    assert len(server.requests) == requests
    assert list(tmp_path.iterdir()) == []


def test_transient_http_errors_are_retried(server, tmp_path):
    server.respond = lambda handler, number: handler.send_error(503) if number < 3 else handler.serve()
    download_archive(archive_of(server), tmp_path, retry=FAST_RETRY)
    assert_complete(tmp_path)


def test_without_pooch(server, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    message = refused(server, tmp_path)
    assert message == "downloading CIFAR-10 needs pooch, which is not installed: pip install 'whycam[study]'"
    assert list(tmp_path.iterdir()) == []


def test_without_a_network(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x.tar.gz"
    started = time.monotonic()
    message = refused(server, tmp_path, url=url)
    assert time.monotonic() - started < 5
    assert message == (
        f"{url} cannot be reached (Connection refused): download {url} on another machine and put it at "
        f"{tmp_path / 'cifar-10-binary.tar.gz'}, or use the images that come with whycam "
        "(the word 'bundled' in place of a path)"
    )
    assert list(tmp_path.iterdir()) == []
    assert "cannot be reached" in refused(server, tmp_path, url="https://nowhere.invalid/x")
    for url in ("file:///etc/passwd", "http://[half", "http://a b/c"):
        assert f"{url} is no http or https address" in refused(server, tmp_path, url=url)


def test_an_archive_downloaded_by_hand(server, tmp_path):
    own = tmp_path / "cifar-10-binary.tar.gz"
    own.write_bytes(GOOD[:-5])
    assert f"bytes instead of {len(GOOD):,}: it is truncated or another file; remove {own}" in refused(server, tmp_path)
    own.write_bytes(GOOD[:-1] + b"x")
    assert f"instead of {archive_of(server).sha256}: it is damaged or another file; remove {own}" in refused(
        server, tmp_path
    )
    own.write_bytes(GOOD)
    download_archive(archive_of(server), tmp_path)
    assert_complete(tmp_path, own.name)
    assert server.requests == []


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"../evil": b"x"}, "would escape its folder ('../evil')"),
        ({"/evil": b"x"}, "would escape its folder ('/evil')"),
        ({"evil": b"x"}, "holds 'evil', which does not belong there"),
        ({f"{FOLDER}/sub/test_batch.bin": b"x"}, "which does not belong there"),
        ({f"{FOLDER}/readme.html": bytes(70_000)}, "has 70,000 bytes, which is wrong"),
        ({f"{FOLDER}/test_batch.bin": b"x"}, "has 1 bytes, which is wrong"),
        (
            {f"{FOLDER}/{name}": data for name, data in {**contents(), "test_batch.bin": bytes(FILE_SIZE)}.items()},
            "has a test_batch.bin with a wrong SHA-256: it was not unpacked",
        ),
        ({f"{FOLDER}/test_batch.bin": contents()["test_batch.bin"]}, "has no data_batch_1.bin: it was not unpacked"),
    ],
)
def test_unexpected_members_are_refused(server, tmp_path, members, reason):
    directory = tmp_path / "inner"
    server.body = packed(members)
    with pytest.raises(WhycamError) as caught:
        download_archive(archive_of(server, server.body), directory)
    assert reason in str(caught.value)
    assert not (directory / FOLDER).exists()
    assert not list(directory.glob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_existing_folders_are_not_overwritten(server, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(WhycamError, match=rf"{FOLDER} exists but has no data_batch_1\.bin: move it away"):
        download_archive(archive_of(server), tmp_path)
    assert (folder / "thesis.txt").read_text() == "precious"
    (folder / "thesis.txt").unlink()
    download_archive(archive_of(server), tmp_path)  # an empty folder is as good as none
    assert_complete(tmp_path)
    (folder / "test_batch.bin").write_bytes(bytes(FILE_SIZE))
    with pytest.raises(WhycamError, match=r"has a test_batch\.bin with a wrong SHA-256"):
        download_archive(archive_of(server), tmp_path)
    (folder / "test_batch.bin").write_bytes(b"x")
    with pytest.raises(WhycamError, match=r"has a test_batch\.bin of 1 bytes instead of 200,000"):
        download_archive(archive_of(server), tmp_path)


def test_a_directory_that_is_a_file_or_read_only(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WhycamError, match=r"file: cannot be written: (File exists|part of the path is a file)"):
        download_archive(archive_of(server), tmp_path / "file")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(WhycamError, match=r"cannot be written: permission denied; choose another folder"):
            download_archive(archive_of(server), base)
        with pytest.raises(WhycamError, match=r"cannot be written: permission denied"):
            download_archive(archive_of(server), base / "deeper")
    finally:
        os.seteuid(user)
        base.rmdir()


def test_free_space_is_checked_first(server, tmp_path):
    with pytest.raises(WhycamError, match=r"has [\d,]+ MB free, CIFAR-10 needs [\d,]+ MB"):
        download_archive(dataclasses.replace(archive_of(server), size=10**17), tmp_path)
    assert list(tmp_path.iterdir()) == []


WORKER = textwrap.dedent("""
    import json, os, resource, sys
    import pooch, requests  # now, not in each child
    from pathlib import Path
    from whycam.data.download import Archive, download_archive
    from whycam.errors import WhycamError
    for line in sys.stdin:
        values, directory, limit = json.loads(line)
        child = os.fork()
        if child == 0:
            if limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                download_archive(Archive(**values), Path(directory))
            except WhycamError as error:
                print(error, flush=True)
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("ended", flush=True)
""")


class Worker:
    """Runs downloads in processes of their own, forked from one that has imported everything already."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def start(self, archive: Archive, directory: Path, limit: int = 0) -> int:
        values = {**dataclasses.asdict(archive), "optional_files": sorted(archive.optional_files)}
        self.stdin.write(json.dumps([values, str(directory), limit]) + "\n")
        self.stdin.flush()
        return int(self.stdout.readline())

    def finish(self) -> str:
        """Wait for the download to end, and return its error."""
        lines = []
        while (line := self.stdout.readline()) != "ended\n":
            assert line, "the worker died"
            lines.append(line)
        return "".join(lines)


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.stdin.close()
    worker.process.wait(timeout=60)
    worker.stdout.close()


@pytest.mark.parametrize("failing", ["downloading", "unpacking"])
def test_disk_full(server, worker, tmp_path, failing):
    """A limit on file sizes fails a write in the middle, as a full disk does."""
    if failing == "unpacking":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    worker.start(archive_of(server), tmp_path, limit=FILE_SIZE - 5)
    assert worker.finish() == f"{tmp_path}: cannot be written: File too large\n"
    assert not (tmp_path / FOLDER).exists()
    assert not list(tmp_path.glob(".*"))
    download_archive(archive_of(server), tmp_path)
    assert (tmp_path / FOLDER / "test_batch.bin").read_bytes() == contents()["test_batch.bin"]


def test_two_downloads_into_one_directory(server, worker, tmp_path):
    server.respond = lambda handler, number: handler.serve(slow=0.01)
    worker.start(archive_of(server), tmp_path)
    while not server.requests:
        time.sleep(0.01)
    with pytest.raises(WhycamError, match="is being downloaded into by another process: wait for it"):
        download_archive(archive_of(server), tmp_path)
    assert worker.finish() == ""
    assert_complete(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_killed_while_downloading(server, worker, tmp_path, share):
    server.respond = lambda handler, number: handler.serve(slow=0.01 if number == 1 else 0)
    child = worker.start(archive_of(server), tmp_path)
    work = tmp_path / f".{FOLDER}.partial"

    def downloaded() -> int:
        with contextlib.suppress(FileNotFoundError):  # moved meanwhile
            return max((path.stat().st_size for path in work.iterdir()), default=-1)
        return -1

    while (have := downloaded()) < share * len(GOOD):
        assert not (tmp_path / FOLDER).exists()
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert worker.finish() == ""
    assert not (tmp_path / FOLDER).exists()
    assert have < len(GOOD), "the kill came too late to test anything"
    with pytest.raises(WhycamError, match="holds an unfinished download"):
        open_source(tmp_path)
    download_archive(archive_of(server), tmp_path)
    assert_complete(tmp_path)


def test_killed_while_unpacking(server, worker, tmp_path):
    """Kills after each file that is unpacked; whatever is then under the final name is whole."""
    between = 0
    for attempt in range(28):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        (directory / "cifar-10-binary.tar.gz").write_bytes(GOOD)
        child = worker.start(archive_of(server), directory)
        temporary, final = directory / f".{FOLDER}.partial" / FOLDER, directory / FOLDER
        while not final.exists():
            with contextlib.suppress(FileNotFoundError):
                if len(list(temporary.iterdir())) >= attempt % 7:
                    break
        os.kill(child, signal.SIGKILL)
        assert worker.finish() == ""
        if final.exists():
            assert {path.name: path.read_bytes() for path in final.glob("*.bin")} == contents()
        between += temporary.exists()
        download_archive(archive_of(server), directory)
        assert_complete(directory, "cifar-10-binary.tar.gz")
    assert between > 5, "hardly a kill came while unpacking, so nothing was tested"
    assert server.requests == []
