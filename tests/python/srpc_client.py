"""A small srpc client, version 1, written from docs/PROTOCOL.md alone. Standard library only."""

import json
import math
import select
import socket
import struct
import time
from typing import Any, Callable

RAW, MSGPACK, JSON = 0, 1, 2
VOID, CALL, REPLY, CANCEL, DRAIN, PING, PONG, CONNECTION_ERROR = range(8)
SKIP, IDEMPOTENT, NOTIFY = 0x01, 0x04, 0x08
CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED = 1, 2, 3, 4
RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 8, 12, 13, 14
CLASSES = ("Executed", "Rejected", "MaybeExecuted")
MINIMUMS = (65_536, 64, 4_194_304)
HEADER = ">IBBHQ"


class Broken(Exception):
    """The server broke a rule, or the connection is gone."""


class CallError(Exception):
    """A failed call: what kind of failure, and whether the call was executed."""

    def __init__(self, kind: int, execution: str, text: str):
        super().__init__(f"{text} (kind {kind}, {execution})")
        self.kind, self.execution, self.text = kind, execution, text


class Cursor:
    """Reads fields from the front of some bytes."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise Broken("it ends within its fields")
        self.at += count
        return self.data[self.at - count:self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(">" + form, self.take(struct.calcsize(">" + form)))[0]

    def text(self, count: int) -> str:
        try:
            return self.take(count).decode()
        except UnicodeDecodeError as error:
            raise Broken(f"text is not UTF-8: {error}") from None

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


# --- Codecs --------------------------------------------------------------------------------------

def pack(value: Any) -> bytes:
    """A value in MessagePack."""
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        if -32 <= value < 128:
            return struct.pack(">b", value)
        bits = next((n for n in range(4) if -(128 << (8 << n) - 8) <= value < 1 << (8 << n)), 4)
        if bits == 4:
            raise ValueError("the integer needs more than 64 bits")
        code, forms = (0xCC, "BHIQ") if value > 0 else (0xD0, "bhiq")
        return struct.pack(">B" + forms[bits], code + bits, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        data = value.encode()
        return _head(len(data), 0xA0, 32, b"\xd9\xda\xdb") + data
    if isinstance(value, bytes):
        return _head(len(value), 0, 0, b"\xc4\xc5\xc6") + value
    if isinstance(value, (list, tuple)):
        return _head(len(value), 0x90, 16, b"\0\xdc\xdd") + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return _head(len(value), 0x80, 16, b"\0\xde\xdf") + pairs
    raise ValueError(f"{type(value).__name__} has no form in MessagePack")


def _head(length: int, fix: int, fix_end: int, codes: bytes) -> bytes:
    if length < fix_end:
        return bytes([fix | length])
    for code, form, end in zip(codes, "BHI", (1 << 8, 1 << 16, 1 << 32)):
        if code and length < end:
            return struct.pack(">B" + form, code, length)
    raise ValueError("too long for MessagePack")


def unpack(cursor: Cursor) -> Any:
    """The MessagePack value at the cursor. Extension types are not read."""
    code = cursor.number("B")
    if code < 0x80 or code >= 0xE0:
        return code if code < 0x80 else code - 256
    if code < 0x90 or code in (0xDE, 0xDF):
        count = code & 15 if code < 0x90 else cursor.number("HI"[code - 0xDE])
        return {unpack(cursor): unpack(cursor) for _ in range(count)}
    if code < 0xA0 or code in (0xDC, 0xDD):
        count = code & 15 if code < 0xA0 else cursor.number("HI"[code - 0xDC])
        return [unpack(cursor) for _ in range(count)]
    if code < 0xC0 or 0xD9 <= code <= 0xDB:
        return cursor.text(code & 31 if code < 0xC0 else cursor.number("BHI"[code - 0xD9]))
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code]
    if 0xC4 <= code <= 0xC6:
        return cursor.take(cursor.number("BHI"[code - 0xC4]))
    if 0xCA <= code <= 0xD3:
        return cursor.number("fdBHIQbhiq"[code - 0xCA])
    raise Broken(f"MessagePack code {code:#x} is not read here")


def encode(codec: int, value: Any) -> bytes:
    if codec == MSGPACK:
        return pack(value)
    return json.dumps(value, allow_nan=False).encode() if codec == JSON else bytes(value)


def decode(codec: int, body: bytes) -> Any:
    if codec == MSGPACK:
        cursor = Cursor(body)
        value = unpack(cursor)
        if cursor.rest():
            raise Broken("bytes after the value")
        return value
    return json.loads(body.decode()) if codec == JSON else body


def put_metadata(entries: dict[str, str]) -> bytes:
    pairs = [(key.encode(), value.encode()) for key, value in entries.items()]
    size = sum(len(key) + len(value) for key, value in pairs)
    if len(pairs) > 64 or size > 8_192 or not all(1 <= len(key) <= 255 for key, _ in pairs):
        raise ValueError("the metadata is beyond its limits")
    parts = [struct.pack(">B", len(k)) + k + struct.pack(">H", len(v)) + v for k, v in pairs]
    return bytes([len(pairs)]) + b"".join(parts)


def take_metadata(cursor: Cursor) -> dict[str, str]:
    entries: dict[str, str] = {}
    count = cursor.number("B")
    start = cursor.at
    for _ in range(count):
        key = cursor.text(cursor.number("B"))
        if not key:
            raise Broken("a metadata key is empty")
        # A dict does what the page asks for: the last value, in the place of the first.
        entries[key] = cursor.text(cursor.number("H"))
    if count > 64 or cursor.at - start - 3 * count > 8_192:
        raise Broken("the metadata is beyond its limits")
    return entries


# --- The client ----------------------------------------------------------------------------------

class Call:
    """A call, and what became of it. `nth` counts the connection's replies as they came."""

    def __init__(self, about: int, codec: int, flags: int, size: int, deadline: float):
        self.id, self.codec, self.flags, self.size = about, codec, flags, size
        self.deadline, self.end = deadline, 0
        self.done, self.nth, self.load = False, -1, 0
        self.value: Any = None
        self.error: CallError | None = None
        self.metadata: dict[str, str] = {}


class Client:
    """One connection, for one thread. It reads and writes while it waits for something."""

    def __init__(self, host: str, port: int):
        own = (4 << 20, 1_024, 8 << 20)
        self.socket = socket.create_connection((host, port), timeout=5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.sendall(struct.pack(">4sHBBIIII", b"SRPC", 18, 1, 1, *own, 0))
        magic, length = struct.unpack(">4sH", self._exactly(6))
        if magic != b"SRPC" or not 18 <= length <= 1_024:
            raise Broken("the server's handshake is not one of srpc")
        low, high, *limits, _features = struct.unpack(">BBIIII", self._exactly(length)[:18])
        if (low, high) != (1, 1) or any(a < b for a, b in zip(limits, MINIMUMS)):
            raise Broken("the server's handshake has another version, or limits too low")
        self.socket.setblocking(False)
        self.max_body, self.longest_reply = limits[0], own[0] + 32_768
        self.window_calls, self.window_bytes = min(limits[1], own[1]), min(limits[2], own[2])
        self.calls: dict[int, Call] = {}  # those in flight
        self.numbers: dict[str, int] = {}
        self.out, self.input, self.skip = bytearray(), bytearray(), 0
        self.sent = self.last_id = self.replies = 0
        self.pongs: list[bytes] = []
        self.refuses = ""  # why no more calls are sent
        self.closed = False

    def start(self, method: str, args: Any, *, codec: int = MSGPACK, timeout: float = 10.0,
              metadata: dict[str, str] | None = None, number: bool = False,
              flags: int = 0) -> Call:
        """Puts a call in line, once the window has room, and does not wait for its reply."""
        deadline = time.monotonic() + timeout
        try:
            body, text = encode(codec, args), put_metadata(metadata or {})
        except (ValueError, TypeError) as error:
            raise CallError(INVALID_ARGUMENT, "NotSent", str(error)) from None
        if len(method.encode()) > 255 or len(body) > self.max_body:
            raise CallError(INVALID_ARGUMENT, "NotSent", "the name or the body is too long")
        self.run(lambda: bool(self.refuses) or self._fits(len(body)), deadline)
        left = math.ceil((deadline - time.monotonic()) * 1_000)
        if self.refuses:
            raise CallError(UNAVAILABLE, "NotSent", self.refuses)
        if left <= 0 or not self._fits(len(body)):
            raise CallError(DEADLINE_EXCEEDED, "NotSent", "no room in the window in time")
        self.last_id += 1
        call = Call(self.last_id, codec, flags, len(body), deadline)
        fields = struct.pack(">BI", codec, min(left, 0xFFFF_FFFF)) + text
        self.frame(CALL, flags, call.id, self._name(method, number) + fields + body)
        call.end = self.sent + len(self.out)
        self.calls[call.id] = call
        return call

    def wait(self, call: Call) -> Any:
        """The result, or its CallError. When the deadline passes first, the call is cancelled."""
        if not self.run(lambda: call.done, call.deadline):
            self.cancel(call, DEADLINE_EXCEEDED)
        if call.error:
            raise call.error
        return call.value

    def call(self, method: str, args: Any, **options: Any) -> Any:
        return self.wait(self.start(method, args, **options))

    def cancel(self, call: Call, kind: int = CANCELLED) -> None:
        """Forgets the call, unless it has ended already."""
        if call.id in self.calls:
            self._settle(call, CallError(kind, "MaybeExecuted", "given up"))
            self.frame(CANCEL, 0, call.id, b"")

    def ping(self, payload: bytes, timeout: float = 5.0) -> bool:
        """Whether the pong of the same payload has come in time."""
        self.frame(PING, 0, 0, payload)
        self.pongs.clear()
        return self.run(lambda: self.closed or payload in self.pongs,
                        time.monotonic() + timeout) and payload in self.pongs

    def frame(self, kind: int, flags: int, about: int, payload: bytes) -> None:
        """Puts a frame in line. It is written when the client next waits."""
        self.out += struct.pack(HEADER, len(payload), kind, flags, 0, about) + payload

    def run(self, done: Callable[[], bool], deadline: float) -> bool:
        """Writes and reads until something is so; false if the deadline comes first."""
        while not done():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._round(left)
        return True

    def close(self, why: str = "closed") -> None:
        """Ends the connection. What was not wholly written is NotSent."""
        self.refuses, self.closed = self.refuses or why, True
        self.socket.close()
        for call in list(self.calls.values()):
            execution = "MaybeExecuted" if call.end <= self.sent else "NotSent"
            self._settle(call, CallError(UNAVAILABLE, execution, why))

    def _exactly(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise Broken("the server closed the connection during the handshake")
            data += more
        return data

    def _fits(self, size: int) -> bool:
        used = sum(call.size for call in self.calls.values())
        return len(self.calls) < self.window_calls and (
            used == 0 or used + size <= self.window_bytes)

    def _name(self, method: str, number: bool) -> bytes:
        """The method's name; or its number, which goes with the name the first time."""
        name = bytes([len(method.encode())]) + method.encode()
        if number and method in self.numbers:
            return bytes([2, self.numbers[method]])
        if number and len(self.numbers) < 256:
            self.numbers[method] = len(self.numbers)
            return bytes([1, self.numbers[method]]) + name
        return b"\0" + name

    def _round(self, timeout: float) -> None:
        """Reads and writes what can be read and written, and waits for it if it must."""
        if self.closed:
            return
        try:
            ready = select.select([self.socket], [self.socket] * bool(self.out), [], timeout)
            if ready[0]:
                data = self.socket.recv(65_536)
                if not data:
                    raise Broken("the server closed the connection")
                self.input += data
                while self._take_frame():
                    pass
            if ready[1]:
                count = self.socket.send(self.out)
                self.sent += count
                del self.out[:count]
            if self.refuses and not self.calls:
                raise Broken(self.refuses)
        except BlockingIOError:
            pass
        except (Broken, OSError) as error:
            self.close(str(error))

    def _take_frame(self) -> bool:
        """Takes one frame off the input; false if there is no whole one."""
        over = min(self.skip, len(self.input))
        del self.input[:over]
        self.skip -= over
        if self.skip or len(self.input) < 16:
            return False
        length, kind, flags, reserved, about = struct.unpack_from(HEADER, self.input)
        if length > 64 << 20:
            raise Broken(f"a frame of {length} bytes")
        if kind > CONNECTION_ERROR and flags & SKIP:
            self.skip = 16 + length
            return True
        if kind in (CALL, CANCEL) or kind > CONNECTION_ERROR:
            raise Broken(f"a frame of type {kind} from a server")
        if flags & ~SKIP or reserved:
            raise Broken(f"flags {flags:#x}, reserved {reserved:#x}")
        if kind > REPLY and length > 4_096:
            raise Broken(f"a frame of type {kind} with {length} bytes")
        if kind == VOID or length > self.longest_reply:
            self.skip = 16 + length
            error = CallError(RESOURCE_EXHAUSTED, "Executed", "the reply is too long")
            if kind == REPLY and about in self.calls:
                self._settle(self.calls[about], error)
            return True
        if len(self.input) < 16 + length:
            return False
        payload = bytes(self.input[16:16 + length])
        self.skip = 16 + length
        if kind == REPLY:
            self._take_reply(about, Cursor(payload))
        elif kind == PING:
            self.frame(PONG, 0, 0, payload)
        elif kind == PONG:
            self.pongs.append(payload)
        elif kind == CONNECTION_ERROR:
            raise Broken(f"the server says {payload.decode(errors='replace')!r}")
        else:
            self.refuses = "the server takes no more calls"
            for call in [call for call in self.calls.values() if call.id > about]:
                self._settle(call, CallError(UNAVAILABLE, "Rejected", "above the drain's id"))
        return True

    def _take_reply(self, about: int, cursor: Cursor) -> None:
        status, class_, load = cursor.number("B"), cursor.number("B"), cursor.number("I")
        metadata, body = take_metadata(cursor), cursor.rest()
        if class_ > 2 or (status == 0 and class_ != 0):
            raise Broken(f"a reply of status {status} and class {class_}")
        self.replies += 1
        call, error = self.calls.get(about), None
        if not call:
            return
        call.nth, call.load, call.metadata = self.replies, load, metadata
        if time.monotonic() >= call.deadline:
            error = CallError(DEADLINE_EXCEEDED, "MaybeExecuted", "the reply came too late")
        elif status:
            kind = status if status <= 16 else UNKNOWN
            error = CallError(kind, CLASSES[class_], body.decode(errors="replace"))
        elif call.flags & NOTIFY:
            call.value = body
        else:
            try:
                call.value = decode(call.codec, body)
            except (Broken, ValueError, TypeError, RecursionError) as problem:
                error = CallError(INTERNAL, "Executed", f"the result: {problem}")
        self._settle(call, error)

    def _settle(self, call: Call, error: CallError | None) -> None:
        del self.calls[call.id]
        call.done, call.error = True, error
