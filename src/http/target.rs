//! What a request is about: the path as a route, the query as values.

use std::borrow::Cow;

use crate::{
    base::limits::HISTORY_EVENTS_MAX,
    http::{error::HttpError, head::Method, shown},
    wire::{
        codes::Code,
        position::{self, Epoch, Position},
        request::{HISTORY_DEFAULT, Refusal},
    },
};

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/`
    Index,
    /// `/dashboard.css`
    Style,
    /// `/dashboard.js`
    Script,
    /// `/landline.js`
    Module,
    /// `/v1/topics`
    Topics,
    /// `/v1/consumers`
    Consumers,
    /// `/v1/connections`
    Connections,
    /// `/v1/connections/{id}`. The name is decoded, and not yet checked.
    Connection {
        name: String,
    },
    /// `/v1/topics/{topic}/events`. The topic is decoded, and not yet checked.
    Events {
        topic: String,
    },
    /// `/v1/state`
    Values,
    /// `/v1/state/{key}`. The key is decoded, and not yet checked.
    Value {
        key: String,
    },
    /// `/healthz`
    Healthz,
    /// `/readyz`
    Readyz,
    /// `/metrics`
    Metrics,
    /// `/ws`
    WebSocket,
    Unknown,
}

impl Route {
    /// Parses a path that is still encoded.
    ///
    /// Each segment is decoded by itself, so a `/` in a topic may be written `/` or `%2F`, and
    /// neither can be taken for the end of the topic:
    ///
    /// ```text
    ///   /v1/topics/home/lamp/events          the topic home/lamp
    ///   /v1/topics/home%2Flamp/events        the same
    ///   /v1/topics/home/events/events        the topic home/events
    ///   /v1/topics/home%2Fevents             nothing
    /// ```
    ///
    /// # Errors
    ///
    /// A segment cannot be decoded.
    pub fn parse(path: &str) -> Result<Route, Refusal> {
        // `OPTIONS *` asks about the server as a whole; the answer for its root will do.
        let Some(path) = path.strip_prefix('/') else {
            return Ok(if path == "*" { Route::Index } else { Route::Unknown });
        };
        let mut segments = Vec::new();
        for segment in path.split('/') {
            segments.push(decode("path", segment, Plus::Itself)?);
        }
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        Ok(match &segments[..] {
            [""] => Route::Index,
            ["dashboard.css"] => Route::Style,
            ["dashboard.js"] => Route::Script,
            ["landline.js"] => Route::Module,
            ["ws"] => Route::WebSocket,
            ["healthz"] => Route::Healthz,
            ["readyz"] => Route::Readyz,
            ["metrics"] => Route::Metrics,
            ["v1", "topics"] => Route::Topics,
            ["v1", "consumers"] => Route::Consumers,
            ["v1", "connections"] => Route::Connections,
            ["v1", "connections", name] => Route::Connection { name: (*name).to_owned() },
            ["v1", "state"] => Route::Values,
            ["v1", "state", key @ ..] => Route::Value { key: key.join("/") },
            ["v1", "topics", topic @ .., "events"] if !topic.is_empty() => {
                Route::Events { topic: topic.join("/") }
            }
            _ => Route::Unknown,
        })
    }

    /// The methods it takes.
    #[must_use]
    pub const fn methods(&self) -> &'static [Method] {
        match self {
            Route::Index
            | Route::Style
            | Route::Script
            | Route::Module
            | Route::Topics
            | Route::Consumers
            | Route::Connections
            | Route::Values
            | Route::Healthz
            | Route::Readyz
            | Route::Metrics => &[Method::Get, Method::Head, Method::Options],
            Route::Events { .. } => &[Method::Get, Method::Head, Method::Post, Method::Options],
            Route::Value { .. } => {
                &[Method::Get, Method::Head, Method::Put, Method::Delete, Method::Options]
            }
            Route::Connection { .. } => &[Method::Delete, Method::Options],
            Route::WebSocket => &[Method::Get],
            Route::Unknown => &[],
        }
    }

    /// Checks that it is there and takes `method`.
    ///
    /// # Errors
    ///
    /// `not_found`, or [`HttpError::Method`].
    pub fn admit(&self, method: Method) -> Result<(), HttpError> {
        if *self == Route::Unknown {
            let message = "there is nothing under this path";
            return Err(Refusal::new(Code::NotFound, message).into());
        }
        let allowed = self.methods();
        if allowed.contains(&method) { Ok(()) } else { Err(HttpError::Method { allowed }) }
    }
}

/// The decoded pairs of a query, in the order they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows the `?`.
    ///
    /// # Errors
    ///
    /// A key or a value cannot be decoded.
    pub fn parse(text: Option<&str>) -> Result<Query, Refusal> {
        let mut pairs = Vec::new();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text| decode("query", text, Plus::Space).map(Cow::into_owned);
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Query(pairs))
    }

    /// The value of `key`.
    ///
    /// # Errors
    ///
    /// It is there more than once.
    pub fn value(&self, key: &'static str) -> Result<Option<&str>, Refusal> {
        let mut values = self.0.iter().filter(|(found, _)| found == key).map(|(_, value)| value);
        let value = values.next();
        match values.next() {
            Some(_) => Err(Refusal::field(key, format!("{key} is there more than once"))),
            None => Ok(value.map(String::as_str)),
        }
    }

    /// The number that `key` has.
    ///
    /// # Errors
    ///
    /// It is not an unsigned integer, or is there more than once.
    pub fn number(&self, key: &'static str) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.value(key)? else { return Ok(None) };
        let wrong = || format!("{key} is {}, which is not an unsigned integer", shown(text));
        number(text).map(Some).ok_or_else(|| Refusal::field(key, wrong()))
    }

    /// Where a history starts, if the query says so.
    ///
    /// # Errors
    ///
    /// `from` is not one of its forms, or is there more than once.
    pub fn from(&self) -> Result<Option<position::From>, Refusal> {
        self.value("from")?.map(parse_from).transpose()
    }

    /// How many events a history has at most.
    ///
    /// # Errors
    ///
    /// `limit` is not a number that is allowed, or is there more than once.
    pub fn limit(&self) -> Result<u64, Refusal> {
        self.limit_or(HISTORY_DEFAULT)
    }

    /// As [`Query::limit`], with a `default` of its own.
    ///
    /// # Errors
    ///
    /// As [`Query::limit`].
    pub fn limit_or(&self, default: u64) -> Result<u64, Refusal> {
        let Some(text) = self.value("limit")? else { return Ok(default) };
        number(text).filter(|limit| (1..=HISTORY_EVENTS_MAX).contains(limit)).ok_or_else(|| {
            let found = shown(text);
            Refusal::field(
                "limit",
                format!("limit is {found}; allowed is 1 to {HISTORY_EVENTS_MAX}"),
            )
        })
    }
}

const FROM_FORMS: &str = "from is live, start, last:N, since:UNIX_MS or EPOCH:SEQ";

fn parse_from(text: &str) -> Result<position::From, Refusal> {
    let wrong = || Refusal::field("from", format!("from is {}; {FROM_FORMS}", shown(text)));
    match (text, text.split_once(':')) {
        ("live", _) => Ok(position::From::Live),
        ("start", _) => Ok(position::From::Start),
        (_, Some(("last", count))) => number(count).map(position::From::Last).ok_or_else(wrong),
        (_, Some(("since", time))) => number(time).map(position::From::Since).ok_or_else(wrong),
        _ => parse_position("from", text).map(position::From::After).map_err(|refusal| Refusal {
            message: format!("{}; {FROM_FORMS}", refusal.message),
            ..refusal
        }),
    }
}

/// Parses a position in the form `EPOCH:SEQ`, which is also the id of a server-sent event.
///
/// # Errors
///
/// It has another form. A sequence alone is one: it means nothing without its epoch.
pub fn parse_position(field: &'static str, text: &str) -> Result<Position, Refusal> {
    let refuse = |rule: &str| {
        Err(Refusal::field(field, format!("{field} is {}, which {rule}", shown(text))))
    };
    let Some((epoch, seq)) = text.split_once(':') else {
        return refuse(if number(text).is_some() {
            "has no epoch; a sequence means nothing without it"
        } else {
            "is not EPOCH:SEQ"
        });
    };
    if epoch.is_empty() {
        return refuse("has no epoch; a sequence means nothing without it");
    }
    let Ok(epoch) = epoch.parse::<Epoch>() else {
        return refuse("does not begin with an epoch: 16 lower-case hexadecimal digits");
    };
    match number(seq) {
        Some(seq) => Ok(Position { epoch, seq }),
        None => refuse("does not end in a sequence: an unsigned integer"),
    }
}

/// An unsigned integer in decimal digits and nothing else; `u64::from_str` would take a `+`.
pub(super) fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// What a `+` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plus {
    Itself,
    Space,
}

/// Decodes `%41` and, where asked to, `+`. `field` is what a refusal names.
fn decode<'a>(field: &'static str, text: &'a str, plus: Plus) -> Result<Cow<'a, str>, Refusal> {
    if !text.bytes().any(|byte| byte == b'%' || (byte == b'+' && plus == Plus::Space)) {
        return Ok(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'%' => {
                let byte = match tail {
                    [high, low, ..] => hex(*high, *low),
                    _ => None,
                };
                decoded.push(byte.ok_or_else(|| {
                    let message = format!(
                        "{field} has a '%' that two hexadecimal digits do not follow, in {}; a \
                         '%' itself is written %25",
                        shown(text)
                    );
                    Refusal::field(field, message)
                })?);
                rest = &tail[2..];
            }
            b'+' if plus == Plus::Space => decoded.push(b' '),
            byte => decoded.push(*byte),
        }
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| {
        Refusal::field(
            field,
            format!("{field} has {}, which does not decode to UTF-8", shown(text)),
        )
    })
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(high)? << 4 | digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(topic: &str) -> Route {
        Route::Events { topic: topic.to_owned() }
    }

    fn value(key: &str) -> Route {
        Route::Value { key: key.to_owned() }
    }

    fn query(text: &str) -> Query {
        Query::parse(Some(text)).unwrap()
    }

    #[test]
    fn every_route_is_found_and_nothing_else() {
        for (path, route) in [
            ("/", Route::Index),
            ("*", Route::Index),
            ("/dashboard.css", Route::Style),
            ("/dashboard.js", Route::Script),
            ("/landline.js", Route::Module),
            ("/dashboard", Route::Unknown),
            ("/landline.js/", Route::Unknown),
            ("/ws", Route::WebSocket),
            ("/healthz", Route::Healthz),
            ("/readyz", Route::Readyz),
            ("/metrics", Route::Metrics),
            ("/v1/topics", Route::Topics),
            ("/v1/consumers", Route::Consumers),
            ("/v1/connections", Route::Connections),
            ("/v1/connections/c17", Route::Connection { name: "c17".to_owned() }),
            ("/v1/connections/c1/x", Route::Unknown),
            ("/%76%31/topics", Route::Topics),
            ("/v1/topics/a/events", events("a")),
            ("/v1/topics/home/lamp/events", events("home/lamp")),
            ("/v1/topics/home%2Flamp/events", events("home/lamp")),
            ("/v1/topics/home%2flamp/events", events("home/lamp")),
            ("/v1/topics/home/events/events", events("home/events")),
            ("/v1/topics/home%2Fevents/events", events("home/events")),
            ("/v1/topics/events/events", events("events")),
            ("/v1/topics/K%C3%BCche+1%20x/events", events("Küche+1 x")),
            ("/v1/topics/Küche/events", events("Küche")),
            ("/v1/topics/%24sys/100%25/events", events("$sys/100%")),
            ("/v1/topics/a%00b/events", events("a\0b")),
            ("/v1/state", Route::Values),
            ("/v1/state/a", value("a")),
            ("/v1/state/home/lamp", value("home/lamp")),
            ("/v1/state/home%2Flamp", value("home/lamp")),
            ("/v1/state/%24presence/hall/anna", value("$presence/hall/anna")),
            ("/v1/state/a+b%20c", value("a+b c")),
            // What is wrong with these names, the rules for names say.
            ("/v1/topics//events", events("")),
            ("/v1/state/", value("")),
            ("/v1/state/a/", value("a/")),
            ("/v1/topics/a//b/events", events("a//b")),
            ("/v1/topics/home%2Fevents", Route::Unknown),
            ("/v1/topics/events", Route::Unknown),
            ("/v1/topics/", Route::Unknown),
            ("/v1/topics/a", Route::Unknown),
            ("/v1/topics/a/events/", Route::Unknown),
            ("/v1", Route::Unknown),
            ("/V1/topics", Route::Unknown),
            ("//", Route::Unknown),
            ("/ws/", Route::Unknown),
            ("//ws", Route::Unknown),
            ("/healthz/", Route::Unknown),
            ("", Route::Unknown),
            ("ws", Route::Unknown),
        ] {
            assert_eq!(Route::parse(path), Ok(route), "{path}");
        }
    }

    #[test]
    fn a_path_that_cannot_be_decoded_is_refused_with_the_segment() {
        for (path, segment) in [
            ("/v1/topics/a%/events", "a%"),
            ("/v1/topics/a%4/events", "a%4"),
            ("/v1/topics/%zz/events", "%zz"),
            ("/v1/topics/%+1/events", "%+1"),
            ("/v1/topics/%\u{fc}/events", "%\u{fc}"),
            ("/v1/topics/%FF/events", "%FF"),
            ("/v1/topics/%C3/%BC/events", "%C3"),
            ("/v1/topics/%ED%A0%80/events", "%ED%A0%80"),
        ] {
            let refusal = Route::parse(path).unwrap_err();
            assert_eq!((refusal.code, refusal.field), (Code::BadRequest, Some("path")), "{path}");
            assert!(refusal.message.contains(&format!("{segment:?}")), "{refusal:?}");
        }
    }

    #[test]
    fn a_route_admits_its_methods_and_says_which_they_are() {
        let error = events("a").admit(Method::Delete).unwrap_err();
        assert_eq!(error, HttpError::Method { allowed: events("a").methods() });
        assert!(events("a").admit(Method::Post).is_ok());
        assert!(Route::Topics.admit(Method::Post).is_err());
        assert!(value("a").admit(Method::Put).is_ok() && value("a").admit(Method::Delete).is_ok());
        assert!(
            value("a").admit(Method::Post).is_err() && Route::Values.admit(Method::Put).is_err()
        );
        assert!(Route::WebSocket.admit(Method::Head).is_err());
        assert_eq!(Route::Unknown.admit(Method::Get).unwrap_err().status(), 404);
    }

    #[test]
    fn a_query_is_split_before_it_is_decoded() {
        let query = query("a=1+2&b=%26%3d%2B&&c&d=x=y&a%20b=");
        assert_eq!(query.value("a"), Ok(Some("1 2")));
        assert_eq!(query.value("b"), Ok(Some("&=+")));
        assert_eq!(query.value("c"), Ok(Some("")));
        assert_eq!(query.value("d"), Ok(Some("x=y")));
        assert_eq!(query.value("a b"), Ok(Some("")));
        assert_eq!(query.value("e"), Ok(None));
        assert_eq!(Query::parse(None), Ok(Query::default()));
        assert_eq!(Query::parse(Some("a=%")).unwrap_err().field, Some("query"));
        assert_eq!(Query::parse(Some("%ff=1")).unwrap_err().field, Some("query"));
    }

    #[test]
    fn every_form_of_from_is_understood() {
        let from = |text: &str| query(&format!("from={text}")).from();
        let epoch = Epoch::from_number(7);
        assert_eq!(Query::default().from(), Ok(None));
        assert_eq!(from("live"), Ok(Some(position::From::Live)));
        assert_eq!(from("start"), Ok(Some(position::From::Start)));
        assert_eq!(from("last:3"), Ok(Some(position::From::Last(3))));
        assert_eq!(from("last%3A3"), Ok(Some(position::From::Last(3))));
        assert_eq!(from("since:1700000000000"), Ok(Some(position::From::Since(1_700_000_000_000))));
        let after = position::From::After(Position { epoch, seq: 4 });
        assert_eq!(from("0000000000000007:4"), Ok(Some(after)));
    }

    #[test]
    fn a_wrong_from_is_refused_with_the_value_and_the_forms() {
        for text in [
            "",
            "LIVE",
            "yesterday",
            "last",
            "last:",
            "last:-1",
            "last:%2B1",
            "last:+1",
            "last:x",
            "since:1.5",
            "since:99999999999999999999",
            "0000000000000007:",
            "0000000000000007:x",
            "0000000000000007",
            "7:4",
            "000000000000000G:4",
        ] {
            let refusal = query(&format!("from={text}")).from().unwrap_err();
            assert_eq!((refusal.code, refusal.field), (Code::BadRequest, Some("from")), "{text}");
            assert!(refusal.message.contains(FROM_FORMS), "{refusal:?}");
        }
        assert_eq!(query("from=live&from=start").from().unwrap_err().field, Some("from"));
    }

    #[test]
    fn a_missing_epoch_is_an_error_and_not_a_wildcard() {
        for text in ["4", ":4"] {
            let refusal = query(&format!("from={text}")).from().unwrap_err();
            assert!(refusal.message.contains("without it"), "{refusal:?}");
        }
        let refusal = parse_position("Last-Event-ID", "4").unwrap_err();
        assert_eq!(refusal.field, Some("Last-Event-ID"));
    }

    #[test]
    fn a_limit_is_within_its_range() {
        let limit = |text: &str| query(&format!("limit={text}")).limit();
        assert_eq!(Query::default().limit(), Ok(HISTORY_DEFAULT));
        assert_eq!(limit("1"), Ok(1));
        assert_eq!(limit("1000"), Ok(1_000));
        for text in ["", "0", "1001", "-1", "%2B5", "5.0", "x", "99999999999999999999"] {
            let refusal = limit(text).unwrap_err();
            assert_eq!(refusal.field, Some("limit"), "{text}");
            assert!(refusal.message.contains("1 to 1000"), "{refusal:?}");
        }
    }
}
