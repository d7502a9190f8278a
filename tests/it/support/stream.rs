//! A client of streams: server-sent events as a browser reads them, and lines of JSON.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use super::{
    http::{Body, Http, Reply, request_text},
    peer::{TINY_BUFFER, is_timeout, read_head, tcp, try_read_head},
    wait::{Deadline, LIMIT},
};

/// A stream, and what a browser keeps of it.
pub struct Stream {
    stream: TcpStream,
    rest: Vec<u8>,
    pub head: String,
    is_lines: bool,
    /// The id of the last message that had one.
    pub last_id: Option<String>,
    /// When to come back, as last said, in milliseconds.
    pub retry_ms: Option<u64>,
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// `message` where the stream says nothing else.
    pub event: String,
    pub id: Option<String>,
    pub data: Value,
}

impl Stream {
    /// Asks for server-sent events.
    #[track_caller]
    #[must_use]
    pub fn sse(addr: SocketAddr, path: &str) -> Stream {
        Stream::open(tcp(addr, None), addr, path, &["Accept: text/event-stream"])
    }

    /// As [`Stream::sse`], as a browser that comes back with the id of the last event.
    #[track_caller]
    #[must_use]
    pub fn sse_after(addr: SocketAddr, path: &str, id: Option<&str>) -> Stream {
        let id = format!("Last-Event-ID: {}", id.unwrap_or_default());
        Stream::open(tcp(addr, None), addr, path, &["Accept: text/event-stream", &id])
    }

    /// As [`Stream::sse_after`], over a connection to a relay that may go away meanwhile.
    #[must_use]
    pub fn try_sse(mut stream: TcpStream, path: &str, id: Option<&str>) -> Option<Stream> {
        let mut headers = vec!["Accept: text/event-stream".to_owned()];
        headers.extend(id.map(|id| format!("Last-Event-ID: {id}")));
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let request = request_text(stream.peer_addr().ok()?, "GET", path, &headers, "");
        stream.set_write_timeout(Some(LIMIT)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let (head, rest) = try_read_head(&mut stream).ok()?;
        head.starts_with("HTTP/1.1 200 ").then(|| Stream::over(stream, head, rest))
    }

    /// As [`Stream::sse`], with a small receive buffer: it stalls the relay soon after it stops
    /// reading.
    #[track_caller]
    #[must_use]
    pub fn sse_tiny(addr: SocketAddr, path: &str) -> Stream {
        let socket = tcp(addr, Some(TINY_BUFFER));
        Stream::open(socket, addr, path, &["Accept: text/event-stream"])
    }

    /// Asks for lines of JSON.
    #[track_caller]
    #[must_use]
    pub fn lines(addr: SocketAddr, path: &str) -> Stream {
        Stream::open(tcp(addr, None), addr, path, &["Accept: application/x-ndjson"])
    }

    /// What is answered to a request for a stream that cannot be.
    #[track_caller]
    pub fn refused(addr: SocketAddr, path: &str, headers: &[&str]) -> Reply {
        let headers = [&["Accept: text/event-stream"], headers].concat();
        let mut http = Http::connect(addr);
        http.send(&request_text(addr, "GET", path, &headers, ""));
        http.reply(Body::Expected)
    }

    #[track_caller]
    fn open(mut stream: TcpStream, addr: SocketAddr, path: &str, headers: &[&str]) -> Stream {
        let request = request_text(addr, "GET", path, headers, "");
        stream.write_all(request.as_bytes()).expect("send to the relay");
        let (head, rest) = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        Stream::over(stream, head, rest)
    }

    fn over(stream: TcpStream, head: String, rest: Vec<u8>) -> Stream {
        let is_lines = head.contains("application/x-ndjson");
        Stream { stream, rest, head, is_lines, last_id: None, retry_ms: None }
    }

    /// The next message; `None` at the end of the stream.
    #[track_caller]
    pub fn any_message(&mut self) -> Option<Message> {
        let deadline = Deadline::after(LIMIT);
        loop {
            let end: &[u8] = if self.is_lines { b"\n" } else { b"\n\n" };
            if let Some(at) = self.rest.windows(end.len()).position(|window| window == end) {
                let block: Vec<u8> = self.rest.drain(..at + end.len()).collect();
                let block = String::from_utf8(block).expect("a stream is text");
                if let Some(message) = self.read(block.trim_end_matches('\n')) {
                    return Some(message);
                }
                continue;
            }
            assert!(!deadline.is_over(), "nothing came; so far: {:?}", self.rest);
            if !self.fill(deadline.left()) {
                return None;
            }
        }
    }

    /// Reads more; false at the end.
    fn fill(&mut self, limit: Duration) -> bool {
        let limit = limit.max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(limit)).expect("set a read timeout");
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(count) => {
                self.rest.extend_from_slice(&bytes[..count]);
                0 < count
            }
            Err(error) => is_timeout(&error),
        }
    }

    /// Reads one block or line; `None` if it dispatches nothing.
    #[track_caller]
    fn read(&mut self, block: &str) -> Option<Message> {
        let mut message = Message { event: "message".to_owned(), id: None, data: Value::Null };
        if self.is_lines {
            message.data = parse(block);
            let kind = message.data["type"].as_str().expect("every line has a type");
            message.event = if kind == "event" { "message".to_owned() } else { kind.to_owned() };
            return Some(message);
        }
        let mut has_data = false;
        for line in block.lines() {
            let (field, value) = line.split_once(": ").unwrap_or_else(|| panic!("line {line:?}"));
            match field {
                "event" => value.clone_into(&mut message.event),
                "id" => message.id = Some(value.to_owned()),
                "retry" => self.retry_ms = Some(value.parse().expect("retry is a number")),
                "data" => {
                    assert!(!has_data, "one line of data, not more: {block}");
                    has_data = true;
                    message.data = parse(value);
                }
                _ => panic!("a field that no browser knows: {line:?}"),
            }
        }
        if let Some(id) = &message.id {
            self.last_id = Some(id.clone());
        }
        has_data.then_some(message)
    }

    /// The next message, which must be `event`. Pings are passed over.
    #[track_caller]
    pub fn expect(&mut self, event: &str) -> Message {
        let message = self.message();
        let message = message.unwrap_or_else(|| panic!("the end instead of {event}"));
        assert_eq!(message.event, event, "{message:?}");
        message
    }

    #[track_caller]
    pub fn message(&mut self) -> Option<Message> {
        loop {
            let message = self.any_message()?;
            if message.event != "ping" {
                return Some(message);
            }
        }
    }

    /// The objects of the next `count` events.
    #[track_caller]
    pub fn events(&mut self, count: usize) -> Vec<Value> {
        (0..count).map(|_| self.expect("message").data).collect()
    }

    /// Whether the head has this line, in any case of letters.
    #[must_use]
    pub fn has_header(&self, line: &str) -> bool {
        self.head.lines().any(|found| found.eq_ignore_ascii_case(line))
    }
}

#[track_caller]
fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// The lines of a stream that end and are not empty.
#[must_use]
pub fn lines_of(body: &str) -> Vec<&str> {
    let end = body.rfind('\n').map_or(0, |end| end + 1);
    body[..end].lines().filter(|line| !line.is_empty()).collect()
}

/// Reads behind `rest` until there are `wanted` lines.
#[track_caller]
pub fn read_lines(stream: &mut TcpStream, rest: &mut Vec<u8>, wanted: usize) {
    while lines_of(&String::from_utf8_lossy(rest)).len() < wanted {
        let mut bytes = [0; 4_096];
        let count = stream.read(&mut bytes).expect("read the stream");
        assert!(0 < count, "the stream ended after {:?}", String::from_utf8_lossy(rest));
        rest.extend_from_slice(&bytes[..count]);
    }
}
