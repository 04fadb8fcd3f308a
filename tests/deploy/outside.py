"""The world outside, and the host's own services, as one program that writes
down whoever comes: run in a network namespace of the test's own.

    outside.py LOG world CERT KEY    origins on every address: 80, 443, 53
    outside.py LOG host              a name server on 127.0.0.53 and a service on 0.0.0.0:18080

Each contact is a JSON line in LOG: `{"what", "to", "from", "text"}`.
"""

import json
import socket
import ssl
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What the names mean that the gateway may be asked for. Public by their form,
# and only of the test's own namespaces.
NAMES = {
    "api.openai.com": "9.9.9.10",
    "api.github.com": "9.9.9.11",
    "collector.example": "9.9.9.66",
    "rebound.example": "169.254.169.254",
}
# Of <linux/in.h>; this Python has no name for it.
IP_PKTINFO = 8
lock = threading.Lock()


def main() -> None:
    log = open(sys.argv[1], "a", buffering=1)

    def note(what, to, source, text=""):
        with lock:
            print(json.dumps({"what": what, "to": to, "from": source, "text": text}), file=log)

    servers = []
    if sys.argv[2] == "world":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(sys.argv[3], sys.argv[4])
        servers += [http(note, "http", ("0.0.0.0", 80)), http(note, "https", ("0.0.0.0", 443), context)]
        servers += [datagrams(note, ("0.0.0.0", 53)), datagrams(note, ("0.0.0.0", 443)), stream_names(note, ("0.0.0.0", 53))]
        servers += [http(note, "http6", ("::", 80))]
    else:
        servers += [http(note, "host", ("0.0.0.0", 18080))]
        servers += [datagrams(note, ("127.0.0.53", 53)), stream_names(note, ("127.0.0.53", 53))]
    threads = [threading.Thread(target=serve, daemon=True) for serve in servers]
    for thread in threads:
        thread.start()
    note("ready", "", "")
    for thread in threads:
        thread.join()


def http(note, what, address, context=None):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            to = self.connection.getsockname()
            note(what, f"{to[0]}:{to[1]}", self.client_address[0], f"{self.headers.get('Host')} {self.path}")
            body = f"outside {self.headers.get('Host')} {self.headers.get('Proxy-Authorization', '-')}\n".encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        daemon_threads = True

        def server_bind(self):
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            super(ThreadingHTTPServer, self).server_bind()
            self.server_name, self.server_port = address

        def get_request(self):
            # The handshake belongs to the connection's thread, and so not here.
            stream, source = super().get_request()
            note(f"{what}-connection", f"{stream.getsockname()[0]}:{address[1]}", source[0])
            if context is not None:
                stream.settimeout(10)
                stream = context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False)
            return stream, source

        def handle_error(self, *_):
            pass

    return Server(address, Handler).serve_forever


def datagrams(note, address):
    port = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    port.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    port.bind(address)

    def serve():
        while True:
            data, ancillary, _, source = port.recvmsg(4096, 64)
            # Answered from the address that was asked, or nobody takes it for
            # an answer.
            asked = next((bytes(a[8:12]) for level, kind, a in ancillary if kind == IP_PKTINFO), b"\0" * 4)
            reply, name = answer(data) if address[1] == 53 else (data, "")
            note(f"udp{address[1]}", socket.inet_ntoa(asked), source[0], name)
            if reply:
                port.sendmsg([reply], [(socket.IPPROTO_IP, IP_PKTINFO, struct.pack("=i4s4s", 0, asked, b""))], 0, source)

    return serve


def stream_names(note, address):
    port = socket.create_server(address)

    def serve():
        while True:
            stream, source = port.accept()
            with stream:
                stream.settimeout(5)
                try:
                    size = struct.unpack("!H", stream.recv(2))[0]
                    reply, name = answer(stream.recv(size))
                except (OSError, struct.error):
                    note("tcp53", address[0], source[0])
                    continue
                note("tcp53", address[0], source[0], name)
                if reply:
                    stream.sendall(struct.pack("!H", len(reply)) + reply)

    return serve


def answer(query: bytes) -> tuple[bytes, str]:
    """The reply to a query for one name, and the name."""
    labels, at = [], 12
    try:
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("ascii", "replace"))
            at += 1 + query[at]
        kind = struct.unpack("!H", query[at + 1 : at + 3])[0]
    except (IndexError, struct.error):
        return b"", ""
    name = ".".join(labels).lower()
    question = query[12 : at + 5]
    known = NAMES.get(name)
    found = known and kind == 1
    code = 0 if known else 3
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | code, 1, 1 if found else 0, 0, 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 5, 4) + socket.inet_aton(known) if found else b""
    return head + question + record, name


main()
