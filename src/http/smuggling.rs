//! Two programs that read the same bytes must see the same requests. Whatever a proxy in front of
//! the relay could read differently, the relay does not read at all.

use crate::http::{
    body::BodyReader,
    error::HttpError,
    head::{BodyLength, Head, Parsed, parse},
};

#[track_caller]
fn head(text: &[u8]) -> Result<Head, HttpError> {
    match parse(text)? {
        Parsed::Done { head, .. } => Ok(head),
        Parsed::Partial => panic!("not whole: {:?}", String::from_utf8_lossy(text)),
    }
}

/// A POST with these lines after `Host`.
#[track_caller]
fn post(lines: &str) -> Result<Head, HttpError> {
    head(format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes())
}

#[test]
fn a_body_has_one_length() {
    for (lines, body) in [
        ("", BodyLength::None),
        ("Content-Length: 0\r\n", BodyLength::None),
        ("Content-Length: 5\r\n", BodyLength::Known(5)),
        ("Content-Length:  005 \r\n", BodyLength::Known(5)),
        ("Content-Length: 5\r\ncontent-length: 5\r\n", BodyLength::Known(5)),
        ("Content-Length: 18446744073709551615\r\n", BodyLength::Known(u64::MAX)),
        ("Transfer-Encoding: chunked\r\n", BodyLength::Chunked),
        ("transfer-encoding:CHUNKED\t\r\n", BodyLength::Chunked),
    ] {
        assert_eq!(post(lines).unwrap().body, body, "{lines:?}");
    }
}

#[test]
fn two_ways_to_tell_the_length_are_refused() {
    for lines in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: x\r\n",
    ] {
        assert_eq!(post(lines), Err(HttpError::LengthAndEncoding), "{lines:?}");
    }
}

#[test]
fn lengths_that_differ_are_refused() {
    for lines in [
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 05\r\n",
        "Content-Length: 5\r\nX: y\r\nContent-Length: 0\r\n",
        "Content-Length: 5\r\nContent-Length:\r\n",
    ] {
        assert_eq!(post(lines), Err(HttpError::LengthsDiffer), "{lines:?}");
    }
}

#[test]
fn a_length_is_only_digits() {
    for value in [
        "",
        "+5",
        "-5",
        "5, 5",
        "5,6",
        "5;",
        "5 5",
        "0x5",
        "5.0",
        "1e1",
        "\"5\"",
        "\u{665}",
        "18446744073709551616",
        "99999999999999999999999999",
    ] {
        let lines = format!("Content-Length: {value}\r\n");
        assert_eq!(post(&lines), Err(HttpError::LengthInvalid), "{value:?}");
    }
}

#[test]
fn the_only_transfer_coding_is_chunked_and_that_once() {
    for value in [
        "",
        "gzip",
        "identity",
        "gzip, chunked",
        "chunked, chunked",
        "chunked, identity",
        "chunked;q=1",
        "xchunked",
        "chunkedx",
        "\"chunked\"",
        ", chunked",
        "chunked\r\nTransfer-Encoding: chunked",
        "chunked\r\nTransfer-Encoding: identity",
        "identity\r\nTransfer-Encoding: chunked",
        "chun\u{212a}ed",
    ] {
        let lines = format!("Transfer-Encoding: {value}\r\n");
        assert_eq!(post(&lines), Err(HttpError::EncodingUnknown), "{value:?}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(head(old), Err(HttpError::EncodingTooNew));
}

#[test]
fn a_field_name_cannot_be_disguised() {
    for line in [
        "Transfer-Encoding : chunked",
        "Transfer-Encoding\t: chunked",
        "Transfer-Encoding",
        ": chunked",
        "Transfer\0Encoding: chunked",
        "Transfer\u{b}-Encoding: chunked",
        "\u{b}Transfer-Encoding: chunked",
        "Transfer-Encoding\u{a0}: chunked",
        "Content Length: 5",
    ] {
        let error = post(&format!("{line}\r\n")).unwrap_err();
        assert_eq!(error, HttpError::FieldName, "{line:?}");
    }
}

#[test]
fn a_field_value_cannot_hide_a_line() {
    for line in [
        "X: a\rTransfer-Encoding: chunked",
        "X: a\r\rContent-Length: 5",
        "X: a\0b",
        "Transfer-Encoding: \u{b}chunked",
        "Transfer-Encoding: chunked\u{c}",
        "X: \u{7f}",
        "X:\r",
    ] {
        let error = post(&format!("{line}\r\n")).unwrap_err();
        assert_eq!(error, HttpError::FieldValue, "{line:?}");
    }
}

#[test]
fn a_line_ends_in_cr_lf_and_nothing_else() {
    for text in [
        &b"GET / HTTP/1.1\nHost: a\n\n"[..],
        b"GET / HTTP/1.1\r\nHost: a\nContent-Length: 5\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        assert_eq!(head(text), Err(HttpError::BareLineFeed), "{:?}", String::from_utf8_lossy(text));
    }
    let bare_return = b"GET / HTTP/1.1\rHost: a\r\n\r\n";
    assert!(head(bare_return).is_err());
}

#[test]
fn a_folded_line_is_refused() {
    for lines in [
        "X: a\r\n b\r\n",
        "X: a\r\n\tContent-Length: 5\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "X: a\r\n \r\n",
    ] {
        assert_eq!(post(lines), Err(HttpError::Folded), "{lines:?}");
    }
    // Before the first field it is not even a continuation.
    assert_eq!(head(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n"), Err(HttpError::Folded));
}

#[test]
fn there_is_one_host_and_it_is_one() {
    assert_eq!(head(b"GET / HTTP/1.1\r\n\r\n"), Err(HttpError::HostMissing));
    assert!(head(b"GET / HTTP/1.0\r\n\r\n").is_ok());
    let repeated = Err(HttpError::FieldRepeated { name: "Host" });
    assert_eq!(post("Host: a\r\n"), repeated);
    assert_eq!(head(b"GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n"), repeated);
    for host in ["", "a, b", "a b", "a/b", "a@b", "a:x", "a#b", "http://a", "a\\b"] {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(head(text.as_bytes()), Err(HttpError::HostInvalid), "{host:?}");
    }
}

#[test]
fn every_refused_head_closes_the_connection() {
    for text in [
        &b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nExpect: more\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nOrigin: b\r\nOrigin: c\r\n\r\n",
        b"\x16",
    ] {
        assert!(parse(text).unwrap_err().closes(), "{:?}", String::from_utf8_lossy(text));
    }
}

/// A front that believes `Content-Length` and a back that believes the chunks would split this
/// stream in different places. Here the second request is found exactly where the first one ends.
#[test]
fn requests_in_a_row_are_split_where_their_bodies_end() {
    let inner = "GET /inner HTTP/1.1\r\nHost: a\r\n\r\n";
    let stream = format!(
        "POST /1 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         {size:x}\r\n{inner}\r\n0\r\nX: {trailer}\r\n\r\n\
         POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n{inner}\r\n\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
        size = inner.len(),
        trailer = inner.lines().next().unwrap_or_default(),
    );
    let (mut rest, mut seen) = (stream.as_bytes(), Vec::new());
    while !rest.is_empty() {
        let Parsed::Done { head, used } = parse(rest).unwrap() else { panic!("not whole") };
        rest = &rest[used..];
        let mut body = Vec::new();
        let mut reader = BodyReader::new(head.body, 100).unwrap();
        rest = &rest[reader.feed(rest, &mut body).unwrap()..];
        assert!(reader.is_done());
        assert!(body.is_empty() || body == inner.as_bytes());
        seen.push((head.path().to_owned(), body.len()));
    }
    assert_eq!(
        seen,
        [("/1".to_owned(), inner.len()), ("/2".to_owned(), inner.len()), ("/3".to_owned(), 0)]
    );
}
