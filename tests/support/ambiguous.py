# SPDX-License-Identifier: Apache-2.0
"""Requests that two readers may take for different ones.

Each holds another request, behind its own end by one reading and in its body by another. What is sent is read by two
programs, a proxy and the daemon: they must agree on how many requests there are.
"""
from hostile import request

INNER = b"GET /version?smuggled HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: smuggled\r\nContent-Length: 3\r\n\r\nabc"
N = len(INNER)
BEHIND = b"0\r\n\r\n" + INNER                       # of no chunk
INSIDE = b"%x\r\n%s\r\n0\r\n\r\n" % (N, INNER)      # of one
SHORT = INSIDE.index(b"GET")
CODED = "Transfer-Encoding: chunked"

CODINGS = ["Transfer-Encoding: " + value for value in (
    "chunked", "Chunked", " chunked", "chunked ", "\tchunked", "\x0bchunked", "\x0cchunked", "chunked,", ",chunked",
    "chunked, chunked", "chunked, identity", "identity, chunked", "identity", "gzip", "gzip, chunked", "xchunked",
    "chunkedx", '"chunked"', "chunked;q=1", "chunked\x00", "chunked\r", "\rchunked", "chun\x00ked", "chunk", "",
    "chunked\xa0", "\x85chunked")]
NAMES = [
    "Transfer-Encoding :chunked", " Transfer-Encoding: chunked", "Transfer_Encoding: chunked", "\x00" + CODED,
    "Transfer-Encoding\x00: chunked", "Transfer-Encoding\t: chunked", "Transfer Encoding: chunked", "X: y\n" + CODED,
    "X: y\r" + CODED, "X: y\r\n\t" + CODED, "Transfer-Encoding:\r\n chunked", "Transfer-Encoding", CODED + "\nX: y",
    CODED + "\r\nTransfer-Encoding: identity", "Transfer-Encoding: identity\r\n" + CODED, "\r" + CODED,
    CODED + "\r\nTransfer-Encoding:", "Connection: Transfer-Encoding\r\n" + CODED, "Trailer: Content-Length\r\n" + CODED]

LENGTHS = {
    "two": ("Content-Length: 0", "Content-Length: %d" % N),
    "two reversed": ("Content-Length: %d" % N, "Content-Length: 0"),
    "two equal": ("Content-Length: %d" % N,) * 2,
    "folded": ("X: y", " Content-Length: %d" % N),
    "folded value": ("Content-Length:", " %d" % N),
    "line feed": ("X: y\nContent-Length: %d" % N,),
    "return": ("X: y\rContent-Length: %d" % N,),
    "named by connection": ("Connection: Content-Length", "Content-Length: %d" % N),
    "expected": ("Expect: 100-continue", "Content-Length: %d" % N),
    "name and space": ("Content-Length : %d" % N,),
    "name and tab": ("Content-Length\t: %d" % N,),
    "underscore": ("Content_Length: %d" % N,),
    "none": (),
    **{"value %r" % value: ("Content-Length:" + value,) for value in (
        " 0, %d" % N, " %d, %d" % (N, N), " +%d" % N, " -%d" % N, " 0x%x" % N, " 0%d" % N, " %d 0" % N, " \t%d" % N,
        " %d " % N, " \x0b%d" % N, " 0\x00%d" % N, "", " %d.0" % N, " 1e2", " %d" % ((1 << 32) + N),
        " %d" % ((1 << 64) + N))},
}

CHUNKS = {
    "signed": b"+" + INSIDE, "hexadecimal": b"0x" + INSIDE, "zeros": b"0" * 40 + INSIDE,
    "negative": b"-1\r\n" + INSIDE,
    "beyond 64 bits": b"1" + b"0" * 16 + INSIDE, "beyond 32 bits": b"1%08x\r\n" % N + INNER, "no size": b"\r\n" + INSIDE,
    "space before": b" " + INSIDE, "space behind": INSIDE.replace(b"\r\n", b" \r\n", 1),
    "extension": INSIDE.replace(b"\r\n", b";a=b\r\n", 1), "extension with a line": INSIDE.replace(b"\r\n", b";a\nb\r\n", 1),
    "extension with a return": INSIDE.replace(b"\r\n", b";a\rb\r\n", 1), "line feed": INSIDE.replace(b"\r\n", b"\n", 1),
    "return": INSIDE.replace(b"\r\n", b"\r", 1), "no end": b"3\r\nabc0\r\n\r\n" + INNER,
    "another end": b"3\r\nabcxx0\r\n\r\n" + INNER, "too short": b"2\r\nabc\r\n0\r\n\r\n" + INNER,
    "last of zeros": b"00000\r\n\r\n" + INNER, "last with an extension": b"0;a\r\n\r\n" + INNER,
    "trailer of length": b"0\r\nContent-Length: %d\r\n\r\n" % N + INNER,
    "trailer of coding": b"0\r\n" + CODED.encode() + b"\r\n\r\n" + INSIDE, "no empty line": b"0\r\n" + INNER,
    "last and line feed": b"0\r\n\n" + INNER, "last and return": b"0\r\n\r" + INNER, "nul": b"0\x00\r\n\r\n" + INNER,
}


def get(*fields, target="/healthz", **more):
    return request("GET", target, *fields, **more) + INNER


HEADS = {
    "line feeds": b"GET /healthz HTTP/1.1\nHost: x\nContent-Length: %d\n\n" % N + INNER,
    "returns": b"GET /healthz HTTP/1.1\rHost: x\r\r" + INNER,
    "empty lines before": b"\r\n\r\n" + get(),
    "space before": b" " + get(),
    "no version": b"GET /healthz\r\nHost: x\r\n\r\n" + INNER,
    "two spaces": b"GET  /healthz  HTTP/1.1\r\nHost: x\r\n\r\n" + INNER,
    "tabs": b"GET\t/healthz\tHTTP/1.1\r\nHost: x\r\n\r\n" + INNER,
    "old version": get(version="HTTP/0.9"),
    "new version": get(version="HTTP/2.0"),
    "target with a line": b"GET /a\nX:y HTTP/1.1\r\nHost: x\r\n\r\n" + INNER,
    "target with an escaped line": get(target="/a%0d%0aX:y"),
    "no host": get(host=b""),
    "two hosts": get(host=b"Host: a\r\nHost: b\r\n"),
    "absolute target": get(target="http://x/healthz"),
    "upgrade": get("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AAMA"),
    "no colon": get("nothing"),
    "no name": get(": x"),
    "nul": get("X: a\x00b"),
    **{method: request(method, "/healthz", "Content-Length: %d" % N, body=INNER)
       for method in ("HEAD", "DELETE", "TRACE", "OPTIONS", "get", "SMUGGLE")},
}


def post(*fields, body, **more):
    return request("POST", "/v1/loss", *fields, body=body, **more)


def cases():
    """(name, bytes)"""
    behind, short = "Content-Length: %d" % len(BEHIND), "Content-Length: %d" % SHORT
    for field in CODINGS + NAMES:
        yield "length, coding %r" % field, post(behind, field, body=BEHIND)
        yield "coding %r, length" % field, post(field, short, body=INSIDE)
        yield "coding %r" % field, post(field, body=BEHIND)
        yield "coding %r of 1.0" % field, post(behind, field, body=BEHIND, version="HTTP/1.0")
    for name, fields in LENGTHS.items():
        yield "length: " + name, post(*fields, body=INNER)
        yield "length of a get: " + name, request("GET", "/healthz", *fields, body=INNER)
    for name, body in CHUNKS.items():
        yield "chunk: " + name, post(CODED, body=body)
    for name, data in HEADS.items():
        yield "head: " + name, data
