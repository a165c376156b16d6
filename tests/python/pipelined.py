"""pipelined.py HOST PORT: 1,000 calls in flight on one connection, each checked.

The server has `Foo.Sum` ({"num1", "num2"}: their sum) and `Foo.Delay` ({"ms"}: sleeps so long,
answers ms). A call with the metadata "sum" is to be refused by it if that is not the sum.
"""

import sys
import time

import srpc_client as srpc
from srpc_client import Call, CallError, Client

CALLS = 1_000


def check(good: bool, what: str) -> None:
    if not good:
        raise SystemExit(f"wrong: {what}")


def fails(client: Client, kind: int, execution: str, call: Call) -> None:
    """Checks how the call fails."""
    try:
        value = client.wait(call)
    except CallError as error:
        check((error.kind, error.execution) == (kind, execution), f"it failed with {error}")
    else:
        check(False, f"it did not fail but gave {value!r}")


def check_codec() -> None:
    """The MessagePack here reads what it writes, of each width."""
    edges = [n for b in (5, 7, 8, 15, 16, 31, 32, 63) for n in (2**b - 1, 2**b, -2**b, -2**b - 1)]
    values = [n for n in edges if -2**63 <= n < 2**64]
    values += [None, True, False, 1.5, "", "é" * 20, "x" * 300, "y" * 70_000, b"", b"z" * 300]
    values += [list(range(20)), {str(n): n for n in range(20)}, {"a": [{"b": None}]}]
    for value in [*values, values]:
        check(srpc.decode(srpc.MSGPACK, srpc.pack(value)) == value, f"MessagePack of {value!r}")


def start(client: Client, i: int) -> tuple[Call, int]:
    """The i-th call, in one of its many forms, and what is to come back."""
    options: dict[str, object] = {"timeout": 30.0, "number": i % 3 == 0}
    options["codec"] = srpc.JSON if i % 4 == 1 else srpc.MSGPACK
    options["flags"] = srpc.IDEMPOTENT if i % 7 == 0 else 0
    if i % 2:
        ms = i * 37 % 101
        return client.start("Foo.Delay", {"ms": ms}, **options), ms
    num1, num2 = i * 7_919 - 500_000, (-1) ** (i // 2) * i**5
    if i % 5 == 0:
        options["metadata"] = {"sum": str(num1 + num2), "größe": "", "n": "x" * i}
    return client.start("Foo.Sum", {"num1": num1, "num2": num2}, **options), num1 + num2


def main(host: str, port: int) -> None:
    check_codec()
    client = Client(host, port)
    check(client.window_calls >= 64, f"a window of {client.window_calls} calls")
    # It is in flight among the others, and cancelled when half of them have been answered.
    long = client.start("Foo.Delay", {"ms": 60_000}, timeout=60.0)
    unknown = client.start("Foo.None", None, timeout=30.0)
    calls, most = [], 0
    for i in range(CALLS):
        calls.append(start(client, i))
        most = max(most, len(client.calls))
        if i == CALLS // 2:
            client.frame(srpc.PING, 0, 0, b"are you there?")
            client.frame(srpc.VOID, 0, 7, b"\xff" * 100)
            client.frame(200, 0xFF, 7, b"\xff" * 100)
    for n, (call, expected) in enumerate(calls):
        if n == CALLS // 2:
            client.cancel(long)
        value = client.wait(call)
        check(value == expected, f"call {call.id} gave {value!r}, not {expected}")
    fails(client, srpc.UNIMPLEMENTED, "Rejected", unknown)
    check(client.pongs == [b"are you there?"], f"the pongs were {client.pongs}")
    check(most == min(CALLS + 2, client.window_calls), f"at most {most} calls were in flight")
    # The long call has no reply; all the others have one.
    check(client.replies == CALLS + 1, f"{client.replies} replies came")
    highest = out_of_order = 0
    for call, expected in calls:
        value = client.wait(call)
        check(value == expected, f"call {call.id} gave {value!r}, not {expected}")
    for call in sorted((call for call, _ in calls), key=lambda call: call.nth):
        out_of_order += call.id < highest
        highest = max(highest, call.id)
    check(out_of_order > 0, "all replies came in the order of the calls")

    # The cancelled handler is gone when the server has no other call at work.
    end = time.monotonic() + 5
    while True:
        one = client.start("Foo.Sum", {"num1": 1, "num2": 2})
        check(client.wait(one) == 3, "1 + 2")
        if one.load <= 1:
            break
        check(time.monotonic() < end, f"the server is still at work on {one.load} calls")
    # The failures, by name and by a number that a refused call gave.
    pair = {"num1": 1, "num2": 2}
    for _ in range(2):
        sub = client.start("Foo.Sub", pair, number=True)
        fails(client, srpc.UNIMPLEMENTED, "Rejected", sub)
    wrong = [({"num1": "one", "num2": 2}, srpc.MSGPACK), (None, srpc.JSON), (b"\x01", srpc.RAW)]
    for args, codec in [*wrong, (b"\x01", 99)]:
        bad = client.start("Foo.Sum", args, codec=codec)
        fails(client, srpc.INVALID_ARGUMENT, "Rejected", bad)
    late = client.start("Foo.Delay", {"ms": 60_000}, timeout=0.2)
    fails(client, srpc.DEADLINE_EXCEEDED, "MaybeExecuted", late)
    noted = client.call("Foo.Delay", {"ms": 60_000}, flags=srpc.NOTIFY)
    check(noted == b"", f"the acknowledgement of a notify has the body {noted!r}")
    more = client.call("Foo.Sum", pair | {"num3": 3}, number=True)
    check(more == 3, "a field that the server does not know")
    check(client.ping(b"") and client.ping(b"p" * 4_096), "no pong came at the end")
    # An id that does not rise ends the connection; the server says why.
    client.last_id = 0
    try:
        client.call("Foo.Sum", pair)
        check(False, "an id that did not rise was taken")
    except CallError as error:
        seen = (error.execution, client.closed, "the server says" in error.text)
        check(seen == ("MaybeExecuted", True, True), f"an id that did not rise: {error}")
    print(f"{CALLS} calls, {out_of_order} out of order")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: pipelined.py HOST PORT")
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except (OSError, CallError, srpc.Broken) as problem:
        raise SystemExit(f"failed: {problem}") from problem
