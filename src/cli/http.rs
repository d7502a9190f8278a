//! The few HTTP questions that the command line asks: one request, one connection, one answer.

use std::io::{Read, Write};

use serde::Deserialize;

use crate::{
    base::clock::Clock,
    cli::{
        Global,
        exit::{Exit, Failure},
    },
    client::{Address, LinkError},
};

/// Most bytes of an answer.
const REPLY_BYTES_MAX: u64 = 64 << 20;
const HEADERS_MAX: usize = 64;

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: String,
}

/// What an error's body says.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    detail: Option<String>,
    title: Option<String>,
}

/// Asks for `path`.
///
/// # Blocking
///
/// At most the timeout for the connection, and as long again between any two bytes.
pub(super) fn get(global: &Global<'_>, path: &str) -> Result<Reply, Failure> {
    let address = Address::parse(global.server)?;
    let server = address.authority();
    let unreachable = |error: LinkError| {
        Failure::from(crate::client::ClientError::Connect { server: server.clone(), source: error })
    };
    let broken = |error: std::io::Error| {
        unreachable(LinkError::Broken { source: std::sync::Arc::new(error) })
    };
    let mut socket = address.connect(&Clock::default(), global.timeout).map_err(unreachable)?;
    socket.set_read_timeout(Some(global.timeout)).map_err(broken)?;
    socket.set_write_timeout(Some(global.timeout)).map_err(broken)?;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {server}\r\nAccept: application/json\r\n\
         Connection: close\r\n\r\n",
        address.path(path)
    );
    socket.write_all(request.as_bytes()).map_err(broken)?;
    let mut bytes = Vec::new();
    socket.take(REPLY_BYTES_MAX).read_to_end(&mut bytes).map_err(broken)?;
    parse(&bytes).ok_or_else(|| {
        Failure::new(Exit::Other, format!("{server} did not answer as a relay does"))
    })
}

fn parse(bytes: &[u8]) -> Option<Reply> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(at) = head.parse(bytes).ok()? else { return None };
    let status = head.code?;
    let length =
        head.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let body = match length {
        Some(length) => {
            let length: usize = std::str::from_utf8(length.value).ok()?.trim().parse().ok()?;
            bytes.get(at..at.checked_add(length)?)?
        }
        None => &bytes[at..],
    };
    Some(Reply { status, body: String::from_utf8_lossy(body).into_owned() })
}

impl Reply {
    /// What the relay says is wrong.
    pub(super) fn problem(&self) -> String {
        let problem: Problem = serde_json::from_str(&self.body).unwrap_or_default();
        let text = problem.detail.or(problem.title);
        text.unwrap_or_else(|| format!("the relay answered with status {}", self.status))
    }

    pub(super) fn failure(&self) -> Failure {
        let exit = match self.status {
            401 | 403 => Exit::Denied,
            404 => Exit::NotFound,
            413 | 429 => Exit::Limit,
            503 => Exit::Lost,
            _ => Exit::Other,
        };
        Failure::new(exit, self.problem())
    }
}

/// Says that an answer is not what the relay says elsewhere.
pub(super) fn unreadable(error: serde_json::Error) -> Failure {
    Failure::new(Exit::Other, format!("the relay's answer cannot be read: {error}"))
}

/// Percent-encodes what may not stand in a query.
pub(super) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_at_its_length_and_must_be_whole() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}trailing";
        let reply = parse(text).unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "{}"));
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}").is_none());
        assert!(parse(b"SSH-2.0-OpenSSH\r\n").is_none());
    }

    #[test]
    fn what_may_not_stand_in_a_query_is_encoded() {
        assert_eq!(encode("a/b c&\u{fc}"), "a/b%20c%26%C3%BC");
    }
}
