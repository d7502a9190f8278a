"""WebSocket clients for Python, and curl, against the relay: what each of them gets is what was
published, live and after it was away.
"""

import itertools
import json
import socket
import subprocess
import unittest

import websocket
from support import ROOT, relay
from websockets.frames import Close, Frame, Opcode
from websockets.http11 import Response
from websockets.streams import StreamReader
from websockets.sync.client import connect

EVENTS = 500
TIMEOUT = 20
# Kept as they are: numbers beyond a double, text beyond ASCII, nothing.
VALUES = ["null", "12345678901234567890.10", '"l\\u00e4nd"', '"größe 線"', '{"b":[],"a":{}}']
HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{more}\r\n"
)
# The bit of a frame that says that it is compressed.
RSV1 = 0x40
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"


def data(number):
    """The payload of event `number`, from 1, as it is written."""
    return f'{{"n":{number},"value":{VALUES[number % len(VALUES)]}}}'


def publish(topic, number):
    """A message that publishes event `number`."""
    return f'{{"type":"publish","topic":"{topic}","id":{number},"data":{data(number)}}}'


def subscribe(topic, start):
    """A message that subscribes."""
    return json.dumps({"type": "subscribe", "topic": topic, "from": start, "id": 0})


def numbers(first, last):
    """What `written` has to see of events `first` to `last`."""
    return [(number, data(number)) for number in range(first, last + 1)]


def written(text):
    """Sequence and payload of an event; the payload comes last and is passed on as it was."""
    return json.loads(text)["seq"], text.rstrip()[text.index('"data":') + 7 : -1]


def receive(read, count, answers=0):
    """What `subscribed` said, and the next `count` events, among `answers` to publishing. All of
    them are read: `websockets` hears nothing, not even a pong, while many messages wait in it."""
    subscribed, events, published = None, [], []
    while len(events) < count or len(published) < answers:
        text = read()
        message = json.loads(text)
        if message["type"] == "subscribed":
            subscribed = message
        elif message["type"] == "event":
            events.append(written(text))
        elif message["type"] == "published":
            published.append(message["seq"])
            assert message["id"] == message["seq"], text
        else:
            raise AssertionError(text)
    assert published == sorted(published), published
    return subscribed, events


class Wire:
    """A client that writes bytes as a test wants them, with the frames of `websockets`."""

    def __init__(self, address, more=""):
        host, port = address.split(":")
        self.handshake = HANDSHAKE.format(address=address, more=more).encode()
        self.socket = socket.create_connection((host, int(port)), timeout=TIMEOUT)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = StreamReader()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def parse(self, parser):
        while True:
            try:
                next(parser)
            except StopIteration as done:
                return done.value
            got = self.socket.recv(65536)
            if got:
                self.stream.feed_data(got)
            else:
                self.stream.feed_eof()

    def response(self):
        stream = self.stream
        return self.parse(Response.parse(stream.read_line, stream.read_exact, stream.read_to_eof))

    def frame(self):
        return self.parse(Frame.parse(self.stream.read_exact, mask=False, max_size=None))

    def text(self):
        frame = self.frame()
        assert frame.opcode is Opcode.TEXT, frame
        return bytes(frame.data).decode()


def frame(payload, opcode=Opcode.TEXT, fin=True):
    """A masked frame."""
    payload = payload.encode() if isinstance(payload, str) else payload
    return Frame(opcode, payload, fin).serialize(mask=True)


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.address = cls.enterClassContext(relay("target/debug/landline"))
        cls.url = f"ws://{cls.address}/ws"

    def test_websockets_gets_everything_with_and_without_an_offer_to_compress(self):
        for compression in ("deflate", None):
            with self.subTest(compression=compression):
                self.live_and_resumed(f"websockets/{compression}", compression)

    def live_and_resumed(self, topic, compression):
        def client():
            return connect(self.url, subprotocols=["landline.v1"], compression=compression)

        with client() as one:
            self.assertEqual(one.subprotocol, "landline.v1")
            offered = "Sec-WebSocket-Extensions" in one.request.headers
            self.assertEqual(offered, compression is not None)
            self.assertEqual(one.protocol.extensions, [])
            one.send(subscribe(topic, "start"))
            for number in range(1, EVENTS + 1):
                one.send(publish(topic, number))
            subscribed, events = receive(lambda: one.recv(TIMEOUT), EVENTS, answers=EVENTS)
            self.assertEqual(events, numbers(1, EVENTS))
            self.assertTrue(one.ping().wait(TIMEOUT), "a ping is answered")
        with client() as other:
            for number in range(EVENTS + 1, 2 * EVENTS + 1):
                other.send(publish(topic, number))
            receive(lambda: other.recv(TIMEOUT), 0, answers=EVENTS)
        with client() as one:
            one.send(subscribe(topic, {"epoch": subscribed["epoch"], "seq": EVENTS}))
            subscribed, events = receive(lambda: one.recv(TIMEOUT), EVENTS)
            self.assertEqual(subscribed["recovery"]["mode"], "complete")
            self.assertEqual(events, numbers(EVENTS + 1, 2 * EVENTS))

    def test_websocket_client_gets_everything(self):
        topic = "websocket-client"
        one = websocket.create_connection(self.url, timeout=TIMEOUT, subprotocols=["landline.v1"])
        self.assertEqual(one.getsubprotocol(), "landline.v1")
        one.send(subscribe(topic, "start"))
        for number in range(1, EVENTS + 1):
            one.send(publish(topic, number))
        subscribed, events = receive(one.recv, EVENTS // 2)
        one.shutdown()
        one = websocket.create_connection(self.url, timeout=TIMEOUT)
        one.send(subscribe(topic, {"epoch": subscribed["epoch"], "seq": EVENTS // 2}))
        events += receive(one.recv, EVENTS // 2)[1]
        self.assertEqual(events, numbers(1, EVENTS))
        one.close(timeout=TIMEOUT)

    def test_a_terminal_gets_what_it_asks_for(self):
        topic = "terminal"
        command = [ROOT / "target/python/bin/wsdump", "--raw", self.url]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            said = [subscribe(topic, "start"), *(publish(topic, it) for it in range(1, 11))]
            child.stdin.write("\n".join(said) + "\n")
            child.stdin.flush()
            _, events = receive(child.stdout.readline, 10)
            child.kill()
        self.assertEqual(events, numbers(1, 10))

    def test_requests_may_come_in_one_write_with_the_handshake(self):
        with Wire(self.address) as wire:
            said = [publish("pipelined", number) for number in range(1, EVENTS + 1)]
            said.insert(0, subscribe("pipelined", "start"))
            wire.socket.sendall(wire.handshake + b"".join(map(frame, said)))
            self.assertEqual(wire.response().status_code, 101)
            self.assertEqual(receive(wire.text, EVENTS)[1], numbers(1, EVENTS))

    def test_bytes_may_come_one_at_a_time(self):
        with Wire(self.address, DEFLATE) as wire:
            said = frame(subscribe("slow", "start")) + frame(publish("slow", 1))
            for byte in wire.handshake + said:
                wire.socket.sendall(bytes([byte]))
            self.assertEqual(wire.response().status_code, 101)
            self.assertEqual(receive(wire.text, 1)[1], numbers(1, 1))

    def test_a_message_may_come_in_fragments_of_any_size_with_pings_between(self):
        for size in (1, 2, 7, 4096):
            with self.subTest(size=size), Wire(self.address) as wire:
                topic, text = f"fragments/{size}", '"' + "線ö" * 500 + '"'
                said = f'{{"type":"publish","topic":"{topic}","data":{text}}}'.encode()
                parts = [said[at : at + size] for at in range(0, len(said), size)]
                first = itertools.chain([Opcode.TEXT], itertools.repeat(Opcode.CONT))
                frames = [frame(it, op, fin=False) for it, op in zip(parts, first)]
                frames.insert(len(frames) // 2, frame(b"between", Opcode.PING))
                frames.append(frame(b"", Opcode.CONT))
                wire.socket.sendall(wire.handshake + b"".join(frames))
                self.assertEqual(wire.response().status_code, 101)
                pong = wire.frame()
                self.assertEqual((pong.opcode, bytes(pong.data)), (Opcode.PONG, b"between"))
                wire.socket.sendall(frame(subscribe(topic, "start")))
                self.assertEqual(receive(wire.text, 1)[1], [(1, text)])

    def test_compression_is_declined_and_compressed_frames_end_the_connection(self):
        with Wire(self.address, DEFLATE) as wire:
            wire.socket.sendall(wire.handshake)
            answer = wire.response()
            self.assertEqual(answer.status_code, 101)
            self.assertNotIn("Sec-WebSocket-Extensions", answer.headers)
            first, *rest = frame('{"type":"ping"}')
            wire.socket.sendall(bytes([first | RSV1, *rest]))
            self.assertEqual(json.loads(wire.text())["type"], "bye")
            self.assertEqual(Close.parse(bytes(wire.frame().data)).code, 1002)

    def curl(self, *arguments):
        """What curl prints, line by line, until the caller has enough."""
        command = ["curl", "-sSN", "--max-time", str(TIMEOUT), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            try:
                yield from child.stdout
            finally:
                child.kill()

    def sse(self, topic, count, *arguments):
        """The next `count` events of a stream, and the last `id`."""
        lines = self.curl("-H", "Accept: text/event-stream", *arguments, topic)
        events, kind, last = [], "message", None
        for field, value in (line.rstrip("\n").partition(": ")[::2] for line in lines):
            if field == "id":
                last = value
            elif field == "event":
                kind = value
            elif field == "data" and kind == "message":
                events.append(written(value))
            elif not field:
                kind = "message"
            if len(events) == count and not field:
                return events, last
        raise AssertionError(f"the stream ended after {events}")

    def test_curl_publishes_and_gets_streams_and_goes_on_with_them(self):
        topic = f"http://{self.address}/v1/topics/curl/events"
        for number in range(1, 11):
            kind = "Content-Type: application/json"
            post = self.curl("-f", "-H", kind, "-d", data(number), topic)
            self.assertEqual(json.loads("".join(post))["seq"], number)
        first, last = self.sse(topic + "?from=start", 4)
        rest, last = self.sse(topic, 6, "-H", f"Last-Event-ID: {last}")
        self.assertEqual(first + rest, numbers(1, 10))
        epoch = last.split(":")[0]
        for start, after in (("start", 0), (f"{epoch}:6", 6)):
            lines = self.curl("-H", "Accept: application/x-ndjson", f"{topic}?from={start}")
            _, events = receive(lambda: next(lines), 10 - after)
            self.assertEqual(events, numbers(after + 1, 10))
            lines.close()
        with connect(self.url) as one:
            one.send(subscribe("curl", "start"))
            self.assertEqual(receive(lambda: one.recv(TIMEOUT), 10)[1], numbers(1, 10))


if __name__ == "__main__":
    unittest.main()
