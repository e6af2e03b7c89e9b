"""The server among strangers: who may ask, how much, for how long, and how it ends."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served import encoded, read_all

import whycam
from whycam.app.guard import Hosts
from whycam.app.limits import Limits
from whycam.cli.main import main
from whycam.data import take
from whycam.report import write_report
from whycam.study import run_study

LIMITS = Limits()


def head(served, path="/explain?layer=layer4[-1]", **fields):
    fields = {"Host": f"127.0.0.1:{served.port}", **fields}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def comes_to(expected: int, status, seconds: float = 10) -> bool:
    """Whether ``status()`` is as expected soon: a busy machine may be late to notice what clients did."""
    end = time.monotonic() + seconds
    while status() != expected:
        if time.monotonic() > end:
            return False
    return True


def status_of(response: bytes) -> int:
    return int(response.split(b" ", 2)[1])


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200), ("localhost:{port}", 200), ("LOCALHOST", 200), ("[::1]:{port}", 200),
        ("evil.example", 421), ("127.0.0.1.evil.example", 421), ("evil.example:{port}", 421), ("10.0.0.1", 421),
        ("127.0.0.1@evil.example", 421), ("user@127.0.0.1", 421), ("127.0.0.1/", 421), ("127.0.0.1:x", 421),
        ("", 421), ("0x7f000001", 421),
    ],
)  # fmt: skip
def test_other_hosts_are_refused(host, status, server):
    answer = server.ask(headers={"Host": host.format(port=server.port)})
    assert answer.status == status
    assert (b"What does it see" in answer.body) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:{port}"}, 200),
        ({"Origin": "http://127.0.0.1:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://localhost:{port}"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_other_sites_pages_are_refused(headers, status, server, photo):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert server.explain(photo, headers=headers).status == status


def test_names_that_are_allowed_besides():
    hosts = Hosts.serving("0.0.0.0", ["Demo.Example.org", ".spaces.example"])
    for name in ("demo.example.org", "a.spaces.example:443", "b.a.spaces.example", "192.168.1.7:8000", "[fe80::1]"):
        assert hosts.admit(name), name
    for name in ("example.org", "spaces.example", "spaces.example.evil.org", "0.0.0.0.evil.org", "xspaces.example"):
        assert not hosts.admit(name), name
    assert not Hosts.serving("127.0.0.1").admit("192.168.1.7")


def test_a_public_server_answers_to_the_names_it_was_given(launch, photo):
    named = ("--allow-host", "demo.example.org", "--allow-frame", "https://frames.example")
    public = launch("cifar10-resnet18", "--port", "0", "--host", "0.0.0.0", "--json", *named)
    assert public.url.startswith("http://127.0.0.1:")
    for host, status in (("demo.example.org", 200), ("192.0.2.7:80", 200), ("other.example.org", 421)):
        answer = public.ask(headers={"Host": host})
        assert answer.status == status
    assert "frame-ancestors https://frames.example" in public.ask().headers["content-security-policy"]
    # Behind a proxy that ends TLS the page's origin has the public name.
    headers = {"Host": "demo.example.org", "Origin": "https://demo.example.org"}
    assert public.explain(photo, headers=headers).status == 200


TRAVERSALS = (
    "/../../../../etc/passwd", "/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd",
    "/report_files/../manifest.json", "/report_files/..%2fmanifest.json", "/report_files/%00", "/static/app.js",
    "/manifest.json", "/report.html", "/live/../../etc/passwd", "/..\\..\\win.ini", "/report_files//etc/passwd",
)  # fmt: skip


@pytest.mark.parametrize("path", TRAVERSALS)
def test_no_path_reaches_a_file(path, server, study_server):
    for served in (server, study_server):
        response = served.raw(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        assert status_of(response) in (400, 404)
        assert b"root:" not in response
        assert b"weights_sha256" not in response


def test_headers_of_every_answer(server, photo):
    answers = [server.ask(), server.ask(path="/nothing"), server.explain(photo), server.ask("PUT", "/explain"),
               server.ask(headers={"Host": "evil.example"})]  # fmt: skip
    assert [answer.status for answer in answers] == [200, 404, 200, 405, 421]
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in answer.headers


def test_broken_requests_do_no_harm(server):
    for request in (b"\0\1\2\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 70_000,
                    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
                    b"POST /explain HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):  # fmt: skip
        try:
            response = server.raw(request)
        except ConnectionError:  # hung up on
            continue
        assert not response or status_of(response) in (400, 421, 431)
    assert server.ask(path="/health").status == 200


def test_a_declared_size_beyond_the_limit_is_refused(server):
    body = b"x" * (LIMITS.file_bytes + 1)
    answer = server.explain(body)
    assert answer.status == 413
    assert "larger than 8 MiB" in answer.json["error"]


def test_an_undeclared_size_beyond_the_limit_is_refused(server):
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    response = server.raw(head(server, Transfer_Encoding="chunked") + piece * 130 + b"0\r\n\r\n")
    assert status_of(response) == 413


def test_a_size_that_is_a_lie(server):
    with server.connect() as connection:
        connection.sendall(head(server, Content_Length="99999999999999999999"))
        assert status_of(read_all(connection)) == 413


def test_two_hundred_at_once(server):
    """As many as fit get their maps, the others are told when to come back, and memory stays bounded."""
    rng = np.random.default_rng(0)
    large = encoded(rng.integers(0, 255, (900, 900, 3), dtype=np.uint8))  # 2.4 MB each, 486 MB in all
    server.explain(large)
    before = server.peak_mib()
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: server.explain(large, timeout=300), range(200)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 503}
    assert statuses.count(200) >= 10
    for answer in answers:
        assert answer.status == 200 or int(answer.headers["retry-after"]) >= 1
    grown = server.peak_mib() - before
    assert grown < 3 * LIMITS.total_bytes / 2**20 + 64, grown
    assert server.explain(large).status == 200


def test_clients_that_hang(limited, photo):
    """Those who send no request, half a head or half a body: others are served meanwhile, and they are let go."""
    silent = [limited.connect() for _ in range(20)]
    halves = [limited.connect() for _ in range(20)]
    for connection in halves:
        connection.sendall(b"GET / HT")
    bodies = [limited.connect() for _ in range(8)]
    for connection in bodies:
        connection.sendall(head(limited, Content_Length="1000") + b"\x89PNG")
    assert limited.explain(photo).status == 200
    for connection in silent + halves:
        assert read_all(connection) == b""
        connection.close()
    for connection in bodies:
        assert status_of(read_all(connection)) == 408
        connection.close()
    assert limited.ask(path="/health").status == 200


def test_work_for_those_who_left_is_not_done(limited, photo):
    """One in progress is given up between two layers, those waiting are never begun."""
    request = head(limited, Content_Length=str(len(photo))) + photo
    first = limited.connect()
    first.sendall(request)
    while not limited.log.exists():
        time.sleep(0.01)
    waiting = [limited.connect() for _ in range(2)]
    for connection in waiting:
        connection.sendall(request)
    time.sleep(0.2)  # one is in the network now, the others in the line
    # Those in the line leave first: had the first one gone before them, one of them could rightly have begun.
    for connection in [*waiting, first]:
        connection.close()
    assert limited.explain(photo).status == 200
    assert limited.log.read_text().split() == ["begin", "begin", "end"]


def test_the_line_is_short(limited, photo):
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: limited.explain(photo), range(10)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses == [200] * 4 + [503] * 6
    assert all("busy" in answer.json["error"] for answer in answers if answer.status == 503)


def test_uploads_in_progress_are_bounded(limited, photo):
    def beside_twelve() -> int:
        open_uploads = [limited.connect() for _ in range(12)]
        for connection in open_uploads:
            connection.sendall(head(limited, Content_Length="1000") + b"x")
        status = limited.explain(photo).status
        for connection in open_uploads:
            connection.close()
        return status

    assert comes_to(503, beside_twelve)
    assert comes_to(200, lambda: limited.explain(photo).status)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_whatever_goes_on(how, limited, photo):
    hanging = limited.connect()
    hanging.sendall(b"GET / HT")
    working = limited.connect()
    working.sendall(head(limited, Content_Length=str(len(photo))) + photo)
    while not limited.log.exists():
        time.sleep(0.01)
    status, _, err = limited.stop(how)
    assert (status, err) == (0, "")
    answer = read_all(working)
    assert status_of(answer) == 503
    assert b"shutting down" in answer
    assert limited.log.read_text().split() == ["begin"]
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind((limited.host, limited.port))
    hanging.close()
    working.close()


def test_a_port_that_is_taken_is_one_sentence(server):
    command = [sys.executable, "-m", "whycam", "serve", "cifar10-resnet18", "--port", str(server.port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2, result
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("whycam: error: ")
    assert "choose another --host or --port" in line


def test_mistakes_are_one_sentence(tmp_path, study_folder, capfd):
    bundled = "cifar10-resnet18"
    expected = {
        (bundled, "--host", "203.0.113.1"): "cannot listen on 203.0.113.1",
        (bundled, "--port", 70000): "port 70000 (a port is 0 to 65535)",
        (tmp_path / "nothing", "--port", 0): "no such checkpoint",
        (bundled, "--port", 0, "--allow-frame", "https://a; x"): "give an origin",
        (bundled, "--port", 0, "--checkpoint", bundled): "no study folder",
        (study_folder, "--port", 0, "--checkpoint", bundled): "weights differ",
        (bundled, "--port", 0, "--layers", "layer7"): "unknown layer",
    }
    for arguments, part in expected.items():
        assert main(["serve", *map(str, arguments)]) == 2
        out, error = capfd.readouterr()
        assert out == ""
        (line,) = error.strip().splitlines()
        assert line.startswith("whycam: error: ")
        assert part in line


def test_without_the_extra_it_says_which():
    code = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "uvicorn":
            raise ModuleNotFoundError(name=name)
sys.meta_path.insert(0, Blocker())
from whycam.cli.main import main
sys.exit(main(["serve", "cifar10-resnet18"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "pip install 'whycam[app]'" in result.stderr


def test_a_study_is_served_as_it_lies_there(study_server, study_folder):
    page = study_server.ask()
    on_disk = (study_folder / "report.html").read_text(encoding="utf-8")
    assert page.body.decode() == on_disk
    assert study_server.pages == {"url": study_server.url, "report": study_server.url, "live": None}
    assert study_server.explain(b"x").status == 404
    chunks = set(re.findall(r"report_files/[0-9a-f.js-]+", on_disk))
    assert chunks
    for chunk in chunks:
        assert study_server.ask(path=f"/{chunk}").body == (study_folder / chunk).read_bytes()


def test_a_study_of_bundled_weights_has_a_live_page(launch, loaded, photo, tmp_path):
    study = run_study(*loaded, take(whycam.open_source("bundled"), 24), tmp_path / "study")
    write_report(study, tmp_path / "study" / "report.html")
    served = launch(tmp_path / "study", "--port", "0", "--json")
    assert served.pages["live"] == f"{served.url}live"
    report, live = served.ask().body.decode(), served.ask(path="/live").body.decode()
    assert '<a class="try" href="/live">Try an image</a>' in report
    assert "What does it see in your image?" in live
    assert '<a href="/">Report</a>' in live
    assert served.explain(photo).status == 200


def test_too_little_memory_is_one_sentence_and_the_server_goes_on(launch, photo):
    served = launch(script=[str(Path(__file__).with_name("serve_without_memory.py"))])
    answer = served.explain(photo, "layer=layer4%5B-1%5D&method=layercam")
    assert answer.status == 503
    assert answer.json == {
        "error": "memory is full: 1,073,741,824 MiB more were asked for; choose fewer layers or another method"
    }
    assert served.explain(photo).status == 200
    status, _, err = served.stop()
    assert status == 0
    assert err.count("memory is full") == len(err.strip().splitlines()) == 1
