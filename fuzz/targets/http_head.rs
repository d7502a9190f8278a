//! HTTP requests as a stream: the same at any pace, and nothing is accepted that a strict reading
//! of RFC 9112 refuses.
//!
//! The first byte is how many bytes come at a time, the second the bound of a body; then requests.

#![no_main]

use landline::http::{
    body::BodyReader,
    condition::{Condition, is_known},
    error::HttpError,
    field::Field,
    head::{BodyLength, Head, Method, Parsed, Scanner, Version},
    target::{Query, Route},
    upgrade,
};
use landline::wire::{position::Epoch, state::StatePosition};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let step = 1 + script.below(256);
    let body_max = script.below(256);
    let stream = script.rest();
    let whole = requests(stream, stream.len().max(1), body_max);
    for step in [step, 1] {
        assert_eq!(requests(stream, step, body_max), whole, "{step} bytes at a time");
    }
    let mut at = 0;
    for (head, (from, body_at, to), body) in &whole.taken {
        assert!(at <= *from && from < body_at && body_at <= to);
        at = *to;
        check_head(head, &stream[*from..*body_at]);
        check_body(head.body, &stream[*body_at..*to], body);
        read_all(head);
    }
});

/// What was taken out of a stream, and why no more was.
#[derive(Debug, PartialEq)]
struct Taken {
    /// Each with where its head begins, where its body does, and where the next request does.
    taken: Vec<(Head, (usize, usize, usize), Vec<u8>)>,
    end: Option<HttpError>,
}

/// Reads requests as a connection does, `step` bytes at a time.
fn requests(stream: &[u8], step: usize, body_max: usize) -> Taken {
    let mut done = Taken { taken: Vec::new(), end: None };
    let (mut start, mut end, mut scanner) = (0, 0, Scanner::default());
    loop {
        match scanner.scan(&stream[start..end]) {
            Err(error) => {
                done.end = Some(error);
                return done;
            }
            Ok(Parsed::Partial) if end == stream.len() => return done,
            Ok(Parsed::Partial) => end = stream.len().min(end + step),
            Ok(Parsed::Done { head, used }) => {
                assert!(used <= end - start, "more was taken than there was");
                let body_at = start + used;
                match read_body(head.body, stream, (body_at, &mut end), (step, body_max)) {
                    Ok((body, to, true)) => {
                        done.taken.push((head, (start, body_at, to), body));
                        start = to;
                    }
                    Ok(_) => return done,
                    Err(error) => {
                        done.end = Some(error);
                        return done;
                    }
                }
            }
        }
    }
}

/// A body, where it ends, and whether it is whole.
fn read_body(
    length: BodyLength,
    stream: &[u8],
    (mut at, end): (usize, &mut usize),
    (step, body_max): (usize, usize),
) -> Result<(Vec<u8>, usize, bool), HttpError> {
    let mut reader = BodyReader::new(length, body_max)?;
    let mut body = Vec::new();
    while !reader.is_done() {
        let used = reader.feed(&stream[at..*end], &mut body)?;
        assert!(body.len() <= body_max, "a body of {} bytes, allowed are {body_max}", body.len());
        assert!(reader.is_done() || used == *end - at, "a byte of the body was left");
        at += used;
        if !reader.is_done() && *end == stream.len() {
            return Ok((body, at, false));
        }
        *end = stream.len().min(*end + step);
    }
    Ok((body, at, true))
}

/// A strict reading of the head that was accepted: RFC 9112, sections 2 to 6.
fn check_head(head: &Head, bytes: &[u8]) {
    let shown = String::from_utf8_lossy(bytes).into_owned();
    let mut lines: Vec<&[u8]> = Vec::new();
    let mut rest = bytes;
    while let Some(at) = rest.windows(2).position(|two| two == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    assert!(rest.is_empty(), "{shown}");
    assert!(lines.iter().all(|line| !line.contains(&b'\r') && !line.contains(&b'\n')), "{shown}");
    assert_eq!(lines.pop(), Some(&b""[..]), "the head ends in an empty line: {shown}");
    let begin = lines.iter().position(|line| !line.is_empty()).expect("a request line");
    assert!(begin <= 2, "{shown}");
    check_request_line(head, lines[begin], &shown);
    let fields: Vec<(String, &[u8])> =
        lines[begin + 1..].iter().map(|line| field(line, &shown)).collect();
    assert!(fields.len() <= 64, "{shown}");
    let all = |name: &str| -> Vec<&[u8]> {
        let own = fields.iter().filter(|(found, _)| *found == name.to_ascii_lowercase());
        own.map(|(_, value)| *value).collect()
    };
    let hosts = all("host").len();
    assert!(hosts == 1 || (hosts == 0 && head.version == Version::Http10), "{shown}");
    let (lengths, codings) = (all("content-length"), all("transfer-encoding"));
    assert!(lengths.windows(2).all(|two| two[0] == two[1]), "{shown}");
    let expected = match (lengths.first(), &codings[..]) {
        (None, []) => BodyLength::None,
        (Some(digits), []) => {
            assert!(!digits.is_empty() && digits.iter().all(u8::is_ascii_digit), "{shown}");
            let text = std::str::from_utf8(digits).expect("digits are text");
            match text.parse().expect("a length that was accepted fits") {
                0 => BodyLength::None,
                bytes => BodyLength::Known(bytes),
            }
        }
        (None, [coding]) => {
            assert!(coding.eq_ignore_ascii_case(b"chunked"), "{shown}");
            assert_eq!(head.version, Version::Http11, "{shown}");
            BodyLength::Chunked
        }
        _ => panic!("two ways to tell the length: {shown}"),
    };
    assert_eq!(head.body, expected, "{shown}");
    let connection = all("connection").join(&b","[..]).to_ascii_lowercase();
    let has = |option: &str| {
        let mut options = connection.split(|byte| *byte == b',');
        options.any(|found| found.trim_ascii() == option.as_bytes())
    };
    let keeps = !has("close") && (head.version == Version::Http11 || has("keep-alive"));
    assert_eq!((head.keep_alive, head.upgrades), (keeps, has("upgrade")), "{shown}");
    for known in Field::ALL {
        let values = all(known.name());
        let joined = (!values.is_empty()).then(|| values.join(&b","[..]));
        assert_eq!(head.field(*known).map(str::as_bytes), joined.as_deref(), "{shown}");
    }
}

fn check_request_line(head: &Head, line: &[u8], shown: &str) {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts[..] else { panic!("not three parts: {shown}") };
    assert!(!method.is_empty() && method.iter().copied().all(is_token), "{shown}");
    assert!(head.method == Method::Other || head.method.as_str().as_bytes() == method, "{shown}");
    let expected = if version == b"HTTP/1.1" { Version::Http11 } else { Version::Http10 };
    assert!(version == b"HTTP/1.1" || version == b"HTTP/1.0", "{shown}");
    assert_eq!(head.version, expected);
    // Stricter than the relay would be a reading that refuses UTF-8, which curl sends as it is.
    let is_visible = |byte: &u8| byte.is_ascii_graphic() || !byte.is_ascii();
    assert!(target.iter().all(is_visible), "the target: {shown}");
    assert!(!target.contains(&b'#'), "{shown}");
    let sent = match head.query() {
        Some(query) => format!("{}?{query}", head.path()),
        None => head.path().to_owned(),
    };
    let is_url = !target.starts_with(b"/") && target != b"*";
    assert!(if is_url { ends_so(target, &sent) } else { target == sent.as_bytes() }, "{shown}");
}

/// Whether a URL has this path and query; a path that is left out is `/`.
fn ends_so(target: &[u8], sent: &str) -> bool {
    let bare = sent.strip_prefix('/').unwrap_or(sent);
    target.ends_with(sent.as_bytes()) || bare.is_empty() || target.ends_with(bare.as_bytes())
}

/// Name in lower case and value of a field line.
fn field<'a>(line: &'a [u8], shown: &str) -> (String, &'a [u8]) {
    let colon = line.iter().position(|byte| *byte == b':').expect("a field has a colon");
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    assert!(!name.is_empty() && name.iter().copied().all(is_token), "{shown}");
    let is_control = |byte: &u8| (*byte < b' ' && *byte != b'\t') || *byte == 0x7f;
    assert!(!value.iter().any(is_control), "{shown}");
    let name = String::from_utf8(name.to_ascii_lowercase()).expect("a token is text");
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let start = value.iter().position(|byte| !blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !blank(byte)).map_or(start, |at| at + 1);
    (name, &value[start..end])
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What stands in the stream is this body, and nothing but it.
fn check_body(length: BodyLength, bytes: &[u8], body: &[u8]) {
    match length {
        BodyLength::None => assert!(bytes.is_empty() && body.is_empty()),
        BodyLength::Known(len) => {
            assert_eq!((bytes, bytes.len() as u64), (body, len));
        }
        BodyLength::Chunked => {
            let (mut rest, mut found) = (bytes, Vec::new());
            loop {
                let line = take_line(&mut rest);
                let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let after = line[digits..].trim_ascii_start();
                assert!(after.is_empty() || after[0] == b';', "{line:?}");
                let text = std::str::from_utf8(&line[..digits]).expect("digits are text");
                let size = usize::from_str_radix(text, 16).expect("a size that was accepted");
                if size == 0 {
                    break;
                }
                found.extend_from_slice(&rest[..size]);
                assert_eq!(&rest[size..size + 2], b"\r\n");
                rest = &rest[size + 2..];
            }
            while !take_line(&mut rest).is_empty() {}
            assert_eq!((&found[..], rest.len()), (body, 0));
        }
    }
}

fn take_line<'a>(rest: &mut &'a [u8]) -> &'a [u8] {
    let at = rest.windows(2).position(|two| two == b"\r\n").expect("a line has an end");
    let line = &rest[..at];
    *rest = &rest[at + 2..];
    line
}

/// Everything that is asked of a head later: none of it panics, and a text that is refused is
/// refused with a reason.
fn read_all(head: &Head) {
    let at = StatePosition { epoch: Epoch::from_number(7), version: 4 };
    drop((head.event_name(), head.idempotency_key(), Condition::of(head), is_known(head, &at)));
    drop(upgrade::check(head));
    if let Ok(route) = Route::parse(head.path()) {
        drop(route.admit(head.method));
    }
    if let Ok(query) = Query::parse(head.query()) {
        drop((query.from(), query.limit(), query.number("ttl_ms"), query.value("match")));
    }
}
