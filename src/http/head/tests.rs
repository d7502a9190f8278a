//! What a head may look like, how it is found in a buffer that grows, and what is kept of it.

use super::*;
use crate::wire::codes::Code;

#[track_caller]
fn whole(bytes: &[u8]) -> Result<(Head, usize), HttpError> {
    match parse(bytes)? {
        Parsed::Done { head, used } => Ok((head, used)),
        Parsed::Partial => panic!("not whole: {:?}", String::from_utf8_lossy(bytes)),
    }
}

/// A GET with these lines after `Host`.
#[track_caller]
fn with(lines: &str) -> Result<Head, HttpError> {
    whole(format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes()).map(|(head, _)| head)
}

fn of_size(bytes: usize) -> Vec<u8> {
    let start = "GET / HTTP/1.1\r\nHost: a\r\nX: ";
    let filler = "x".repeat(bytes - start.len() - 4);
    format!("{start}{filler}\r\n\r\n").into_bytes()
}

#[test]
fn a_request_is_reduced_to_what_is_read() {
    let text = b"POST /v1/topics/a/events?x=1?2 HTTP/1.1\r\nhost: relay.local:5263\r\n\
                 User-Agent: curl\r\nAccept:text/html\r\nACCEPT: \t*/* \r\nContent-Length: 12\r\n\
                 Event-Name: T\xc3\xbcr\r\nIdempotency-Key: k-1\r\nIf-Match: \"3\"\r\n\
                 Last-Event-ID:\r\nExpect: 100-Continue\r\n\r\nbody";
    let (head, used) = whole(text).unwrap();
    assert_eq!(&text[used..], b"body");
    assert_eq!((head.method, head.version), (Method::Post, Version::Http11));
    assert_eq!((head.path(), head.query()), ("/v1/topics/a/events", Some("x=1?2")));
    assert_eq!(head.body, BodyLength::Known(12));
    assert!(head.keep_alive && head.expects_continue && !head.upgrades);
    assert_eq!(head.field(Field::Host), Some("relay.local:5263"));
    assert_eq!(head.members(Field::Accept).collect::<Vec<_>>(), ["text/html", "*/*"]);
    assert_eq!(head.event_name(), Ok(Some("Tür")));
    assert_eq!(head.idempotency_key(), Ok(Some("k-1")));
    assert_eq!(head.field(Field::IfMatch), Some("\"3\""));
    assert_eq!(head.field(Field::LastEventId), Some(""));
    assert_eq!(head.field(Field::Origin), None);
    assert!(head.members(Field::Upgrade).next().is_none());
}

#[test]
fn a_head_is_small() {
    assert!(size_of::<Head>() <= 152, "{}", size_of::<Head>());
}

#[test]
fn a_scanner_finds_the_same_head_at_any_pace_and_then_the_next() {
    let text = b"\r\nGET /a HTTP/1.1\r\nHost: a\r\nAccept: b\r\n\r\nPUT /b HTTP/1.0\r\n\r\n";
    let (expected, first) = whole(text).unwrap();
    let (next, second) = whole(&text[first..]).unwrap();
    assert_eq!((next.method, first + second), (Method::Put, text.len()));

    for step in 1..=text.len() {
        let mut scanner = Scanner::default();
        let (mut start, mut end, mut heads) = (0, 0, Vec::new());
        while heads.len() < 2 {
            match scanner.scan(&text[start..end]).unwrap() {
                Parsed::Partial => end = text.len().min(end + step),
                Parsed::Done { head, used } => {
                    start += used;
                    heads.push(head);
                }
            }
        }
        assert_eq!(heads, [expected.clone(), next.clone()], "{step} at a time");
    }
}

#[test]
fn a_scanner_looks_at_each_byte_once() {
    let text = of_size(HEAD_BYTES_MAX);
    let mut scanner = Scanner::default();
    for end in 1..text.len() {
        assert!(matches!(scanner.scan(&text[..end]), Ok(Parsed::Partial)));
        assert_eq!(scanner.looked, end);
    }
    assert!(matches!(scanner.scan(&text), Ok(Parsed::Done { .. })));
}

#[test]
fn the_pace_never_changes_the_verdict() {
    let good = b"\r\nPOST /a?b HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\nAccept: x\r\n\
                 Content-Length: 12\r\nAccept: y\r\n\r\n0";
    for at in 0..good.len() {
        for byte in *b"\0\t\n\r :/#*,a0\x7f\xc3\xff" {
            let mut text = good.to_vec();
            text[at] = byte;
            let mut scanner = Scanner::default();
            let trickled = (0..=text.len()).find_map(|end| match scanner.scan(&text[..end]) {
                Ok(Parsed::Partial) => None,
                Ok(Parsed::Done { head, used }) => Some(Ok((head, used))),
                Err(error) => Some(Err(error)),
            });
            let at_once = match parse(&text) {
                Ok(Parsed::Partial) => None,
                Ok(Parsed::Done { head, used }) => Some(Ok((head, used))),
                Err(error) => Some(Err(error)),
            };
            assert_eq!(trickled, at_once, "byte {at} is {byte:#x}");
        }
    }
}

#[test]
fn the_limits_of_a_head_are_exact() {
    let exact = of_size(HEAD_BYTES_MAX);
    let (_, used) = whole(&[&exact[..], b"more"].concat()).unwrap();
    assert_eq!(used, HEAD_BYTES_MAX);
    let too_large = HttpError::HeadTooLarge { max: HEAD_BYTES_MAX };
    assert_eq!(parse(&of_size(HEAD_BYTES_MAX + 1)).unwrap_err(), too_large);
    // One byte short of the end there is nothing more to hope for.
    let over = of_size(HEAD_BYTES_MAX + 1);
    assert!(matches!(parse(&over[..HEAD_BYTES_MAX - 1]), Ok(Parsed::Partial)));
    assert_eq!(parse(&over[..HEAD_BYTES_MAX]).unwrap_err(), too_large);

    let target = [b"GET /", "x".repeat(HEAD_BYTES_MAX).as_bytes()].concat();
    let too_long = HttpError::TargetTooLong { max: HEAD_BYTES_MAX };
    assert_eq!(parse(&target).unwrap_err(), too_long);

    // `Host` is one of them.
    assert!(with(&"X: y\r\n".repeat(HEADERS_MAX - 1)).is_ok());
    let too_many = HttpError::FieldsTooMany { max: HEADERS_MAX };
    assert_eq!(with(&"X: y\r\n".repeat(HEADERS_MAX)), Err(too_many));
}

#[test]
fn a_head_full_of_what_is_kept_fits() {
    let lines = "Accept: a\r\n".repeat(HEADERS_MAX - 1);
    assert_eq!(with(&lines).unwrap().members(Field::Accept).count(), HEADERS_MAX - 1);
    let start = "GET / HTTP/1.1\r\nHost: a\r\nAccept:";
    let filler = ",".repeat(HEAD_BYTES_MAX - start.len() - 4);
    assert!(whole(format!("{start}{filler}\r\n\r\n").as_bytes()).is_ok());
}

#[test]
fn a_few_empty_lines_may_come_first() {
    for (lines, fits) in [(0, true), (1, true), (2, true), (3, false)] {
        let text = format!("{}GET / HTTP/1.1\r\nHost: a\r\n\r\n", "\r\n".repeat(lines));
        match whole(text.as_bytes()) {
            Ok((_, used)) => assert!(fits && used == text.len(), "{lines}"),
            Err(error) => assert!(!fits && error == HttpError::EmptyLines { max: 2 }, "{lines}"),
        }
    }
    assert!(matches!(parse(b""), Ok(Parsed::Partial)));
    assert!(matches!(parse(b"\r\n\r"), Ok(Parsed::Partial)));
}

#[test]
fn what_is_not_http_is_refused_at_its_first_byte() {
    for bytes in [&b"\x16\x03\x01"[..], b"\0", b" GET", b"\"", b"\xff", b":", b"{"] {
        assert_eq!(parse(bytes).unwrap_err(), HttpError::NotHttp, "{bytes:?}");
    }
    let mut scanner = Scanner::default();
    assert!(matches!(scanner.scan(b"\r\n"), Ok(Parsed::Partial)));
    assert_eq!(scanner.scan(b"\r\n\x16").unwrap_err(), HttpError::NotHttp);
}

#[test]
fn a_request_line_is_three_words() {
    for line in ["GET", "GET /", "GET  / HTTP/1.1", "GET /  HTTP/1.1", "GET / HTTP/1.1 x", "G(T /"]
    {
        let error = whole(format!("{line}\r\nHost: a\r\n\r\n").as_bytes()).unwrap_err();
        assert!(matches!(error, HttpError::RequestLine | HttpError::Version), "{line}: {error:?}");
    }
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "http/1.1", "HTTP/1.1x", "HTTP/01.1"] {
        let error = whole(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes()).unwrap_err();
        assert!(matches!(error, HttpError::RequestLine | HttpError::Version), "{version}");
    }
    assert_eq!(whole(b"PRI * HTTP/2.0\r\n\r\n").unwrap_err(), HttpError::Version);
}

#[test]
fn methods_are_known_by_their_exact_name() {
    for (text, method) in [
        ("GET", Method::Get),
        ("HEAD", Method::Head),
        ("POST", Method::Post),
        ("PUT", Method::Put),
        ("DELETE", Method::Delete),
        ("OPTIONS", Method::Options),
        ("PATCH", Method::Other),
        ("TRACE", Method::Other),
        ("get", Method::Other),
    ] {
        let (head, _) = whole(format!("{text} / HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(head.method, method, "{text}");
    }
    let error = whole(b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n").unwrap_err();
    assert_eq!(error, HttpError::Connect);
}

#[test]
fn a_target_is_a_path_a_star_or_a_url_of_this_host() {
    let target = |method: &str, target: &str, host: &str| {
        let text = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n\r\n");
        whole(text.as_bytes())
            .map(|(head, _)| (head.path().to_owned(), head.query().map(str::to_owned)))
    };
    let path = |path: &str, query: Option<&str>| Ok((path.to_owned(), query.map(str::to_owned)));
    assert_eq!(target("GET", "/a/b?c", "x"), path("/a/b", Some("c")));
    assert_eq!(target("GET", "/a?", "x"), path("/a", Some("")));
    assert_eq!(target("GET", "//evil/a", "x"), path("//evil/a", None));
    assert_eq!(target("GET", "/K\u{fc}che", "x"), path("/K\u{fc}che", None));
    assert_eq!(target("OPTIONS", "*", "x"), path("*", None));
    assert_eq!(target("GET", "http://x:1/a?b", "X:1"), path("/a", Some("b")));
    assert_eq!(target("GET", "HTTP://x", "x:80"), path("/", None));
    assert_eq!(target("GET", "https://x:443?b", "x"), path("/", Some("b")));
    assert_eq!(target("GET", "http://[::1]:5/", "[0::1]:5"), path("/", None));
    for (url, host) in [
        ("http://y/", "x"),
        ("http://x:1/", "x"),
        ("http://x:1/", "x:2"),
        ("https://x/", "x:80"),
        ("http://127.0.0.1/", "localhost"),
    ] {
        assert_eq!(target("GET", url, host), Err(HttpError::HostDiffers), "{url} {host}");
    }
    for text in [
        "*",
        "a",
        "a:80",
        "?a",
        "/a#b",
        "http:///a",
        "http://u@x/",
        "ftp://x/",
        "ws://x/",
        "http:/x",
        "://x/",
        "http://x:y/",
    ] {
        let error = target("GET", text, "x").unwrap_err();
        assert!(matches!(error, HttpError::Target { .. }), "{text}: {error:?}");
    }
}

#[test]
fn a_connection_is_kept_as_the_version_and_the_client_say() {
    let keep = |version: &str, connection: &str| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        whole(text.as_bytes()).unwrap().0.keep_alive
    };
    for (version, connection, kept) in [
        ("1.1", "", true),
        ("1.1", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: Close\r\n", false),
        ("1.1", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: x\r\nConnection: , close ,\r\n", false),
        ("1.1", "Connection: closed\r\n", true),
        ("1.0", "", false),
        ("1.0", "Connection: Keep-Alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
    ] {
        assert_eq!(keep(version, connection), kept, "{version} {connection:?}");
    }
    assert!(with("Connection: keep-alive, Upgrade\r\n").unwrap().upgrades);
    assert!(!with("Connection: upgraded\r\n").unwrap().upgrades);
}

#[test]
fn continue_is_awaited_only_where_there_is_something_to_send() {
    let lines = "Expect: 100-continue\r\n";
    assert!(!with(lines).unwrap().expects_continue);
    assert!(with(&format!("{lines}Content-Length: 1\r\n")).unwrap().expects_continue);
    assert!(with(&format!("{lines}Transfer-Encoding: chunked\r\n")).unwrap().expects_continue);
    let old = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    assert!(!whole(old).unwrap().0.expects_continue);
    assert_eq!(with("Expect: 200-ok\r\n"), Err(HttpError::Expectation));
}

#[test]
fn a_field_that_must_be_unique_is_and_one_that_is_read_is_utf8() {
    for field in Field::ALL.iter().filter(|field| **field != Field::Host) {
        let name = field.name();
        let twice = with(&format!("{name}: a\r\n{name}: b\r\n"));
        match field.repeat() {
            Repeat::Joins => assert_eq!(twice.unwrap().field(*field), Some("a,b")),
            Repeat::Refused => assert_eq!(twice, Err(HttpError::FieldRepeated { name })),
        }
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: \u{1}\r\n\r\n");
        let text: Vec<u8> = text.bytes().map(|byte| if byte == 1 { 0xfc } else { byte }).collect();
        assert_eq!(whole(&text).unwrap_err(), HttpError::FieldNotUtf8 { name });
    }
}

#[test]
fn the_texts_of_an_event_are_checked_when_they_are_asked_for() {
    let head = with(&format!("Event-Name: {}\r\nIdempotency-Key:\r\n", "x".repeat(129))).unwrap();
    let refusal = head.event_name().unwrap_err();
    assert_eq!((refusal.code, refusal.field), (Code::BadRequest, Some("Event-Name")));
    assert_eq!(head.idempotency_key().unwrap_err().field, Some("Idempotency-Key"));
    assert_eq!(with("").unwrap().event_name(), Ok(None));
    assert!(with("Event-Name: \u{85}\r\n").unwrap().event_name().is_err());
}
