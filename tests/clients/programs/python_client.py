"""One call by a Python library, with the proxy from the environment:

    python_client.py LIBRARY URL [get|post|events|websocket|unary|stream]

Prints `STATUS REASON VERSION BODY` for an answer, and for an error every
message of its chain, as a program would log them.
"""

import asyncio
import hashlib
import os
import ssl
import sys
from urllib.parse import urlsplit

PROXY = os.environ["http_proxy"]
CA = os.environ["SSL_CERT_FILE"]
BIG = bytes(range(256)) * 4096


def proceed(url: str) -> str:
    """Where to say that the first event is there."""
    return url.replace("/events/", "/continue/").replace("/stream/", "/continue/")


def of_urllib(url, mode):
    import urllib.request
    data = BIG if mode == "post" else None
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=30)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.reason, "1.1", answer.read().decode()


def of_requests(url, mode):
    import requests
    with requests.Session() as session:
        if mode == "events":
            with session.get(url, stream=True, timeout=30) as answer:
                lines = answer.iter_lines(chunk_size=1, decode_unicode=True)
                got = next(lines)
                session.get(proceed(url), timeout=30).raise_for_status()
                return answer.status_code, answer.reason, "1.1", got + " ".join(lines)
        answer = session.post(url, data=BIG, timeout=30) if mode == "post" else session.get(url, timeout=30)
        # The second call goes over the connection of the first.
        if answer.ok and mode == "get":
            answer = session.get(url, timeout=30)
        return answer.status_code, answer.reason, "1.1", answer.text


def of_urllib3(url, mode):
    import urllib3
    parts = urllib3.util.parse_url(PROXY)
    headers = urllib3.make_headers(proxy_basic_auth=parts.auth) if parts.auth else None
    bare = f"http://{parts.host}:{parts.port}"
    with urllib3.ProxyManager(bare, proxy_headers=headers, ca_certs=CA, retries=False, timeout=30) as pool:
        answer = pool.request("POST", url, body=BIG) if mode == "post" else pool.request("GET", url)
        return answer.status, answer.reason, "1.1", answer.data.decode()


def of_httpx(url, mode, http2=False):
    import httpx
    with httpx.Client(http2=http2, timeout=30) as client:
        if mode == "events":
            with client.stream("GET", url) as answer:
                lines = answer.iter_lines()
                got = next(lines)
                # On a connection of its own: of two streams at once the first
                # waits until httpx knows how many the server allows.
                with httpx.Client(http2=http2, timeout=30) as other:
                    other.get(proceed(url)).raise_for_status()
                return answer.status_code, answer.reason_phrase, answer.http_version, got + " ".join(lines)
        answer = client.post(url, content=BIG) if mode == "post" else client.get(url)
        return answer.status_code, answer.reason_phrase, answer.http_version, answer.text


def of_httpx_h2(url, mode):
    return of_httpx(url, mode, http2=True)


def of_aiohttp(url, mode):
    import aiohttp

    async def call():
        # It reads the environment only when it is told to.
        async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(30)) as session:
            if mode == "websocket":
                # For ws:// and wss:// it looks into no variable.
                async with session.ws_connect(url, proxy=PROXY) as socket:
                    await socket.send_str("echo me")
                    return 101, "", "websocket", (await socket.receive()).data
            method, data = ("POST", BIG) if mode == "post" else ("GET", None)
            async with session.request(method, url, data=data) as answer:
                if mode == "events":
                    got = (await answer.content.readline()).decode()
                    async with session.get(proceed(url)) as other:
                        other.raise_for_status()
                    return answer.status, answer.reason, "1.1", got + (await answer.text())
                return answer.status, answer.reason, "1.1", await answer.text()

    return asyncio.run(call())


def of_websockets(url, _mode):
    import websockets

    async def call():
        async with websockets.connect(url, open_timeout=30) as socket:
            await socket.send("echo me")
            return 101, "", "websocket", await socket.recv()

    return asyncio.run(call())


def of_websockets_sync(url, _mode):
    from websockets.sync.client import connect
    context = ssl.create_default_context(cafile=CA) if url.startswith("wss") else None
    with connect(url, open_timeout=30, ssl=context) as socket:
        big = "x" * 1_000_000
        socket.send(big)
        if socket.recv(timeout=30) != big:
            raise ValueError("another echo")
        socket.send("echo me")
        return 101, "", "websocket", socket.recv(timeout=30)


def of_grpc(url, mode):
    import grpc
    parts = urlsplit(url)
    with grpc.secure_channel(parts.netloc, grpc.ssl_channel_credentials()) as channel:
        if mode == "stream":
            call = channel.unary_stream(parts.path)(b"please", timeout=30)
            got = next(call)
            # On the same connection, while the first call is open.
            channel.unary_unary(proceed(parts.path))(b"", timeout=30)
            got += b" " + b" ".join(call)
        else:
            got, call = channel.unary_unary(parts.path).with_call(b"please", timeout=30)
        return call.code().name, "", "grpc", got.decode()


def main() -> int:
    library, url, mode = (sys.argv[1:] + ["get"])[:3]
    if mode == "digest":
        print(f"{len(BIG)} {hashlib.sha256(BIG).hexdigest()}")
        return 0
    try:
        status, reason, version, body = globals()["of_" + library.replace("-", "_")](url, mode)
    except Exception as error:  # every library has its own
        while error:
            print(f"{type(error).__name__}: {error}")
            error = error.__cause__ or error.__context__
        return 1
    print(status, reason, version, body)
    return 0


sys.exit(main())
