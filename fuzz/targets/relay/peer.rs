//! A client of the relay, just as far as the target needs one.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::frame::{self, Inbox};

/// How long anything may take that must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Wire {
    stream: TcpStream,
    inbox: Inbox,
}

impl Wire {
    pub fn connect(addr: SocketAddr) -> Wire {
        let mut stream = TcpStream::connect(addr).expect("the relay listens");
        stream.set_nodelay(true).expect("a socket option");
        stream.set_read_timeout(Some(LIMIT)).expect("a socket option");
        let request = format!(
            "GET /ws HTTP/1.1\r\nHost: {addr}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).expect("the relay reads");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the relay answers the handshake");
            head.extend(byte);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Wire { stream, inbox: Inbox::default() }
    }

    /// Sends a message; a relay that has ended the connection does not get it.
    pub fn send(&mut self, message: &Value) {
        let bytes = frame::masked(frame::TEXT, message.to_string().as_bytes());
        drop(self.stream.write_all(&bytes));
    }

    /// The next message; `None` if the connection has ended, or if nothing comes within `limit`
    /// and that is short.
    pub fn receive(&mut self, limit: Duration) -> Option<Value> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(frame) = self.inbox.take() {
                match frame.opcode {
                    frame::TEXT => {
                        let message = serde_json::from_slice(&frame.payload);
                        return Some(message.expect("the relay sends JSON"));
                    }
                    frame::CLOSE => return None,
                    _ => {}
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).expect("a socket option");
            let mut bytes = [0; 64 * 1024];
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(count) => self.inbox.push(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    assert!(limit < LIMIT, "nothing comes within {limit:?}");
                    return None;
                }
                Err(_) => return None,
            }
        }
    }

    /// Ends the connection in order.
    pub fn close(mut self) {
        let bytes = frame::masked(frame::CLOSE, &1_000_u16.to_be_bytes());
        drop(self.stream.write_all(&bytes));
        while self.receive(LIMIT).is_some() {}
    }

    /// Ends it without a word.
    pub fn cut(self) {
        drop(self.stream.shutdown(Shutdown::Both));
    }
}
