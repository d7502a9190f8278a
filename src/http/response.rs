//! Answers: a status, header fields and a body, appended to a buffer.
//!
//! Every answer says `nosniff`, so that no browser takes data for a page, and `no-store` unless it
//! says otherwise. There is no `Date`: nothing here may be cached, so nobody computes its age.

use serde::Serialize;

use crate::{
    http::{
        error::HttpError,
        field::Field,
        head::{Head, Method},
        origin::Caller,
        upgrade::WEBSOCKET_VERSION,
    },
    wire::{json, request::Refusal},
};

/// What a client that waits before it sends a body is told.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// The answer to a connection above the limit: written without reading a request, and then closed.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
    Connection: close\r\n\
    X-Content-Type-Options: nosniff\r\n\
    Cache-Control: no-store\r\n\
    Retry-After: 5\r\n\
    Content-Type: application/problem+json\r\n\
    Content-Length: 150\r\n\
    \r\n\
    {\"type\":\"about:blank\",\"title\":\"Service Unavailable\",\"status\":503,\
    \"detail\":\"there are too many connections\",\
    \"code\":\"unavailable\",\"retry_after_ms\":5000}";

/// Header fields that pages of other origins may send.
const CORS_REQUEST_HEADERS: &str =
    "Content-Type, Event-Name, Idempotency-Key, If-Match, If-None-Match, Last-Event-ID";
/// Header fields that pages of other origins may read.
const CORS_RESPONSE_HEADERS: &str = "ETag, Retry-After";
/// How long a browser may remember a preflight, in seconds.
const CORS_AGE_SECONDS: &str = "600";

/// What an answer has to know of its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exchange<'a> {
    /// The request was HEAD: the answer has the header fields of a body and not the body.
    pub head_only: bool,
    /// Whether the connection stays open after the answer.
    pub keep_alive: bool,
    /// The origin whose pages may read the answer, if it needs to be named.
    pub cors: Option<&'a str>,
}

impl<'a> Exchange<'a> {
    /// An answer to something that is not a request, and the last one of its connection.
    pub const LAST: Exchange<'static> =
        Exchange { head_only: false, keep_alive: false, cors: None };

    #[must_use]
    pub fn of(head: &'a Head, caller: Caller) -> Exchange<'a> {
        Exchange {
            head_only: head.method == Method::Head,
            keep_alive: head.keep_alive,
            cors: match caller {
                Caller::CrossOrigin => head.field(Field::Origin),
                Caller::Direct | Caller::SameOrigin => None,
            },
        }
    }
}

/// An answer that is being put together.
#[derive(Clone, Debug)]
#[must_use]
pub struct Response<'a> {
    status: u16,
    cache_control: &'a str,
    /// A member of `Connection` beside `close` or `keep-alive`.
    connection_option: Option<&'static str>,
    /// Further lines, each ended.
    lines: Vec<u8>,
    content_type: Option<&'a str>,
    body: Body<'a>,
}

/// What comes behind the header fields.
#[derive(Clone, Copy, Debug)]
enum Body<'a> {
    Whole(&'a [u8]),
    /// Whatever comes until the connection ends.
    Endless,
}

impl<'a> Response<'a> {
    /// An answer without a body.
    pub fn new(status: u16) -> Response<'a> {
        Response {
            status,
            cache_control: "no-store",
            connection_option: None,
            lines: Vec::new(),
            content_type: None,
            body: Body::Whole(&[]),
        }
    }

    pub fn body(mut self, content_type: &'a str, body: &'a [u8]) -> Response<'a> {
        self.content_type = Some(content_type);
        self.body = Body::Whole(body);
        self
    }

    /// A body that goes on until the connection ends; no proxy is to keep any of it back.
    pub fn stream(self, content_type: &'a str) -> Response<'a> {
        let response = self.header("X-Accel-Buffering", "no");
        Response { content_type: Some(content_type), body: Body::Endless, ..response }
    }

    /// Says something other than `no-store`.
    pub fn cache_control(mut self, value: &'a str) -> Response<'a> {
        self.cache_control = value;
        self
    }

    /// Adds a header field.
    pub fn header(mut self, name: &str, value: &str) -> Response<'a> {
        push_line(&mut self.lines, name, value);
        self
    }

    /// Appends the answer to `out`.
    pub fn write(&self, out: &mut Vec<u8>, exchange: &Exchange<'_>) {
        let body = match self.body {
            Body::Whole(body) => body,
            Body::Endless => &[],
        };
        let is_whole = matches!(self.body, Body::Whole(_));
        out.reserve(320 + self.lines.len() + body.len());
        out.extend_from_slice(b"HTTP/1.1 ");
        json::push_number(out, self.status.into());
        out.push(b' ');
        out.extend_from_slice(title(self.status).as_bytes());
        out.extend_from_slice(b"\r\nConnection: ");
        out.extend_from_slice(if exchange.keep_alive && is_whole {
            b"keep-alive"
        } else {
            b"close"
        });
        if let Some(option) = self.connection_option {
            out.extend_from_slice(b", ");
            out.extend_from_slice(option.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        push_line(out, "X-Content-Type-Options", "nosniff");
        push_line(out, "Cache-Control", self.cache_control);
        if let Some(origin) = exchange.cors {
            push_line(out, "Access-Control-Allow-Origin", origin);
            push_line(out, "Access-Control-Expose-Headers", CORS_RESPONSE_HEADERS);
            push_line(out, "Vary", "Origin");
        }
        out.extend_from_slice(&self.lines);
        if let Some(content_type) = self.content_type {
            push_line(out, "Content-Type", content_type);
        }
        let may_have_body = !matches!(self.status, 100..=199 | 204 | 304);
        debug_assert!(may_have_body || body.is_empty(), "{} has no body", self.status);
        if may_have_body && is_whole {
            out.extend_from_slice(b"Content-Length: ");
            json::push_number(out, body.len() as u64);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
        if may_have_body && !exchange.head_only {
            out.extend_from_slice(body);
        }
    }
}

/// Appends an answer whose body is JSON.
pub fn json(out: &mut Vec<u8>, exchange: &Exchange<'_>, status: u16, body: &[u8]) {
    Response::new(status).body("application/json", body).write(out, exchange);
}

/// Appends a refusal as a problem (RFC 9457).
pub fn problem(out: &mut Vec<u8>, exchange: &Exchange<'_>, refusal: &Refusal) {
    let status = refusal.code.http_status();
    write_problem(out, exchange, Response::new(status), refusal);
}

/// Appends the answer to a request that is not served. It says `Connection: close` where the error
/// demands it; closing is then up to the caller.
pub fn refuse(out: &mut Vec<u8>, exchange: &Exchange<'_>, error: &HttpError) {
    let mut response = Response::new(error.status());
    if let HttpError::Method { allowed } = error {
        response = response.header("Allow", &list(allowed));
    }
    if matches!(error, HttpError::UpgradeMissing | HttpError::UpgradeVersion) {
        response.connection_option = Some("Upgrade");
        response = response
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", WEBSOCKET_VERSION);
    }
    let exchange = Exchange { keep_alive: exchange.keep_alive && !error.closes(), ..*exchange };
    write_problem(out, &exchange, response, &error.refusal());
}

/// Appends the answer to OPTIONS: what a path takes, and, to a page of another origin, that it may
/// send it (a preflight).
pub fn options(out: &mut Vec<u8>, exchange: &Exchange<'_>, allowed: &[Method]) {
    let methods = list(allowed);
    let mut response = Response::new(204).header("Allow", &methods);
    if exchange.cors.is_some() {
        response = response
            .header("Access-Control-Allow-Methods", &methods)
            .header("Access-Control-Allow-Headers", CORS_REQUEST_HEADERS)
            .header("Access-Control-Max-Age", CORS_AGE_SECONDS);
    }
    response.write(out, exchange);
}

/// Appends the answer after which the connection is a WebSocket.
pub fn switching_protocols(out: &mut Vec<u8>, accept_key: &str, protocol: Option<&str>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\n");
    push_line(out, "Connection", "Upgrade");
    push_line(out, "Upgrade", "websocket");
    push_line(out, "Sec-WebSocket-Accept", accept_key);
    if let Some(protocol) = protocol {
        push_line(out, "Sec-WebSocket-Protocol", protocol);
    }
    out.extend_from_slice(b"\r\n");
}

fn write_problem(
    out: &mut Vec<u8>,
    exchange: &Exchange<'_>,
    mut response: Response<'_>,
    refusal: &Refusal,
) {
    #[derive(Serialize)]
    struct Problem<'a> {
        r#type: &'static str,
        title: &'static str,
        status: u16,
        detail: &'a str,
        code: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        field: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        version: Option<u64>,
    }
    let body = Problem {
        r#type: "about:blank",
        title: title(response.status),
        status: response.status,
        detail: &refusal.message,
        code: refusal.code.as_str(),
        field: refusal.field,
        retry_after_ms: refusal.retry_after_ms,
        version: refusal.version,
    };
    if let Some(ms) = refusal.retry_after_ms {
        // Rounded up: who comes back a moment early is refused again.
        response = response.header("Retry-After", &ms.div_ceil(1_000).to_string());
    }
    let body = serde_json::to_vec(&body).expect("a problem has only string keys");
    let response = Response { content_type: None, body: Body::Whole(&[]), ..response };
    response.body("application/problem+json", &body).write(out, exchange);
}

fn list(methods: &[Method]) -> String {
    methods.iter().map(|method| method.as_str()).collect::<Vec<_>>().join(", ")
}

/// Appends a header field. A value that came from a peer cannot end the line: a control character
/// becomes a space.
fn push_line(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend(value.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    out.extend_from_slice(b"\r\n");
}

/// The reason phrase of every status that is sent.
const fn title(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        204 => "No Content",
        304 => "Not Modified",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        505 => "HTTP Version Not Supported",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::head::{Parsed, parse},
        wire::codes::Code,
    };

    const OPEN: Exchange<'static> = Exchange { head_only: false, keep_alive: true, cors: None };

    /// An answer taken apart again: status, lower-case header fields, body.
    struct Read {
        status: u16,
        fields: Vec<(String, String)>,
        body: Vec<u8>,
    }

    impl Read {
        #[track_caller]
        fn of(bytes: &[u8]) -> Read {
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(used) = response.parse(bytes).unwrap() else {
                panic!("the head is not whole");
            };
            let field = |header: &httparse::Header<'_>| {
                let value = String::from_utf8(header.value.to_vec()).unwrap();
                (header.name.to_ascii_lowercase(), value)
            };
            let fields = response.headers.iter().map(field).collect();
            Read { status: response.code.unwrap(), fields, body: bytes[used..].to_vec() }
        }

        #[track_caller]
        fn field(&self, name: &str) -> Option<&str> {
            let mut found = self.fields.iter().filter(|(field, _)| field == name);
            let value = found.next().map(|(_, value)| value.as_str());
            assert!(found.next().is_none(), "{name} is there twice");
            value
        }

        fn json(&self) -> serde_json::Value {
            serde_json::from_slice(&self.body).unwrap()
        }
    }

    #[track_caller]
    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Read {
        let mut out = Vec::new();
        write(&mut out);
        Read::of(&out)
    }

    #[test]
    fn an_answer_has_its_length_and_the_fields_that_protect_it() {
        let read = written(|out| json(out, &OPEN, 200, b"{}"));
        assert_eq!((read.status, &read.body[..]), (200, &b"{}"[..]));
        assert_eq!(read.field("content-length"), Some("2"));
        assert_eq!(read.field("content-type"), Some("application/json"));
        assert_eq!(read.field("connection"), Some("keep-alive"));
        assert_eq!(read.field("x-content-type-options"), Some("nosniff"));
        assert_eq!(read.field("cache-control"), Some("no-store"));
        assert_eq!(read.field("access-control-allow-origin"), None);
        assert_eq!(read.field("vary"), None);
    }

    #[test]
    fn an_answer_to_head_has_the_length_and_not_the_body() {
        let read =
            written(|out| json(out, &Exchange { head_only: true, ..OPEN }, 200, b"{\"a\":1}"));
        assert_eq!(read.field("content-length"), Some("7"));
        assert!(read.body.is_empty());
    }

    #[test]
    fn an_answer_without_a_body_says_so_where_it_may() {
        let empty = written(|out| Response::new(200).write(out, &Exchange::LAST));
        assert_eq!(empty.field("content-length"), Some("0"));
        assert_eq!(empty.field("connection"), Some("close"));
        let none = written(|out| Response::new(204).write(out, &OPEN));
        assert_eq!(none.field("content-length"), None);
    }

    #[test]
    fn a_header_field_cannot_be_split() {
        let hostile = "a\r\nSet-Cookie: b\0";
        let read = written(|out| {
            Response::new(200).header("X", hostile).cache_control("max-age=60").write(out, &OPEN);
        });
        assert_eq!(read.field("x"), Some("a  Set-Cookie: b"));
        assert_eq!(read.field("set-cookie"), None);
        assert_eq!(read.field("cache-control"), Some("max-age=60"));
    }

    #[test]
    fn a_refusal_becomes_a_problem_with_the_same_code() {
        let refusal = Refusal {
            field: Some("topic"),
            retry_after_ms: Some(1_001),
            ..Refusal::new(Code::RateLimited, "slow down")
        };
        let read = written(|out| problem(out, &OPEN, &refusal));
        assert_eq!(read.status, 429);
        assert_eq!(read.field("content-type"), Some("application/problem+json"));
        assert_eq!(read.field("retry-after"), Some("2"));
        let expected = serde_json::json!({
            "type": "about:blank", "title": "Too Many Requests", "status": 429,
            "detail": "slow down", "code": "rate_limited", "field": "topic",
            "retry_after_ms": 1_001,
        });
        assert_eq!(read.json(), expected);

        let read = written(|out| problem(out, &OPEN, &Refusal::new(Code::NotFound, "no")));
        assert_eq!(read.field("retry-after"), None);
        assert_eq!(read.json().as_object().unwrap().len(), 5);
    }

    #[test]
    fn every_code_has_a_status_with_a_title() {
        for code in Code::ALL {
            assert_ne!(title(code.http_status()), "Unknown", "{code:?}");
        }
    }

    #[test]
    fn an_error_that_closes_says_so_and_others_do_not() {
        let read = written(|out| refuse(out, &OPEN, &HttpError::LengthAndEncoding));
        assert_eq!((read.status, read.field("connection")), (400, Some("close")));
        assert_eq!(read.json()["code"], "bad_request");
        let missing = Refusal::new(Code::NotFound, "no").into();
        let read = written(|out| refuse(out, &OPEN, &missing));
        assert_eq!((read.status, read.field("connection")), (404, Some("keep-alive")));
        let read = written(|out| refuse(out, &Exchange::LAST, &missing));
        assert_eq!(read.field("connection"), Some("close"));
    }

    #[test]
    fn a_wrong_method_learns_the_right_ones() {
        let allowed = &[Method::Get, Method::Post];
        let read = written(|out| refuse(out, &OPEN, &HttpError::Method { allowed }));
        assert_eq!((read.status, read.field("allow")), (405, Some("GET, POST")));
    }

    #[test]
    fn a_failed_handshake_learns_the_version() {
        for error in [HttpError::UpgradeMissing, HttpError::UpgradeVersion] {
            let read = written(|out| refuse(out, &OPEN, &error));
            assert_eq!(read.status, 426);
            assert_eq!(read.field("upgrade"), Some("websocket"));
            assert_eq!(read.field("connection"), Some("keep-alive, Upgrade"));
            assert_eq!(read.field("sec-websocket-version"), Some("13"));
        }
        let read = written(|out| refuse(out, &OPEN, &HttpError::UpgradeKey));
        assert_eq!((read.status, read.field("upgrade")), (400, None));
    }

    #[test]
    fn an_allowed_origin_is_echoed_and_a_preflight_answered() {
        let cors = Exchange { cors: Some("https://panel.example"), ..OPEN };
        let allowed = &[Method::Get, Method::Post];
        let read = written(|out| options(out, &cors, allowed));
        assert_eq!(read.status, 204);
        assert_eq!(read.field("allow"), Some("GET, POST"));
        assert_eq!(read.field("access-control-allow-origin"), Some("https://panel.example"));
        assert_eq!(read.field("access-control-allow-methods"), Some("GET, POST"));
        assert_eq!(read.field("access-control-allow-headers"), Some(CORS_REQUEST_HEADERS));
        assert_eq!(read.field("access-control-max-age"), Some("600"));
        assert_eq!(read.field("vary"), Some("Origin"));
        assert_eq!(read.field("access-control-allow-credentials"), None);
        let read = written(|out| options(out, &OPEN, allowed));
        assert_eq!(read.field("allow"), Some("GET, POST"));
        assert_eq!(read.field("access-control-allow-methods"), None);
    }

    #[test]
    fn an_exchange_is_read_off_the_head() {
        let text = b"HEAD / HTTP/1.1\r\nHost: a\r\nOrigin: http://b\r\nConnection: close\r\n\r\n";
        let Parsed::Done { head, .. } = parse(text).unwrap() else { panic!("not whole") };
        let expected = Exchange { head_only: true, keep_alive: false, cors: Some("http://b") };
        assert_eq!(Exchange::of(&head, Caller::CrossOrigin), expected);
        assert_eq!(Exchange::of(&head, Caller::SameOrigin).cors, None);
    }

    #[test]
    fn a_handshake_is_answered_as_the_rfc_says() {
        let read = written(|out| switching_protocols(out, "s3pPLM=", Some("landline.v1")));
        assert_eq!(read.status, 101);
        assert_eq!(read.field("connection"), Some("Upgrade"));
        assert_eq!(read.field("upgrade"), Some("websocket"));
        assert_eq!(read.field("sec-websocket-accept"), Some("s3pPLM="));
        assert_eq!(read.field("sec-websocket-protocol"), Some("landline.v1"));
        assert_eq!(read.field("content-length"), None);
        let read = written(|out| switching_protocols(out, "s3pPLM=", None));
        assert_eq!(read.field("sec-websocket-protocol"), None);
    }

    #[test]
    fn the_answer_to_a_connection_too_many_is_what_the_builder_would_write() {
        let refusal = Refusal {
            retry_after_ms: Some(5_000),
            ..Refusal::new(Code::Unavailable, "there are too many connections")
        };
        let mut out = Vec::new();
        problem(&mut out, &Exchange::LAST, &refusal);
        assert_eq!(str::from_utf8(TOO_MANY_CONNECTIONS), str::from_utf8(&out));
    }
}
