//! The head of a request: found in a growing buffer, parsed once it is whole, and reduced to what
//! the relay reads.
//!
//! Where RFC 9112 leaves a choice that two programs in a row could make differently, the request
//! is refused: lines end in CR LF and nothing else, one `Host`, one way to tell the body's length.

use httparse::Header;

use crate::{
    base::limits::{EVENT_NAME_BYTES_MAX, HEAD_BYTES_MAX, HEADERS_MAX, KEY_BYTES_MAX},
    http::{
        authority::Authority,
        error::HttpError,
        field::{Field, Repeat},
    },
    wire::request::{Refusal, check_short_text},
};

/// Empty lines that may come before a request: some clients send one after a body.
const EMPTY_LINES_MAX: usize = 2;

// A span of the kept text is two numbers of 16 bits.
const _: () = assert!(HEAD_BYTES_MAX <= u16::MAX as usize);

/// How far a buffer has come.
#[derive(Debug)]
pub enum Parsed {
    /// The end of the head is not there yet.
    Partial,
    /// The head is whole; the body, or the next request, begins at `used`.
    Done { head: Head, used: usize },
}

/// Parses the request at the start of `bytes`.
///
/// Looks at everything each time: where the buffer grows in small steps, keep a [`Scanner`].
///
/// # Errors
///
/// The first rule that the request breaks. Always one after which the connection closes.
pub fn parse(bytes: &[u8]) -> Result<Parsed, HttpError> {
    Scanner::default().scan(bytes)
}

/// Looks for the end of a head in a buffer that grows, and at each byte only once.
///
/// One scanner serves a connection for life: having found a head it is ready for the next.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Everything before has been looked at.
    looked: usize,
    /// Where the line begins that `looked` is in.
    line: usize,
    /// Where the request line begins: after the empty lines before it.
    start: usize,
    empty_lines: usize,
}

impl Scanner {
    /// Parses the request at the start of `bytes`, which is what it was at the last call and more.
    ///
    /// # Errors
    ///
    /// As [`parse`]. The scanner is of no use after it.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Parsed, HttpError> {
        let window = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        self.check_first_byte(window)?;
        while let Some(feed) = self.next_line_feed(window) {
            let line_start = std::mem::replace(&mut self.line, feed + 1);
            let line = &window[line_start..feed];
            let line = line.strip_suffix(b"\r").ok_or(HttpError::BareLineFeed)?;
            let first = line_start == self.start;
            match line.first() {
                None if first => {
                    self.start = feed + 1;
                    self.empty_lines += 1;
                    if EMPTY_LINES_MAX < self.empty_lines {
                        return Err(HttpError::EmptyLines { max: EMPTY_LINES_MAX });
                    }
                    self.check_first_byte(window)?;
                }
                None => {
                    let head = Head::parse(&window[self.start..=feed])?;
                    *self = Scanner::default();
                    return Ok(Parsed::Done { head, used: feed + 1 });
                }
                Some(b' ' | b'\t') if !first => return Err(HttpError::Folded),
                Some(_) => {}
            }
        }
        if bytes.len() < HEAD_BYTES_MAX {
            return Ok(Parsed::Partial);
        }
        Err(if self.line == self.start {
            HttpError::TargetTooLong { max: HEAD_BYTES_MAX }
        } else {
            HttpError::HeadTooLarge { max: HEAD_BYTES_MAX }
        })
    }

    /// Refuses at once what will never become a request, such as the hello of TLS, which would
    /// otherwise be waited on until its time is up.
    fn check_first_byte(&self, window: &[u8]) -> Result<(), HttpError> {
        match window.get(self.start) {
            None | Some(b'\r' | b'\n') => Ok(()),
            Some(&byte) if is_token(byte) => Ok(()),
            Some(_) => Err(HttpError::NotHttp),
        }
    }

    fn next_line_feed(&mut self, window: &[u8]) -> Option<usize> {
        let fresh = window.get(self.looked..).unwrap_or_default();
        let feed = memchr::memchr(b'\n', fresh).map(|offset| self.looked + offset);
        self.looked = feed.map_or(window.len(), |feed| feed + 1);
        feed
    }
}

/// Whether `byte` may stand in a method or field name (`tchar` in RFC 9110).
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A request without its body: who, what, and how long the body is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    pub method: Method,
    pub version: Version,
    pub body: BodyLength,
    /// Whether the client would send another request on this connection.
    pub keep_alive: bool,
    /// Whether `Connection` names `upgrade`.
    pub upgrades: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// The target and the kept fields, one after the other.
    text: Box<str>,
    path: Span,
    query: Option<Span>,
    fields: [Option<Span>; Field::COUNT],
}

/// A part of the text of a [`Head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u16,
    end: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    /// A method that no path takes.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Http10,
    Http11,
}

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none.
    None,
    /// So many bytes.
    Known(u64),
    /// Chunks say.
    Chunked,
}

impl Method {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Other => "",
        }
    }

    fn of(text: &str) -> Method {
        let known =
            [Method::Get, Method::Head, Method::Post, Method::Put, Method::Delete, Method::Options];
        known.into_iter().find(|method| method.as_str() == text).unwrap_or(Method::Other)
    }
}

impl Head {
    /// The path as it was sent, still encoded: it begins with `/`, or is the `*` of an OPTIONS.
    #[must_use]
    pub fn path(&self) -> &str {
        self.span(self.path)
    }

    /// What follows the `?`, still encoded.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.map(|span| self.span(span))
    }

    /// The value of a header field. Where a list stood on several lines they are joined.
    #[must_use]
    pub fn field(&self, field: Field) -> Option<&str> {
        self.fields[field.index()].map(|span| self.span(span))
    }

    /// The members of a header field that is a list.
    pub fn members(&self, field: Field) -> impl Iterator<Item = &str> {
        members(self.field(field).unwrap_or_default())
    }

    /// The value of `Event-Name`.
    ///
    /// # Errors
    ///
    /// It is empty, too long, or has a control character.
    pub fn event_name(&self) -> Result<Option<&str>, Refusal> {
        self.short_text(Field::EventName, EVENT_NAME_BYTES_MAX)
    }

    /// The value of `Idempotency-Key`.
    ///
    /// # Errors
    ///
    /// It is empty, too long, or has a control character.
    pub fn idempotency_key(&self) -> Result<Option<&str>, Refusal> {
        self.short_text(Field::IdempotencyKey, KEY_BYTES_MAX)
    }

    fn short_text(&self, field: Field, bytes_max: usize) -> Result<Option<&str>, Refusal> {
        let text = self.field(field);
        if let Some(text) = text {
            check_short_text(field.name(), text, bytes_max)?;
        }
        Ok(text)
    }

    fn span(&self, span: Span) -> &str {
        &self.text[usize::from(span.start)..usize::from(span.end)]
    }

    /// Parses a head that is whole: a request line to an empty line, each ended by CR LF.
    fn parse(bytes: &[u8]) -> Result<Head, HttpError> {
        // On the heap: what a stack has once touched stays with its thread for life.
        let mut headers = vec![httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(HttpError::RequestLine),
            Err(error) => return Err(syntax_error(error)),
        }
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(HttpError::RequestLine);
        };
        if method == "CONNECT" {
            return Err(HttpError::Connect);
        }
        let method = Method::of(method);
        let version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let target = Target::parse(method, target)?;
        let framing = Framing::read(version, request.headers)?;

        let mut text = String::with_capacity(bytes.len());
        let path = push(&mut text, target.path);
        let query = target.query.map(|query| push(&mut text, query));
        let fields = keep_fields(&mut text, request.headers)?;
        let head = Head {
            method,
            version,
            body: framing.body,
            keep_alive: framing.keep_alive,
            upgrades: framing.upgrades,
            expects_continue: framing.expects_continue,
            text: text.into_boxed_str(),
            path,
            query,
            fields,
        };
        head.check_host(target.authority)?;
        Ok(head)
    }

    fn check_host(&self, target: Option<Effective<'_>>) -> Result<(), HttpError> {
        let Some(host) = self.field(Field::Host) else {
            return match self.version {
                Version::Http10 => Ok(()),
                Version::Http11 => Err(HttpError::HostMissing),
            };
        };
        let host = Authority::parse(host).ok_or(HttpError::HostInvalid)?;
        match target {
            Some(target) if !target.equals(host) => Err(HttpError::HostDiffers),
            _ => Ok(()),
        }
    }
}

fn syntax_error(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::HeaderName => HttpError::FieldName,
        httparse::Error::HeaderValue => HttpError::FieldValue,
        httparse::Error::TooManyHeaders => HttpError::FieldsTooMany { max: HEADERS_MAX },
        httparse::Error::Version => HttpError::Version,
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => {
            HttpError::RequestLine
        }
    }
}

/// The members of a list, without the space around them; empty ones do not count (RFC 9110, 5.6.1).
pub(crate) fn members(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(|member| member.trim_matches([' ', '\t'])).filter(|text| !text.is_empty())
}

fn push(text: &mut String, part: &str) -> Span {
    let start = offset(text);
    text.push_str(part);
    Span { start, end: offset(text) }
}

fn offset(text: &str) -> u16 {
    u16::try_from(text.len()).expect("what is kept of a head is no longer than the head")
}

fn keep_fields(
    text: &mut String,
    headers: &[Header<'_>],
) -> Result<[Option<Span>; Field::COUNT], HttpError> {
    let mut kinds = [None; HEADERS_MAX];
    for (kind, header) in kinds.iter_mut().zip(headers) {
        *kind = Field::of(header.name);
    }
    let mut spans = [None; Field::COUNT];
    for (&field, span) in Field::ALL.iter().zip(&mut spans) {
        let lines = kinds.iter().zip(headers).filter(|(kind, _)| **kind == Some(field));
        for (_, header) in lines {
            let name = field.name();
            let value =
                std::str::from_utf8(header.value).map_err(|_| HttpError::FieldNotUtf8 { name })?;
            *span = Some(match (*span, field.repeat()) {
                (None, _) => push(text, value),
                (Some(_), Repeat::Refused) => return Err(HttpError::FieldRepeated { name }),
                (Some(Span { start, .. }), Repeat::Joins) => {
                    text.push(',');
                    Span { start, end: push(text, value).end }
                }
            });
        }
    }
    Ok(spans)
}

/// What a request line asks for.
struct Target<'a> {
    path: &'a str,
    query: Option<&'a str>,
    authority: Option<Effective<'a>>,
}

/// A host and the port that a scheme implies where none is written.
struct Effective<'a> {
    authority: Authority<'a>,
    port_implied: u16,
}

impl<'a> Target<'a> {
    fn parse(method: Method, text: &'a str) -> Result<Target<'a>, HttpError> {
        if text.contains('#') {
            return Err(HttpError::Target { reason: "has a fragment" });
        }
        if text == "*" {
            return match method {
                Method::Options => Ok(Target { path: text, query: None, authority: None }),
                Method::Get
                | Method::Head
                | Method::Post
                | Method::Put
                | Method::Delete
                | Method::Other => {
                    Err(HttpError::Target { reason: "is '*', which is for OPTIONS alone" })
                }
            };
        }
        if text.starts_with('/') {
            return Ok(Target::split(text, None));
        }
        let wrong = HttpError::Target { reason: "is neither a path nor an http URL with a host" };
        let Some((scheme, rest)) = text.split_once("://") else { return Err(wrong) };
        let port_implied = if scheme.eq_ignore_ascii_case("http") {
            80
        } else if scheme.eq_ignore_ascii_case("https") {
            443
        } else {
            return Err(wrong);
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let authority = Authority::parse(authority).ok_or(wrong)?;
        Ok(Target::split(path, Some(Effective { authority, port_implied })))
    }

    fn split(text: &'a str, authority: Option<Effective<'a>>) -> Target<'a> {
        let (path, query) = match text.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (text, None),
        };
        Target { path: if path.is_empty() { "/" } else { path }, query, authority }
    }
}

impl Effective<'_> {
    fn equals(&self, other: Authority<'_>) -> bool {
        let port = |authority: Authority<'_>| authority.port.unwrap_or(self.port_implied);
        self.authority.host == other.host && port(self.authority) == port(other)
    }
}

/// What the header fields say about the message itself.
struct Framing {
    body: BodyLength,
    keep_alive: bool,
    upgrades: bool,
    expects_continue: bool,
}

impl Framing {
    fn read(version: Version, headers: &[Header<'_>]) -> Result<Framing, HttpError> {
        let (mut length, mut chunked) = (None, false);
        let (mut close, mut keep, mut upgrades, mut expects) = (false, false, false, false);
        for Header { name, value } in headers {
            if name.eq_ignore_ascii_case("Content-Length") {
                if length.is_some_and(|earlier| earlier != *value) {
                    return Err(HttpError::LengthsDiffer);
                }
                length = Some(*value);
            } else if name.eq_ignore_ascii_case("Transfer-Encoding") {
                // A second line is a second coding, even if it says the same.
                if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HttpError::EncodingUnknown);
                }
                chunked = true;
            } else if name.eq_ignore_ascii_case("Connection") {
                let value = std::str::from_utf8(value)
                    .map_err(|_| HttpError::FieldNotUtf8 { name: "Connection" })?;
                for option in members(value) {
                    close |= option.eq_ignore_ascii_case("close");
                    keep |= option.eq_ignore_ascii_case("keep-alive");
                    upgrades |= option.eq_ignore_ascii_case("upgrade");
                }
            } else if name.eq_ignore_ascii_case("Expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HttpError::Expectation);
                }
                expects = true;
            }
        }
        let new = version == Version::Http11;
        let body = match (length, chunked) {
            (Some(_), true) => return Err(HttpError::LengthAndEncoding),
            (None, true) if !new => return Err(HttpError::EncodingTooNew),
            (None, true) => BodyLength::Chunked,
            (None, false) => BodyLength::None,
            (Some(digits), false) => match parse_length(digits)? {
                0 => BodyLength::None,
                bytes => BodyLength::Known(bytes),
            },
        };
        let expects_continue = expects && new && body != BodyLength::None;
        Ok(Framing { body, keep_alive: !close && (new || keep), upgrades, expects_continue })
    }
}

fn parse_length(value: &[u8]) -> Result<u64, HttpError> {
    // `u64::from_str` would take a sign.
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::LengthInvalid);
    }
    let text = std::str::from_utf8(value).map_err(|_| HttpError::LengthInvalid)?;
    text.parse().map_err(|_| HttpError::LengthInvalid)
}

#[cfg(test)]
mod tests;
