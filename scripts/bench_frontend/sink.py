"""A client that costs little: opens streams, keeps what they say as it comes, and looks at it only afterwards.

While timed it counts events, to tell the stand-in which groups' tokens have arrived. Stdout: a JSON object at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import time

from .stand_in import ALL_BEGUN, MAX_TOKENS, text_digest

_EVENT_END = b"}\n\n"
_EVENTS_BEFORE = 2
"""The role, and the first token."""
_LAST_CHUNK = b"0\r\n\r\n"
_WATCH_ONE_OF = 16
_TURNS = 64
"""Between two looks at a stream that is not watched there are as many messages of the stand-in."""


class Stream:
    """One open response."""

    def __init__(self, port: int, group: int) -> None:
        self.group = group
        self.parts: list[bytes] = []
        self.num_events = 0
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.sendall(_request(group))
        self.socket.setblocking(False)

    @property
    def has_ended(self) -> bool:
        """Nothing more will come."""
        return bool(self.parts) and self.parts[-1].endswith(_LAST_CHUNK)

    def read(self) -> int:
        """How many events have come."""
        try:
            data = self.socket.recv(1 << 20)
        except BlockingIOError:
            return 0
        if not data:
            raise EOFError(b"".join(self.parts)[-200:])
        self.parts.append(data)
        num_events = data.count(_EVENT_END)
        self.num_events += num_events
        return num_events

    def text(self) -> str:
        """What the answer says. Raises ValueError for anything but a complete one."""
        head, _, body = b"".join(self.parts).partition(b"\r\n\r\n")
        if b" 200 " not in head[:20]:
            raise ValueError(head.decode())
        events = [line.removeprefix(b"data: ") for line in _dechunked(body).split(b"\n\n") if line.startswith(b"data: ")]
        if events.pop() != b"[DONE]":
            raise ValueError("the stream did not end with [DONE]")
        chunks = [json.loads(event)["choices"][0] for event in events]
        if chunks[-1]["finish_reason"] != "length":
            raise ValueError(f"the last chunk is {chunks[-1]}")
        return "".join(chunk["delta"].get("content", "") for chunk in chunks)


def _request(group: int) -> bytes:
    message = {"role": "user", "content": "Tell me about the fox."}
    body = {"messages": [message], "stream": True, "max_tokens": MAX_TOKENS, "priority": group, "seed": 1}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def _dechunked(body: bytes) -> bytes:
    parts: list[bytes] = []
    place = 0
    while True:
        line_end = body.index(b"\r\n", place)
        size = int(body[place:line_end], 16)
        if size == 0:
            return b"".join(parts)
        parts.append(body[line_end + 2 : line_end + 2 + size])
        place = line_end + 4 + size


class Sink:
    """Reads all streams. Of each group a few are watched, for what tells that its tokens have arrived; the others are read
    now and then, many events at a time, since every read costs as much as the frontend's write."""

    def __init__(self, streams: list[Stream], num_groups: int, acks: int) -> None:
        self._streams = streams
        self._acks = acks
        self._watched = [stream for place, stream in enumerate(reversed(streams)) if place // num_groups % _WATCH_ONE_OF == 0]
        watched = set(self._watched)
        self._others = [stream for stream in streams if stream not in watched]
        self._group_sizes = [sum(stream.group == group for stream in self._watched) for group in range(num_groups)]
        self._selector = selectors.EpollSelector()

    def read_all(self) -> int:
        """Reads until every stream has ended; how many events came."""
        self._read_beginnings()
        os.write(self._acks, bytes([ALL_BEGUN]))
        self._read_until_one_ends()
        for stream in self._streams:
            stream.socket.setblocking(True)
            while not stream.has_ended:
                stream.read()
        return sum(stream.num_events - 2 for stream in self._streams)  # the first says who speaks, the last why it ended

    def _read_beginnings(self) -> None:
        for stream in self._streams:
            self._selector.register(stream.socket, selectors.EVENT_READ, stream)
        num_to_begin = len(self._streams)
        while num_to_begin:
            for key, _ in self._selector.select():
                before = key.data.num_events
                key.data.read()
                num_to_begin -= before < _EVENTS_BEFORE <= key.data.num_events
        for stream in self._others:
            self._selector.unregister(stream.socket)

    def _read_until_one_ends(self) -> None:
        num_new = [0] * len(self._group_sizes)
        turn = 0
        while not any(stream.has_ended for stream in self._watched[:1]):
            for key, _ in self._selector.select():
                group = key.data.group
                num_new[group] += key.data.read()
                if num_new[group] >= self._group_sizes[group]:
                    num_new[group] = 0
                    os.write(self._acks, bytes([group]))
                    turn = (turn + 1) % _TURNS
                    for stream in self._others[turn::_TURNS]:
                        stream.read()


def main() -> None:
    """One run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--acks-fd", type=int, required=True)
    arguments = parser.parse_args()
    started_s = time.perf_counter()
    streams = [Stream(arguments.port, index % arguments.groups) for index in range(arguments.streams)]
    opened_s = time.perf_counter() - started_s
    num_events = Sink(streams, arguments.groups, arguments.acks_fd).read_all()
    digests = [sorted({text_digest(s.text()) for s in streams if s.group == group}) for group in range(arguments.groups)]
    print(json.dumps({"opened_s": opened_s, "num_events": num_events, "digests": digests}))


if __name__ == "__main__":
    main()
