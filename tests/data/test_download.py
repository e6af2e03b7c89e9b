"""The download against a real server that misbehaves in every way, and against real kills."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
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

from whycam.data.download import Archive, download_archive
from whycam.data.fetch import Patience
from whycam.errors import WhycamError

FOLDER = "cifar-10-batches-bin"
FILE_SIZE = 200_000
HURRIED = Patience(timeout=0.4, attempts=3, pause=0.01)


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
    """Serves ``body`` as ``behave`` says; remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = GOOD
        self.etag = '"one"'
        self.requests: list[dict[str, str]] = []
        self.behave: Callable[[Handler, int], None] = lambda handler, number: handler.serve()
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
        self.server.behave(self, len(self.server.requests))

    def serve(
        self,
        *,
        most: int | None = None,
        ranges: bool = True,
        length: int | None = -1,
        hang: bool = False,
        slow: float = 0,
    ) -> None:
        """Answer properly, but for: only ``most`` bytes, no ranges, another length (None: none), a hang at the end."""
        body, start = self.server.body, 0
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if ranges and wanted and condition in (None, self.server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if length is not None:
            self.send_header("Content-Length", str(len(body) - start if length == -1 else length))
        self.send_header("ETag", self.server.etag)
        self.end_headers()
        end = len(body) if most is None else start + most
        for position in range(start, min(end, len(body)), 2**14):
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


def assert_whole(directory: Path, *others: str) -> None:
    """The folder is complete, and nothing else is left in the directory."""
    for name, data in contents().items():
        assert (directory / FOLDER / name).read_bytes() == data
    assert sorted(path.name for path in directory.iterdir()) == sorted([FOLDER, *others])


def refused(server: Server, directory: Path, **changes: object) -> str:
    with pytest.raises(WhycamError) as caught:
        download_archive(dataclasses.replace(archive_of(server), **changes), directory, patience=HURRIED)
    assert not (directory / FOLDER).exists()
    assert not list(directory.glob(".*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_download_and_second_call(server, tmp_path):
    steps: list[tuple[int, int]] = []
    folder = download_archive(archive_of(server), tmp_path / "new" / "data", progress=lambda *step: steps.append(step))
    assert folder == tmp_path / "new" / "data" / FOLDER
    assert_whole(tmp_path / "new" / "data")
    assert steps[0] == (0, len(GOOD))
    assert steps[-1] == (len(GOOD), len(GOOD))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert download_archive(archive_of(server), tmp_path / "new" / "data") == folder
    assert download_archive(archive_of(server), folder) == folder
    assert len(server.requests) == 1


def test_redirects_are_followed(server, tmp_path):
    def behave(handler: Handler, number: int) -> None:
        if number == 1:
            handler.send_response(302)
            handler.send_header("Location", "/elsewhere")
            handler.end_headers()
        else:
            handler.serve()

    server.behave = behave
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize("hang", [False, True], ids=["truncated", "stalled"])
def test_a_broken_connection_is_continued(server, tmp_path, hang):
    third = len(GOOD) // 3
    server.behave = lambda handler, number: handler.serve(most=third, hang=hang)
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)
    assert [request.get("Range") for request in server.requests] == [
        None,
        *(f"bytes={third * count}-" for count in range(1, len(server.requests))),
    ]
    assert all(request["If-Range"] == '"one"' for request in server.requests[1:])


def test_a_stall_before_the_answer(server, tmp_path):
    def behave(handler: Handler, number: int) -> None:
        handler.server.hung.wait(1.0) if number == 1 else handler.serve()

    server.behave = behave
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)


def test_a_server_that_drips(server, tmp_path):
    """A byte now and then keeps a socket from timing out; it is a stall all the same."""

    def behave(handler: Handler, number: int) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(GOOD)))
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"x")
            time.sleep(0.05)

    server.behave = behave
    assert "failed 3 times in a row (the connection stalled)" in refused(server, tmp_path)


def test_stalls_are_retried_a_bounded_number_of_times(server, tmp_path):
    server.behave = lambda handler, number: handler.serve(most=100, hang=True)
    message = refused(server, tmp_path)
    assert "failed 3 times in a row (the connection stalled)" in message
    assert "bytes are kept: run the same again to continue, or download http" in message
    assert 3 <= len(server.requests) <= 6
    server.behave = lambda handler, number: handler.serve()
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)
    assert server.requests[-1]["Range"].startswith("bytes=")


def test_a_server_without_ranges(server, tmp_path):
    server.behave = lambda handler, number: handler.serve(most=None if number == 2 else 300_000, ranges=False)
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)


def test_a_server_without_ranges_that_always_breaks_off(server, tmp_path):
    server.behave = lambda handler, number: handler.serve(most=300_000, ranges=False)
    assert "failed 3 times in a row (the connection ended after 300,000 bytes)" in refused(server, tmp_path)


def test_a_file_that_changed_meanwhile(server, tmp_path):
    server.body = b"x" * len(GOOD)
    server.behave = lambda handler, number: handler.serve(most=400_000) if number == 1 else handler.send_error(404)
    assert "404" in refused(server, tmp_path)
    assert (tmp_path / "cifar-10-binary.tar.gz.part").stat().st_size == 400_000
    server.body, server.etag = GOOD, '"two"'
    server.behave = lambda handler, number: handler.serve()
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)
    assert server.requests[-1]["If-Range"] == '"one"'


def test_a_wrong_beginning_without_a_memory_of_it_is_begun_anew(server, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(b"y" * 1000)
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)
    assert [request.get("Range") for request in server.requests] == ["bytes=1000-", None]


@pytest.mark.parametrize("extra", [0, 1, 1000])
def test_a_partial_file_of_full_length_or_more(server, tmp_path, extra):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(GOOD + b"z" * extra)
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)
    assert len(server.requests) == (1 if extra else 0)


def test_a_refused_range_416(server, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(GOOD[:5000])
    server.behave = lambda handler, number: handler.send_error(416) if number == 1 else handler.serve()
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)


def test_a_wrong_part(server, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(GOOD[:5000])

    def behave(handler: Handler, number: int) -> None:
        if number > 1:
            return handler.serve()
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(GOOD) - 1}/{len(GOOD)}")
        handler.end_headers()
        return None

    server.behave = behave
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)


@pytest.mark.parametrize("difference", [-1000, 1000])
def test_a_server_that_lies_about_the_size(server, tmp_path, difference):
    server.behave = lambda handler, number: handler.serve(length=len(GOOD) + difference)
    message = refused(server, tmp_path)
    assert f"sends {len(GOOD) + difference:,} bytes, but the file has {len(GOOD):,}: it is another file" in message
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_longer_than_announced(server, tmp_path):
    server.body = GOOD + b"more"
    server.behave = lambda handler, number: handler.serve(length=None)
    assert f"sends more than {len(GOOD):,} bytes" in refused(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_announced_length_is_fine(server, tmp_path):
    server.behave = lambda handler, number: handler.serve(length=None)
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)


def test_a_wrong_checksum(server, tmp_path):
    server.body = GOOD[:-1] + bytes([GOOD[-1] ^ 1])
    message = refused(server, tmp_path)
    assert f"has the SHA-256 {hashlib.sha256(server.body).hexdigest()} instead of" in message
    assert list(tmp_path.iterdir()) == []
    assert len(server.requests) == 1


@pytest.mark.parametrize(("code", "requests"), [(404, 1), (403, 1), (500, 3), (503, 3), (429, 3)])
def test_error_answers(server, tmp_path, code, requests):
    server.behave = lambda handler, number: handler.send_error(code)
    message = refused(server, tmp_path)
    assert str(code) in message
    assert "put it at" in message
    assert len(server.requests) == requests
    assert list(tmp_path.iterdir()) == []


def test_a_passing_error(server, tmp_path):
    server.behave = lambda handler, number: handler.send_error(503) if number < 3 else handler.serve()
    download_archive(archive_of(server), tmp_path, patience=HURRIED)
    assert_whole(tmp_path)


def test_offline(server, tmp_path):
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
    assert "is no http or https address" in refused(server, tmp_path, url="file:///etc/passwd")


def test_an_archive_downloaded_by_hand(server, tmp_path):
    own = tmp_path / "cifar-10-binary.tar.gz"
    own.write_bytes(GOOD[:-5])
    assert f"bytes instead of {len(GOOD):,}: it is truncated or another file; remove {own}" in refused(server, tmp_path)
    own.write_bytes(GOOD)
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path, own.name)
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
        ({f"{FOLDER}/test_batch.bin": bytes(FILE_SIZE)}, "instead of"),
        ({f"{FOLDER}/test_batch.bin": contents()["test_batch.bin"]}, "lacks data_batch_1.bin, data_batch_2.bin"),
    ],
)
def test_what_does_not_belong_is_not_unpacked(server, tmp_path, members, reason):
    directory = tmp_path / "inner"
    server.body = packed(members)
    with pytest.raises(WhycamError) as caught:
        download_archive(archive_of(server, server.body), directory)
    assert reason in str(caught.value)
    assert not (directory / FOLDER).exists()
    assert not list(directory.glob(".*"))
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


def test_something_else_under_the_name_is_left_alone(server, tmp_path):
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    with pytest.raises(WhycamError, match=rf"{FOLDER} exists but has no data_batch_1\.bin: move it away"):
        download_archive(archive_of(server), tmp_path)
    assert (folder / "thesis.txt").read_text() == "precious"
    (folder / "thesis.txt").unlink()
    download_archive(archive_of(server), tmp_path)  # an empty folder is as good as none
    assert_whole(tmp_path)
    (folder / "test_batch.bin").write_bytes(bytes(FILE_SIZE))
    with pytest.raises(WhycamError, match=r"has a test_batch\.bin with a wrong SHA-256"):
        download_archive(archive_of(server), tmp_path)
    (folder / "test_batch.bin").write_bytes(b"x")
    with pytest.raises(WhycamError, match=r"has a test_batch\.bin of 1 bytes instead of 200,000"):
        download_archive(archive_of(server), tmp_path)


def test_a_directory_that_is_a_file_or_read_only(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WhycamError, match=r"file cannot be written \((File exists|Not a directory)\)"):
        download_archive(archive_of(server), tmp_path / "file")
    base = Path(tempfile.mkdtemp())
    base.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(WhycamError, match=r"cannot be written \(Permission denied\): make room, or choose another"):
            download_archive(archive_of(server), base)
        with pytest.raises(WhycamError, match=r"cannot be written \(Permission denied\)"):
            download_archive(archive_of(server), base / "deeper")
    finally:
        os.seteuid(user)
        base.rmdir()


def test_too_little_room_is_noticed_beforehand(server, tmp_path):
    with pytest.raises(WhycamError, match=r"has [\d,]+ MB free, CIFAR-10 needs [\d,]+ MB"):
        download_archive(dataclasses.replace(archive_of(server), size=10**17), tmp_path)
    assert list(tmp_path.iterdir()) == []


WORKER = textwrap.dedent("""
    import json, os, resource, sys
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
                download_archive(Archive(**{**values, "extras": frozenset(values["extras"])}), Path(directory))
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
        values = {**dataclasses.asdict(archive), "extras": list(archive.extras)}
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
def test_a_disk_that_fills_up_all_the_same(server, worker, tmp_path, failing):
    """A limit on file sizes fails a write in the middle, as a full disk does."""
    if failing == "unpacking":
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(GOOD)
    worker.start(archive_of(server), tmp_path, limit=FILE_SIZE - 5)
    assert "cannot be written (File too large): make room, or choose another directory" in worker.finish()
    assert not (tmp_path / FOLDER).exists()
    assert not list(tmp_path.glob(".*"))
    download_archive(archive_of(server), tmp_path)
    assert (tmp_path / FOLDER / "test_batch.bin").read_bytes() == contents()["test_batch.bin"]


def test_two_downloads_into_one_directory(server, worker, tmp_path):
    server.behave = lambda handler, number: handler.serve(slow=0.01)
    worker.start(archive_of(server), tmp_path)
    while not server.requests:
        time.sleep(0.01)
    with pytest.raises(WhycamError, match="is being downloaded into by another process: wait for it"):
        download_archive(archive_of(server), tmp_path)
    assert worker.finish() == ""
    assert_whole(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.9])
def test_killed_while_downloading(server, worker, tmp_path, share):
    server.behave = lambda handler, number: handler.serve(slow=0.01 if number == 1 else 0)
    child = worker.start(archive_of(server), tmp_path)
    part = tmp_path / "cifar-10-binary.tar.gz.part"
    while not part.exists() or part.stat().st_size < share * len(GOOD):
        assert not (tmp_path / FOLDER).exists()
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    assert worker.finish() == ""
    assert not (tmp_path / FOLDER).exists()
    have = part.stat().st_size
    assert have < len(GOOD), "the kill came too late to test anything"
    download_archive(archive_of(server), tmp_path)
    assert_whole(tmp_path)
    assert server.requests[-1].get("Range") == (f"bytes={have}-" if have else None)


def test_killed_while_unpacking(server, worker, tmp_path):
    """Kills after each file that is unpacked; whatever is then under the final name is whole."""
    between = 0
    for attempt in range(28):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        (directory / "cifar-10-binary.tar.gz.part").write_bytes(GOOD)
        child = worker.start(archive_of(server), directory)
        temporary, final = directory / f".{FOLDER}.unpacking", directory / FOLDER
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
        assert_whole(directory)
    assert between > 5, "hardly a kill came while unpacking, so nothing was tested"
    assert server.requests == []
