"""Which hosts and origins are answered, and the security headers."""

from __future__ import annotations

import pytest

from whycam.app.security import AllowedHosts


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
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1:{port}.evil.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_requests_from_other_sites_are_refused(headers, status, server, photo):
    headers = {name: value.format(port=server.port) for name, value in headers.items()}
    assert server.explain(photo, headers=headers).status == status


def test_allowed_hosts():
    hosts = AllowedHosts.of_server("0.0.0.0", ["Demo.Example.org", ".spaces.example"])
    for name in ("demo.example.org", "a.spaces.example:443", "b.a.spaces.example", "192.168.1.7:8000", "[fe80::1]"):
        assert hosts.allows(name), name
    for name in ("example.org", "spaces.example", "spaces.example.evil.org", "0.0.0.0.evil.org", "xspaces.example"):
        assert not hosts.allows(name), name
    assert not AllowedHosts.of_server("127.0.0.1").allows("192.168.1.7")


def test_public_server_answers_to_allowed_hosts(launch, photo):
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


def test_security_headers_of_every_answer(server, photo):
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
