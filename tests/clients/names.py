"""A DNS server for the gateway: every name under `test` is at 127.0.0.1, no
other exists, and each name that was asked for is remembered."""

import socket
import struct
import threading

TYPE_A = 1
NAME_ERROR = 3


class Names:
    """Answers on UDP and TCP of one loopback port, in threads of its own."""

    def __init__(self):
        self.asked: set[str] = set()
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        for serve in (self._serve_udp, self._serve_tcp):
            threading.Thread(target=serve, daemon=True).start()

    def _serve_udp(self) -> None:
        while True:
            query, client = self.udp.recvfrom(4096)
            if reply := self._reply(query):
                self.udp.sendto(reply, client)

    def _serve_tcp(self) -> None:
        while True:
            connection, _ = self.tcp.accept()
            with connection, connection.makefile("rwb") as stream:
                length = stream.read(2)
                if len(length) == 2 and (reply := self._reply(stream.read(*struct.unpack("!H", length)))):
                    stream.write(struct.pack("!H", len(reply)) + reply)

    def _reply(self, query: bytes) -> bytes | None:
        """RFC 1035 section 4: one question, and at most one address."""
        if len(query) < 17:
            return None
        labels, at = [], 12
        while length := query[at]:
            labels.append(query[at + 1:at + 1 + length].decode("ascii", "replace").lower())
            at += 1 + length
        question = query[12:at + 5]
        kind = struct.unpack("!H", query[at + 1:at + 3])[0]
        self.asked.add(".".join(labels))
        known = labels[-1:] == ["test"]
        address = known and kind == TYPE_A
        flags = 0x8180 | (0 if known else NAME_ERROR)
        header = query[:2] + struct.pack("!HHHHH", flags, 1, 1 if address else 0, 0, 0)
        record = b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, 1, 60, 4) + socket.inet_aton("127.0.0.1")
        return header + question + (record if address else b"")
