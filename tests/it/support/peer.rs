//! A raw WebSocket peer with its own framing, so that it can misbehave, and with helpers for the
//! tests in which it behaves.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};

use super::{
    frame::{self, Inbox},
    wait::{Deadline, LIMIT},
};

/// The key of RFC 6455's own example, and what a server makes of it.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
pub const KEY_ACCEPTED: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// The smallest receive buffer Linux grants, so that a peer that does not read is noticed early.
pub const TINY_BUFFER: usize = 2_048;

pub struct Peer {
    stream: TcpStream,
    inbox: Inbox,
    /// Messages that arrived while a reply was awaited.
    waiting: VecDeque<Value>,
    last_id: u64,
    answers_pings: bool,
    pings: usize,
}

/// What arrives at a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    Text(String),
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The connection ended, in order or by a reset.
    End,
}

impl Peer {
    #[track_caller]
    #[must_use]
    pub fn connect(addr: SocketAddr) -> Peer {
        Peer::upgrade(tcp(addr, None), addr)
    }

    /// A peer with a small receive buffer: it stalls the relay soon after it stops reading.
    #[track_caller]
    #[must_use]
    pub fn connect_tiny(addr: SocketAddr) -> Peer {
        Peer::upgrade(tcp(addr, Some(TINY_BUFFER)), addr)
    }

    #[track_caller]
    fn upgrade(mut stream: TcpStream, addr: SocketAddr) -> Peer {
        stream.write_all(upgrade_request(addr, "").as_bytes()).expect("send the handshake");
        let (head, rest) = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 "), "the handshake was answered: {head}");
        assert!(head.contains(KEY_ACCEPTED), "the key is not answered: {head}");
        Peer::over(stream, &rest)
    }

    /// A peer, unless the relay goes away meanwhile.
    #[must_use]
    pub fn try_connect(addr: SocketAddr) -> Option<Peer> {
        Peer::try_upgrade(TcpStream::connect_timeout(&addr, LIMIT).ok()?, addr)
    }

    /// As [`Peer::try_connect`], over a connection that is there already.
    #[must_use]
    pub fn try_upgrade(mut stream: TcpStream, addr: SocketAddr) -> Option<Peer> {
        stream.set_write_timeout(Some(LIMIT)).ok()?;
        stream.set_nodelay(true).ok()?;
        stream.write_all(upgrade_request(addr, "").as_bytes()).ok()?;
        let (head, rest) = try_read_head(&mut stream).ok()?;
        head.starts_with("HTTP/1.1 101 ").then(|| Peer::over(stream, &rest))
    }

    /// A peer on a connection that has been upgraded already; `rest` came after the head.
    #[must_use]
    pub fn over(stream: TcpStream, rest: &[u8]) -> Peer {
        let mut inbox = Inbox::default();
        inbox.push(rest);
        let waiting = VecDeque::new();
        Peer { stream, inbox, waiting, last_id: 0, answers_pings: true, pings: 0 }
    }

    /// Lets pings of the relay go unanswered from now on.
    pub fn ignore_pings(&mut self) {
        self.answers_pings = false;
    }

    /// Pings seen so far.
    #[must_use]
    pub fn pings(&self) -> usize {
        self.pings
    }

    // Sending.

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send_raw(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("send to the relay");
    }

    /// Sends bytes as they are, to a relay that may have closed the connection; whether they all
    /// left.
    pub fn try_send_raw(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    #[track_caller]
    pub fn send_text(&mut self, text: &str) {
        self.send_raw(&frame::masked(frame::TEXT, text.as_bytes()));
    }

    /// As [`Peer::send`], to a relay that may have gone away; whether it left.
    pub fn try_send(&mut self, message: &Value) -> bool {
        self.try_send_raw(&frame::masked(frame::TEXT, message.to_string().as_bytes()))
    }

    #[track_caller]
    pub fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string());
    }

    /// Another handle to the connection, for a thread that only writes or only shuts down.
    #[must_use]
    pub fn stream(&self) -> TcpStream {
        self.stream.try_clone().expect("clone the socket")
    }

    /// Ends the connection with a reset instead of in order.
    pub fn cut(self) {
        reset(&self.stream);
    }

    /// Sends a close frame and waits for the answer and the end.
    #[track_caller]
    pub fn close(mut self) {
        self.send_raw(&frame::masked(frame::CLOSE, &1_000_u16.to_be_bytes()));
        assert_eq!(self.close_code(), Some(1_000));
    }

    /// Says that it will send nothing more.
    pub fn finish_sending(&self) {
        self.stream.shutdown(Shutdown::Write).ok();
    }

    // Receiving.

    /// What arrives next, `None` if nothing does within `limit`. Pings are answered on the way.
    #[track_caller]
    pub fn receive(&mut self, limit: Duration) -> Option<Incoming> {
        let deadline = Deadline::after(limit);
        loop {
            while let Some(frame) = self.inbox.take() {
                if let Some(incoming) = self.handle(frame) {
                    return Some(incoming);
                }
            }
            let mut bytes = [0; 64 * 1024];
            let left = deadline.left().max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("set a read timeout");
            match self.stream.read(&mut bytes) {
                Ok(0) => return Some(Incoming::End),
                Ok(count) => self.inbox.push(&bytes[..count]),
                Err(error) if is_timeout(&error) => return None,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Some(Incoming::End),
            }
        }
    }

    #[track_caller]
    fn handle(&mut self, frame: frame::Frame) -> Option<Incoming> {
        match frame.opcode {
            frame::TEXT => {
                Some(Incoming::Text(String::from_utf8(frame.payload).expect("text is UTF-8")))
            }
            frame::PING => {
                self.pings += 1;
                if self.answers_pings {
                    self.try_send_raw(&frame::masked(frame::PONG, &frame.payload));
                }
                None
            }
            frame::PONG => Some(Incoming::Pong(frame.payload)),
            frame::CLOSE => {
                let code = frame.payload.first_chunk().copied().map(u16::from_be_bytes);
                Some(Incoming::Close(code))
            }
            opcode => panic!("the relay sent a frame with opcode {opcode}"),
        }
    }

    /// The text of the next message.
    #[track_caller]
    #[must_use]
    pub fn text(&mut self) -> String {
        match self.receive(LIMIT) {
            Some(Incoming::Text(text)) => text,
            other => panic!("awaited a message within {LIMIT:?}, got {other:?}"),
        }
    }

    /// The next message.
    #[track_caller]
    #[must_use]
    pub fn message(&mut self) -> Value {
        match self.waiting.pop_front() {
            Some(message) => message,
            None => serde_json::from_str(&self.text()).expect("the relay sends JSON"),
        }
    }

    /// Passes over what arrived while replies were awaited.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }

    /// The next message, which must be of type `kind`.
    #[track_caller]
    pub fn expect(&mut self, kind: &str) -> Value {
        let message = self.message();
        assert_eq!(message["type"], kind, "awaited {kind}, got {message}");
        message
    }

    /// The next `count` messages, which must be events.
    #[track_caller]
    #[must_use]
    pub fn events(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.expect("event")).collect()
    }

    /// Reads on to the close frame and returns its code; `None` if the connection ends without.
    #[track_caller]
    #[must_use]
    pub fn close_code(&mut self) -> Option<u16> {
        self.last_words().1
    }

    /// Reads on to the end: the messages on the way, and the code of the close frame if there is
    /// one.
    #[track_caller]
    #[must_use]
    pub fn last_words(&mut self) -> (Vec<Value>, Option<u16>) {
        let mut messages = Vec::from(std::mem::take(&mut self.waiting));
        loop {
            match self.receive(LIMIT) {
                Some(Incoming::Text(text)) => {
                    messages.push(serde_json::from_str(&text).expect("the relay sends JSON"));
                }
                Some(Incoming::Pong(_)) => {}
                Some(Incoming::Close(code)) => return (messages, Some(code.unwrap_or(1_005))),
                Some(Incoming::End) => return (messages, None),
                None => panic!("awaited the end of the connection within {LIMIT:?}"),
            }
        }
    }

    // Requests.

    /// Sends a request under an id of its own and returns the reply or error to it. What arrives
    /// before stays for [`Peer::message`].
    #[track_caller]
    pub fn request(&mut self, mut request: Value) -> Value {
        self.last_id += 1;
        request["id"] = json!(self.last_id);
        self.send(&request);
        loop {
            let text = self.text();
            let message: Value = serde_json::from_str(&text).expect("the relay sends JSON");
            if message["id"] == self.last_id {
                return message;
            }
            self.waiting.push_back(message);
        }
    }

    /// As [`Peer::request`]; the reply must be of type `kind`.
    #[track_caller]
    pub fn ask(&mut self, request: Value, kind: &str) -> Value {
        let shown = request.to_string();
        let reply = self.request(request);
        assert_eq!(reply["type"], kind, "{shown} was answered {reply}");
        reply
    }

    /// As [`Peer::request`]; the reply must be an error with code `code`.
    #[track_caller]
    pub fn refused(&mut self, request: Value, code: &str) -> Value {
        let shown = request.to_string();
        let reply = self.request(request);
        assert_eq!(reply["type"], "error", "{shown} was answered {reply}");
        assert_eq!(reply["code"], code, "{shown} was answered {reply}");
        reply
    }

    /// Subscribes from now on.
    #[track_caller]
    pub fn subscribe(&mut self, topic: &str) -> Value {
        self.subscribe_from(topic, json!("live"))
    }

    #[track_caller]
    pub fn subscribe_from(&mut self, topic: &str, from: Value) -> Value {
        self.ask(json!({"type": "subscribe", "topic": topic, "from": from}), "subscribed")
    }

    /// Publishes and returns the event's sequence.
    #[track_caller]
    pub fn publish(&mut self, topic: &str, data: impl Into<Value>) -> u64 {
        let request = json!({"type": "publish", "topic": topic, "data": data.into()});
        seq(&self.ask(request, "published"))
    }

    /// Publishes `count` events, numbered from 1 in their data, without waiting between them.
    #[track_caller]
    pub fn publish_many(&mut self, topic: &str, count: u64, padding: usize) {
        let padding = "x".repeat(padding);
        for number in 1..=count {
            let data = json!({"n": number, "padding": padding});
            self.send(&json!({"type": "publish", "topic": topic, "data": data}));
        }
        self.fence();
    }

    /// Waits until every request sent so far has been handled.
    #[track_caller]
    pub fn fence(&mut self) {
        self.ask(json!({"type": "ping"}), "pong");
    }

    #[track_caller]
    pub fn history(&mut self, topic: &str, from: Value, limit: u64) -> Value {
        let request = json!({"type": "history", "topic": topic, "from": from, "limit": limit});
        self.ask(request, "history")
    }
}

/// The `seq` of a message.
#[track_caller]
#[must_use]
pub fn seq(message: &Value) -> u64 {
    number(message, "seq")
}

/// An unsigned integer field of a message.
#[track_caller]
#[must_use]
pub fn number(message: &Value, field: &str) -> u64 {
    message[field].as_u64().unwrap_or_else(|| panic!("{message} has no number {field}"))
}

#[track_caller]
#[must_use]
pub fn seqs(events: &[Value]) -> Vec<u64> {
    events.iter().map(seq).collect()
}

/// The position after event `seq` of the life that `message` speaks of.
#[track_caller]
#[must_use]
pub fn position(message: &Value, seq: u64) -> Value {
    let epoch = message["epoch"].as_str().unwrap_or_else(|| panic!("{message} has no epoch"));
    json!({"epoch": epoch, "seq": seq})
}

/// A TCP connection whose writes have a limit, with a receive buffer of its own size if asked.
#[track_caller]
#[must_use]
pub fn tcp(addr: SocketAddr, receive_buffer: Option<usize>) -> TcpStream {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).expect("a socket");
    if let Some(bytes) = receive_buffer {
        socket.set_recv_buffer_size(bytes).expect("set the receive buffer");
    }
    socket.connect(&addr.into()).expect("connect to the relay");
    let stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(LIMIT)).expect("set a write timeout");
    stream.set_nodelay(true).expect("set no-delay");
    stream
}

/// A WebSocket handshake; `extra` are header lines, each ending in a line break.
#[must_use]
pub fn upgrade_request(addr: SocketAddr, extra: &str) -> String {
    format!(
        "GET /ws HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {KEY}\r\n{extra}\r\n"
    )
}

/// Reads an HTTP head, and returns it and what came behind it.
#[track_caller]
#[must_use]
pub fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    try_read_head(stream).expect("read the head")
}

/// As [`read_head`], unless the connection ends before.
///
/// # Errors
///
/// It ends, or nothing comes for long.
pub fn try_read_head(stream: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut head = Vec::new();
    let mut bytes = [0; 4_096];
    loop {
        if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = head.split_off(at + 4);
            return Ok((String::from_utf8(head).expect("the head is text"), rest));
        }
        match stream.read(&mut bytes)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&bytes[..count]),
        }
    }
}

/// Ends a connection with a reset, whoever else holds a handle to it.
pub fn reset(stream: &TcpStream) {
    // Refused where it has ended already, or while another thread waits in it.
    if rustix::net::connect_unspec(stream).is_err() {
        SockRef::from(stream).set_linger(Some(Duration::ZERO)).ok();
        stream.shutdown(Shutdown::Both).ok();
    }
}

#[must_use]
pub fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

#[test]
fn a_peer_gets_along_with_another_implementation() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let other = std::thread::spawn(move || {
        let mut other = tungstenite::accept(listener.accept().unwrap().0).unwrap();
        other.send(tungstenite::Message::Ping("are you there".into())).unwrap();
        loop {
            match other.read() {
                Ok(message) if message.is_text() => other.send(message).unwrap(),
                Ok(message) if message.is_pong() => {
                    assert_eq!(message.into_data(), "are you there");
                }
                Ok(_) => {}
                Err(error) => return error.to_string(),
            }
        }
    });

    let mut peer = Peer::connect(addr);
    for size in [0, 10, 200, 70_000] {
        let reply = peer.ask(json!({"type": "echo", "padding": "x".repeat(size)}), "echo");
        assert_eq!(reply["padding"].as_str().map(str::len), Some(size));
    }
    peer.send_raw(&frame::masked(frame::PING, b"and you"));
    let pong = peer.receive(LIMIT);
    peer.close();

    assert_eq!(pong, Some(Incoming::Pong(b"and you".to_vec())));
    assert!(other.join().unwrap().contains("closed"));
}
