# SPDX-License-Identifier: Apache-2.0
"""The other host on a guest's network: pings it, by Ethernet frames in datagrams (-netdev dgram)."""
import os
import select
import socket
import struct
import threading
import time

MAC = bytes.fromhex("525400000001")
ADDRESS = bytes((10, 7, 0, 1))
GUEST_MAC = bytes.fromhex("525400000002")
GUEST_ADDRESS = bytes((10, 7, 0, 2))
ARP, IPV4 = 0x0806, 0x0800
ICMP, ECHO_REQUEST, ECHO_REPLY = 1, 8, 0


def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff


def echo_request(sequence, payload):
    def icmp(check):
        return struct.pack("!BBHHH", ECHO_REQUEST, 0, check, 1, sequence) + payload

    def ip(check):
        return struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + 8 + len(payload), 0, 0, 64, ICMP, check,
                           ADDRESS, GUEST_ADDRESS)
    packet = ip(checksum(ip(0))) + icmp(checksum(icmp(0)))
    return GUEST_MAC + MAC + struct.pack("!H", IPV4) + packet


def arp_answer(request):
    """To who asks for our address."""
    operation, = struct.unpack("!H", request[20:22])
    if operation != 1 or request[38:42] != ADDRESS:
        return None
    asker = request[22:32]
    return asker[:6] + MAC + struct.pack("!HHHBBH", ARP, 1, IPV4, 6, 4, 2) + MAC + ADDRESS + asker


class NetPeer:
    def __init__(self, path):
        self.path = path
        self.sequence = 0
        self.answered = set()
        self.changed = threading.Condition()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.stop_reader, self.stop = os.pipe()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        while True:
            ready, _, _ = select.select([self.socket, self.stop_reader], [], [])
            if self.stop_reader in ready:
                return
            frame, sender = self.socket.recvfrom(65536)
            kind, = struct.unpack("!H", frame[12:14])
            if kind == ARP:
                self._send(arp_answer(frame), sender)
            elif kind == IPV4 and frame[23] == ICMP and frame[34] == ECHO_REPLY:
                with self.changed:
                    self.answered.add(struct.unpack("!H", frame[40:42])[0])
                    self.changed.notify_all()

    def _send(self, frame, to):
        try:
            if frame:
                self.socket.sendto(frame, socket.MSG_DONTWAIT, to)
        except OSError:
            pass  # as a wire does: nobody there, or no room

    def ping(self, to, deadline_s):
        """Whether the guest behind that socket answers in time; asks again each 200 ms."""
        deadline = time.monotonic() + deadline_s
        asked = set()
        while time.monotonic() < deadline:
            self.sequence += 1
            asked.add(self.sequence)
            self._send(echo_request(self.sequence, bytes(56)), str(to))
            with self.changed:
                if self.changed.wait_for(lambda: asked & self.answered, 0.2):
                    return True
        return False

    def close(self):
        os.write(self.stop, b".")
        self.thread.join()
        self.socket.close()
