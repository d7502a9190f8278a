//! A raw HTTP/1.1 client: one connection, requests as they are written, replies as they come.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use super::{
    peer::{TINY_BUFFER, is_timeout, tcp},
    wait::LIMIT,
};

pub struct Http {
    stream: TcpStream,
    addr: SocketAddr,
    /// Bytes that belong to later replies.
    rest: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: String,
}

/// Whether a reply has a body; that to a HEAD request does not, whatever its length says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    Expected,
    Absent,
}

impl Http {
    #[track_caller]
    #[must_use]
    pub fn connect(addr: SocketAddr) -> Http {
        Http { stream: tcp(addr, None), addr, rest: Vec::new() }
    }

    /// A client with a small receive buffer: it stalls the relay soon after it stops reading.
    #[track_caller]
    #[must_use]
    pub fn connect_tiny(addr: SocketAddr) -> Http {
        Http { stream: tcp(addr, Some(TINY_BUFFER)), addr, rest: Vec::new() }
    }

    /// Sends a request and returns the reply. `headers` are lines without their ends.
    #[track_caller]
    pub fn request(&mut self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        self.send(&request_text(self.addr, method, path, headers, body));
        self.reply(if method == "HEAD" { Body::Absent } else { Body::Expected })
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Reply {
        self.request("GET", path, &[], "")
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: &str) -> Reply {
        self.request("POST", path, &["Content-Type: application/json"], body)
    }

    /// Sends text as it is.
    #[track_caller]
    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).expect("send to the relay");
    }

    /// Sends text as it is, to a relay that may have closed the connection.
    pub fn try_send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).ok();
    }

    /// Reads the next reply.
    #[track_caller]
    pub fn reply(&mut self, body: Body) -> Reply {
        self.try_reply(body).expect("a reply instead of the end of the connection")
    }

    /// Reads the next reply; `None` if the connection ends before it starts.
    #[track_caller]
    pub fn try_reply(&mut self, body: Body) -> Option<Reply> {
        let head = self.take_through(b"\r\n\r\n")?;
        let head = String::from_utf8(head).expect("the head is text");
        let mut lines = head.trim_end().split("\r\n");
        let status_line = lines.next().unwrap_or_default();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {status_line}"));
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("header {line}"));
            (name.to_lowercase(), value.trim().to_owned())
        };
        let headers = lines.map(header).collect();
        let mut reply = Reply { status, headers, body: String::new() };
        if body == Body::Expected && status != 204 && status != 304 && 200 <= status {
            reply.body = String::from_utf8(self.body(&reply)).expect("the body is text");
        }
        Some(reply)
    }

    /// Reads the head of the next reply, as text.
    #[track_caller]
    pub fn head(&mut self) -> String {
        let head = self.take_through(b"\r\n\r\n").expect("a head");
        String::from_utf8(head).expect("the head is text")
    }

    /// Appends what comes until the connection ends.
    #[track_caller]
    pub fn read_to_end(&mut self, text: &mut String) {
        while self.fill() {}
        text.push_str(std::str::from_utf8(&self.rest).expect("it is text"));
        self.rest.clear();
    }

    #[track_caller]
    fn body(&mut self, reply: &Reply) -> Vec<u8> {
        if reply.header("transfer-encoding") == Some("chunked") {
            let mut body = Vec::new();
            loop {
                let line = self.take_through(b"\r\n").expect("the length of a chunk");
                let line = String::from_utf8(line).expect("the length is text");
                let len = usize::from_str_radix(line.trim(), 16).expect("the length is a number");
                let chunk = self.take(len + 2);
                if len == 0 {
                    return body;
                }
                body.extend_from_slice(&chunk[..len]);
            }
        }
        let length = reply.header("content-length");
        let length = length.unwrap_or_else(|| panic!("a body without a length: {reply:?}"));
        self.take(length.parse().expect("the length is a number"))
    }

    #[track_caller]
    fn take(&mut self, len: usize) -> Vec<u8> {
        while self.rest.len() < len {
            assert!(self.fill(), "the connection ended in a body");
        }
        self.rest.drain(..len).collect()
    }

    #[track_caller]
    fn take_through(&mut self, end: &[u8]) -> Option<Vec<u8>> {
        loop {
            if let Some(at) = self.rest.windows(end.len()).position(|window| window == end) {
                return Some(self.rest.drain(..at + end.len()).collect());
            }
            if !self.fill() {
                assert!(self.rest.is_empty(), "the connection ended in a head: {:?}", self.rest);
                return None;
            }
        }
    }

    /// Reads more; false at the end of the connection.
    #[track_caller]
    fn fill(&mut self) -> bool {
        self.stream.set_read_timeout(Some(LIMIT)).expect("set a read timeout");
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => false,
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                true
            }
            Err(error) if is_timeout(&error) => {
                panic!("the relay did not answer within {LIMIT:?}; so far: {:?}", self.rest)
            }
            Err(_) => false,
        }
    }

    /// Whether the relay has closed the connection by now; what it sent before is passed over.
    #[track_caller]
    pub fn is_closed(&mut self) -> bool {
        Http::has_ended(&self.stream)
    }

    /// Whether the other end of `stream` has closed it by now; what it sent before is passed over.
    #[track_caller]
    pub fn has_ended(mut stream: &TcpStream) -> bool {
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("set a read timeout");
        match stream.read(&mut [0; 4_096]) {
            Ok(count) => count == 0,
            Err(error) => !is_timeout(&error),
        }
    }
}

impl Reply {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found == name);
        found.map(|(_, value)| value.as_str())
    }

    /// The body as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A request with a `Host`, and with a length where it has a body.
#[must_use]
pub fn request_text(
    addr: SocketAddr,
    method: &str,
    path: &str,
    headers: &[&str],
    body: &str,
) -> String {
    let has = |name: &str| headers.iter().any(|line| line.to_lowercase().starts_with(name));
    let mut text = format!("{method} {path} HTTP/1.1\r\n");
    if !has("host:") {
        text += &format!("Host: {addr}\r\n");
    }
    for line in headers {
        text += &format!("{line}\r\n");
    }
    if (!body.is_empty() || method == "POST") && !has("transfer-encoding:") {
        text += &format!("Content-Length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}
