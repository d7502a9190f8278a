//! What each peer speaks, as far as publishing and receiving take it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use landline::wire::frame;

use crate::support::{self, PATIENCE, push_client_frame};

const TOPIC: &str = "home/kitchen/lamp";
/// Bytes of a message's payload, quotes of JSON included where there are some.
pub(crate) const PAYLOAD_BYTES: usize = 128;

/// How a peer is spoken with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// WebSocket and JSON.
    Landline,
    Nats,
    /// MQTT 3.1.1, quality of service 0.
    Mqtt,
    /// Publish and subscribe in RESP 2.
    Redis,
}

impl Protocol {
    /// A connection on which it can be published and subscribed.
    pub(crate) fn connect(self, server: SocketAddr) -> TcpStream {
        if self == Protocol::Landline {
            return support::connect(server);
        }
        let mut stream = TcpStream::connect(server).expect("the server listens");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        stream.set_read_timeout(Some(PATIENCE)).expect("a fresh socket takes options");
        stream.set_write_timeout(Some(PATIENCE)).expect("a fresh socket takes options");
        match self {
            Protocol::Landline | Protocol::Redis => {}
            Protocol::Nats => {
                ask(&mut stream, b"CONNECT {\"verbose\":false}\r\nPING\r\n", |got| {
                    got.ends_with(b"PONG\r\n")
                });
            }
            Protocol::Mqtt => {
                // Protocol `MQTT`, level 4, a clean session, no keep-alive, no client id.
                let connect = b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00";
                ask(&mut stream, connect, |got| got.len() == 4);
            }
        }
        stream
    }

    /// Subscribes, and waits for the word that it is.
    pub(crate) fn subscribe(self, stream: &mut TcpStream) {
        match self {
            Protocol::Landline => {
                let request = format!(r#"{{"type":"subscribe","id":1,"topic":"{TOPIC}"}}"#);
                let mut bytes = Vec::new();
                push_client_frame(&mut bytes, &request);
                ask(stream, &bytes, |got| 4 <= got.len() && frame::length(got) == got.len());
            }
            Protocol::Nats => {
                let request = format!("SUB {TOPIC} 1\r\nPING\r\n");
                ask(stream, request.as_bytes(), |got| got.ends_with(b"PONG\r\n"));
            }
            Protocol::Mqtt => {
                let length = u16::try_from(TOPIC.len()).expect("a short topic");
                let mut request = vec![0x82, u8::try_from(length + 5).expect("short"), 0, 1];
                request.extend_from_slice(&length.to_be_bytes());
                request.extend_from_slice(TOPIC.as_bytes());
                request.push(0);
                ask(stream, &request, |got| got.len() == 5);
            }
            Protocol::Redis => {
                let request = format!("SUBSCRIBE {TOPIC}\r\n");
                ask(stream, request.as_bytes(), |got| got.ends_with(b":1\r\n"));
            }
        }
    }

    /// Appends what publishes the message `number`.
    pub(crate) fn push_publish(self, out: &mut Vec<u8>, number: u64) {
        let room = if self == Protocol::Landline { PAYLOAD_BYTES - 2 } else { PAYLOAD_BYTES };
        let payload = format!("{number:016}{}", "x".repeat(room - 16));
        match self {
            Protocol::Landline => {
                let text = format!(r#"{{"type":"publish","topic":"{TOPIC}","data":"{payload}"}}"#);
                push_client_frame(out, &text);
            }
            Protocol::Nats => {
                write!(out, "PUB {TOPIC} {PAYLOAD_BYTES}\r\n{payload}\r\n").expect("memory");
            }
            Protocol::Mqtt => {
                out.push(0x30);
                let rest = 2 + TOPIC.len() + PAYLOAD_BYTES;
                out.push(u8::try_from(rest % 128).expect("seven bits") | 0x80);
                out.push(u8::try_from(rest / 128).expect("a short message"));
                let length = u16::try_from(TOPIC.len()).expect("a short topic");
                out.extend_from_slice(&length.to_be_bytes());
                write!(out, "{TOPIC}{payload}").expect("memory");
            }
            Protocol::Redis => write!(
                out,
                "*3\r\n$7\r\nPUBLISH\r\n${}\r\n{TOPIC}\r\n${PAYLOAD_BYTES}\r\n{payload}\r\n",
                TOPIC.len()
            )
            .expect("memory"),
        }
    }

    /// The number of the message at the start of `bytes`, and how many bytes it takes; `None` until
    /// all of it is there.
    pub(crate) fn message(self, bytes: &[u8]) -> Option<(u64, usize)> {
        let (digits, length) = match self {
            Protocol::Landline => {
                let length = (4 <= bytes.len()).then(|| frame::length(bytes))?;
                // The data is the last field of an event: digits, filler, a quote and a brace.
                (length.checked_sub(PAYLOAD_BYTES)?, length)
            }
            Protocol::Nats => {
                // Now and then it asks whether somebody is there, and waits minutes for an answer.
                let ping = b"PING\r\n";
                let start = if bytes.starts_with(ping) { ping.len() } else { 0 };
                let line = start + memchr::memchr(b'\n', &bytes[start..])? + 1;
                (line, line + PAYLOAD_BYTES + 2)
            }
            Protocol::Mqtt => {
                let topic = 3;
                let payload = topic + 2 + TOPIC.len();
                (payload, payload + PAYLOAD_BYTES)
            }
            Protocol::Redis => {
                let head = "*3\r\n$7\r\nmessage\r\n$17\r\n\r\n$128\r\n".len() + TOPIC.len();
                (head, head + PAYLOAD_BYTES + 2)
            }
        };
        let message = bytes.get(..length)?;
        let digits = message.get(digits..digits + 16)?;
        let number = digits.iter().try_fold(0_u64, |number, digit| {
            digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
        });
        let text = || String::from_utf8_lossy(message).into_owned();
        Some((number.unwrap_or_else(|| panic!("no message: {}", text())), length))
    }
}

/// Sends a request, and reads until its answer `is_whole`.
fn ask(stream: &mut TcpStream, request: &[u8], is_whole: impl Fn(&[u8]) -> bool) {
    stream.write_all(request).expect("the server reads");
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        let mut chunk = [0; 1_024];
        let got = stream.read(&mut chunk).expect("the server answers in time");
        assert_ne!(got, 0, "closed instead: {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..got]);
    }
}
