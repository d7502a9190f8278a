//! The small parsers: a text is read as the rules say, and what is written is read as the same.
//!
//! The first byte says which one; the rest is the text.

#![no_main]

use landline::{
    config,
    http::{
        authority::{Authority, Host},
        condition::{Condition, etag, http_date, is_known},
        head::{Head, Parsed, parse},
        origin,
        target::{Query, Route, parse_position},
    },
    wire::{
        frame, json,
        position::{Epoch, From, Position},
        state::StatePosition,
    },
};
use landline_fuzz::Script;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let kind = script.below(8);
    let bytes = script.rest();
    let Ok(text) = std::str::from_utf8(bytes) else { return frames(bytes) };
    match kind {
        0 => positions(text),
        1 => conditions(text),
        2 => queries(text),
        3 => routes(text),
        4 => authorities(text),
        5 => configuration(text),
        6 => dates(bytes),
        _ => strings(text),
    }
});

fn is_number(text: &str) -> Option<u64> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| text.parse().ok()).flatten()
}

fn is_epoch(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn positions(text: &str) {
    assert_eq!(text.parse::<Epoch>().is_ok(), is_epoch(text), "an epoch: {text:?}");
    let expected = text
        .split_once(':')
        .is_some_and(|(epoch, seq)| is_epoch(epoch) && is_number(seq).is_some());
    match parse_position("from", text) {
        Ok(Position { epoch, seq }) => {
            assert!(expected, "accepted: {text:?}");
            assert_eq!(epoch.to_string(), text[..16]);
            assert_eq!(Some(seq), is_number(&text[17..]));
        }
        Err(refusal) => {
            assert!(!expected, "refused: {text:?}, {refusal:?}");
            assert_eq!(refusal.field, Some("from"));
        }
    }
}

/// The head of a request with this value in `If-Match`, in `If-None-Match`, or in both.
fn head_with(text: &str, fields: &[&str]) -> Option<Head> {
    let lines: String = fields.iter().map(|field| format!("{field}: {text}\r\n")).collect();
    match parse(format!("PUT / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").as_bytes()) {
        Ok(Parsed::Done { head, .. }) => Some(head),
        Ok(Parsed::Partial) | Err(_) => None,
    }
}

/// Epoch and version of the tag that `text` is.
fn tag(text: &str) -> Option<(Option<String>, u64)> {
    let inner = text.strip_prefix("W/").unwrap_or(text).strip_prefix('"')?.strip_suffix('"')?;
    match inner.split_once(':') {
        None => Some((None, is_number(inner)?)),
        Some((epoch, version)) if is_epoch(epoch) => {
            Some((Some(epoch.to_owned()), is_number(version)?))
        }
        Some(_) => None,
    }
}

fn conditions(text: &str) {
    if text.contains(['\r', '\n', ',']) {
        return;
    }
    let text = text.trim_matches([' ', '\t']);
    if let Some(head) = head_with(text, &["If-Match"]) {
        let expected = match (text, tag(text)) {
            ("*", _) => Some(Condition::Present),
            (_, Some((epoch, version))) => {
                let epoch = epoch.map(|epoch| u64::from_str_radix(&epoch, 16).expect("checked"));
                Some(Condition::Version { epoch, version })
            }
            _ => None,
        };
        assert_eq!(Condition::of(&head).ok(), expected, "If-Match: {text:?}");
        if let Some(Condition::Version { epoch: Some(epoch), version }) = expected {
            let at = StatePosition { epoch: Epoch::from_number(epoch), version };
            let again = head_with(&etag(&at), &["If-None-Match"]).expect("a tag can be sent");
            assert!(is_known(&again, &at), "{at:?} does not know its own tag");
        }
    }
    if let Some(head) = head_with(text, &["If-None-Match"]) {
        assert_eq!(Condition::of(&head).is_ok(), text == "*", "If-None-Match: {text:?}");
    }
    if let Some(head) = head_with(text, &["If-Match", "If-None-Match"]) {
        assert!(Condition::of(&head).is_err(), "both are there: {text:?}");
    }
}

fn queries(text: &str) {
    let Ok(query) = Query::parse(Some(text)) else {
        assert!(text.contains('%'), "what is not encoded decodes to itself: {text:?}");
        return;
    };
    if text.contains(['%', '+']) {
        drop((query.from(), query.limit(), query.number("ttl_ms")));
        return;
    }
    let values = |key: &str| -> Vec<&str> {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(|(found, _)| *found == key).map(|(_, value)| value).collect()
    };
    match (values("from")[..].first().copied(), values("from").len()) {
        (None, _) => assert_eq!(query.from(), Ok(None)),
        (Some(from), 1) => {
            let expected = match (from, from.split_once(':')) {
                ("live", _) => Some(From::Live),
                ("start", _) => Some(From::Start),
                (_, Some(("last", count))) => is_number(count).map(From::Last),
                (_, Some(("since", time))) => is_number(time).map(From::Since),
                _ => parse_position("from", from).ok().map(From::After),
            };
            assert_eq!(query.from().ok().flatten(), expected, "{from:?}");
        }
        _ => assert!(query.from().is_err(), "there twice: {text:?}"),
    }
    if let [limit] = values("limit")[..] {
        let expected = is_number(limit).filter(|limit| (1..=1_000).contains(limit));
        assert_eq!(query.limit().ok(), expected, "{limit:?}");
    }
}

fn routes(text: &str) {
    let path = format!("/v1/topics/{text}/events");
    if !text.contains('%') {
        let expected = Route::Events { topic: text.to_owned() };
        assert_eq!(Route::parse(&path), Ok(expected), "{path}");
    }
    // However its bytes are written, the topic is the same.
    let encoded: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for encoded in [encoded.to_ascii_lowercase(), encoded] {
        let route = Route::parse(&format!("/v1/state/{encoded}"));
        assert_eq!(route, Ok(Route::Value { key: text.to_owned() }), "{encoded}");
    }
    drop(Route::parse(text).map(|route| route.methods()));
}

fn authorities(text: &str) {
    let Some(authority) = Authority::parse(text) else { return };
    let host = match authority.host {
        Host::Ip(address) => match address {
            std::net::IpAddr::V4(address) => address.to_string(),
            std::net::IpAddr::V6(address) => format!("[{address}]"),
        },
        Host::Name(name) => {
            assert!(name.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
            name.to_owned()
        }
    };
    let port = authority.port.map_or(String::new(), |port| format!(":{port}"));
    assert_eq!(Authority::parse(&format!("{host}{port}")), Some(authority), "{text:?}");
    // A page of the host itself may talk to it; one of another host may not, unless both are here.
    let settings =
        config::OriginSettings { allowed_hosts: vec![host.clone()], allowed_origins: Vec::new() };
    let own = origin::check(Some(text), Some(&format!("http://{host}{port}")), &settings);
    assert_eq!(own, Ok(origin::Caller::SameOrigin), "{text:?}");
    let other = origin::check(Some(text), Some("http://example.com:81"), &settings);
    let is_it = authority == Authority::parse("example.com:81").expect("a host");
    let is_portless = authority.port.is_none() && host.eq_ignore_ascii_case("example.com");
    assert!(other.is_err() || is_it || is_portless, "{text:?} trusts another host: {other:?}");
}

/// What a configuration says of itself is a configuration, and the same one.
fn configuration(text: &str) {
    match config::resolve(Some(text), "x.toml", &[], &[]) {
        Ok(loaded) => {
            let lines = loaded.effective.iter().filter(|line| !line.value.is_empty());
            let again: String =
                lines.map(|line| format!("{} = {}\n", line.key, line.value)).collect();
            if let Ok(second) = config::resolve(Some(&again), "x.toml", &[], &[]) {
                let (mut first, mut second) = (loaded.config, second.config);
                first.topics.rules.clear();
                second.topics.rules.clear();
                assert!(config::changed(&first, &second).is_empty(), "{again}");
            }
        }
        Err(error) => assert!(error.problems.iter().all(|problem| problem.contains("x.toml"))),
    }
}

/// The date of a day, counted on from 1970 year by year and month by month.
fn dates(bytes: &[u8]) {
    let mut number = [0; 8];
    number[..bytes.len().min(4)].copy_from_slice(&bytes[..bytes.len().min(4)]);
    let seconds = u64::from_le_bytes(number);
    let (mut days, mut year) = (seconds / 86_400, 1970);
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(days % 7) as usize];
    let is_leap = |year: u64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    while 365 + u64::from(is_leap(year)) <= days {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let lengths = [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let names =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut month = 0;
    while lengths[month] <= days {
        days -= lengths[month];
        month += 1;
    }
    let expected = format!(
        "{weekday}, {:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        days + 1,
        names[month],
        seconds / 3_600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    assert_eq!(http_date(seconds * 1_000), expected);
}

fn strings(text: &str) {
    let mut out = Vec::new();
    json::push_string(&mut out, text);
    assert_eq!(serde_json::from_slice::<String>(&out).ok().as_deref(), Some(text));
    assert!(json::is_shallow(std::str::from_utf8(&out).expect("JSON is text")));
    frames(text.as_bytes());
}

/// What is framed is found again, wherever it stands.
fn frames(bytes: &[u8]) {
    let mut out = Vec::new();
    for payload in [bytes, b"", bytes] {
        frame::push_text(&mut out, payload);
    }
    let found: Vec<&[u8]> = frame::payloads(&out).collect();
    assert_eq!(found, [bytes, b"", bytes]);
    let last = &out[out.len() - frame::length(&out)..];
    assert_eq!(frame::tail_bytes(&out, 2), last.len() as u64);
}
