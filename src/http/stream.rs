//! Requests for a stream: which one, framed how, and from where.

use crate::{
    http::{
        error::HttpError,
        field::Field,
        head::{Head, Method},
        target::{Query, Route, parse_position},
    },
    name::{Filter, Pattern},
    wire::{marks::Marks, position::From, request::Refusal, state::StatePosition, stream::Dialect},
};

/// A stream that a client asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRequest {
    pub dialect: Dialect,
    pub of: StreamOf,
}

/// What it is a stream of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamOf {
    Events {
        filter: Filter,
        from: From,
    },
    /// The events of many topics, from where another stream of them had come to.
    Rest {
        pattern: Pattern,
        marks: Marks,
    },
    Values {
        filter: Filter,
        from: Option<StatePosition>,
    },
}

/// The stream that `head` asks for, if it asks for one: by what it accepts.
///
/// # Errors
///
/// The name or pattern, or the position to begin at, breaks a rule.
pub fn asked(head: &Head) -> Result<Option<StreamRequest>, HttpError> {
    let Some(dialect) = dialect(head) else { return Ok(None) };
    let route = Route::parse(head.path())?;
    let of = if let Route::Events { topic } = route {
        events(head, parse_filter("topic", &topic)?)?
    } else if route == Route::Values {
        values(head)?
    } else {
        return Ok(None);
    };
    Ok(Some(StreamRequest { dialect, of }))
}

/// How the stream is to be framed, if `head` asks for one: what it accepts first, of what there is.
fn dialect(head: &Head) -> Option<Dialect> {
    if !matches!(head.method, Method::Get | Method::Head) {
        return None;
    }
    head.members(Field::Accept).find_map(|member| {
        let (media_type, _) = member.split_once(';').unwrap_or((member, ""));
        match media_type.trim().to_ascii_lowercase().as_str() {
            "text/event-stream" => Some(Some(Dialect::Sse)),
            "application/x-ndjson" => Some(Some(Dialect::Ndjson)),
            "application/json" => Some(None),
            _ => None,
        }
    })?
}

fn parse_filter(field: &'static str, text: &str) -> Result<Filter, Refusal> {
    Filter::parse(text).map_err(|error| Refusal::field(field, format!("{field} {error}")))
}

/// Where `head` says that the client has come to, and which field says so. The header field is what
/// a browser sets when it comes back to a URL that still says where it once began.
fn resume<'a>(
    head: &'a Head,
    query: &'a Query,
) -> Result<Option<(&'static str, &'a str)>, Refusal> {
    let header = head.field(Field::LastEventId).filter(|id| !id.is_empty());
    if let Some(id) = header {
        return Ok(Some((Field::LastEventId.name(), id)));
    }
    let id = query.value("last_event_id")?.filter(|id| !id.is_empty());
    Ok(id.map(|id| ("last_event_id", id)))
}

fn values(head: &Head) -> Result<StreamOf, Refusal> {
    let query = Query::parse(head.query())?;
    let filter = parse_filter("match", query.value("match")?.unwrap_or("#"))?;
    let from =
        resume(head, &query)?.map(|(field, text)| parse_position(field, text)).transpose()?;
    let from = from.map(|at| StatePosition { epoch: at.epoch, version: at.seq });
    Ok(StreamOf::Values { filter, from })
}

fn events(head: &Head, filter: Filter) -> Result<StreamOf, Refusal> {
    let query = Query::parse(head.query())?;
    let Some((field, id)) = resume(head, &query)? else {
        let from = query.from()?.unwrap_or(From::Live);
        return Ok(StreamOf::Events { filter, from });
    };
    match filter {
        Filter::Topic(_) => {
            let from = From::After(parse_position(field, id)?);
            Ok(StreamOf::Events { filter, from })
        }
        Filter::Pattern(pattern) if Marks::is_one(id) => {
            let wrong = || {
                let message = format!("{field} is not the id of an event of a pattern's stream");
                Refusal::field(field, message)
            };
            let marks = Marks::parse(id).ok_or_else(wrong)?;
            Ok(StreamOf::Rest { pattern, marks })
        }
        Filter::Pattern(_) => {
            let message = format!(
                "{field} is the position in one topic, or none; a pattern's stream resumes at the \
                 id of one of its own events, which begins with m"
            );
            Err(Refusal::field(field, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        http::head::{Parsed, parse},
        wire::{
            marks,
            position::{Epoch, Position},
        },
    };

    const ID: &str = "000000000000000a:7";

    fn ask(target: &str, lines: &str) -> Result<Option<StreamRequest>, HttpError> {
        let text = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
        match parse(text.as_bytes()).unwrap() {
            Parsed::Done { head, .. } => asked(&head),
            Parsed::Partial => panic!("not whole: {text}"),
        }
    }

    fn events(target: &str, lines: &str) -> StreamOf {
        ask(target, &format!("Accept: text/event-stream\r\n{lines}")).unwrap().unwrap().of
    }

    #[test]
    fn what_is_accepted_first_decides() {
        let target = "/v1/topics/a/events";
        for (accept, expected) in [
            ("text/event-stream", Some(Dialect::Sse)),
            ("TEXT/Event-Stream; q=0.9, */*", Some(Dialect::Sse)),
            ("application/x-ndjson", Some(Dialect::Ndjson)),
            ("text/html, application/x-ndjson, text/event-stream", Some(Dialect::Ndjson)),
            ("application/json, text/event-stream", None),
            ("*/*", None),
        ] {
            let asked = ask(target, &format!("Accept: {accept}\r\n")).unwrap();
            assert_eq!(asked.map(|asked| asked.dialect), expected, "{accept}");
        }
        assert_eq!(ask(target, "").unwrap(), None);
        assert_eq!(ask("/v1/topics", "Accept: text/event-stream\r\n").unwrap(), None);
    }

    #[test]
    fn a_stream_begins_live_or_where_it_says() {
        let at = |seq| From::After(Position { epoch: Epoch::from_number(10), seq });
        let target = "/v1/topics/home/lamp/events";
        let filter = Filter::parse("home/lamp").unwrap();
        let live = StreamOf::Events { filter: filter.clone(), from: From::Live };
        assert_eq!(events(target, ""), live);
        for (query, lines, expected) in [
            ("?from=start", "", From::Start),
            ("?from=last:5", "Last-Event-ID: \r\n", From::Last(5)),
            ("?from=start", "Last-Event-ID: 000000000000000a:7\r\n", at(7)),
            ("?from=start&last_event_id=000000000000000a:8", "", at(8)),
            ("?last_event_id=000000000000000a:8", "Last-Event-ID: 000000000000000a:7\r\n", at(7)),
        ] {
            let expected = StreamOf::Events { filter: filter.clone(), from: expected };
            assert_eq!(events(&format!("{target}{query}"), lines), expected, "{query} {lines}");
        }
    }

    #[test]
    fn a_pattern_resumes_in_all_of_its_topics_and_nowhere_else() {
        let mut id = Vec::new();
        marks::begin(&mut id);
        marks::push(&mut id, &marks::Mark::of("a/b", Epoch::from_number(10)), 7);
        let id = String::from_utf8(id).unwrap();
        let (pattern, marks) = (Pattern::parse("a/#").unwrap(), Marks::parse(&id).unwrap());
        let rest = events("/v1/topics/a/%23/events", &format!("Last-Event-ID: {id}\r\n"));
        assert_eq!(rest, StreamOf::Rest { pattern, marks });
        for (target, id) in [
            ("/v1/topics/a/+/events", ID),
            ("/v1/topics/a/+/events", "m.x"),
            ("/v1/topics/a/events", &id),
            ("/v1/topics/a/events", "7"),
            ("/v1/state", "7"),
        ] {
            let lines = format!("Accept: text/event-stream\r\nLast-Event-ID: {id}\r\n");
            let error = ask(target, &lines).unwrap_err();
            assert_eq!(error.refusal().field, Some("Last-Event-ID"), "{target} {id}");
        }
    }

    #[test]
    fn a_stream_of_values_resumes_at_a_version() {
        let lines = format!("Accept: application/x-ndjson\r\nLast-Event-ID: {ID}\r\n");
        let asked = ask("/v1/state?match=home/%23", &lines).unwrap().unwrap();
        let from = Some(StatePosition { epoch: Epoch::from_number(10), version: 7 });
        let filter = Filter::parse("home/#").unwrap();
        assert_eq!(asked.of, StreamOf::Values { filter, from });
        let error = ask("/v1/state?match=a//b", "Accept: text/event-stream\r\n").unwrap_err();
        assert_eq!(error.refusal().field, Some("match"));
    }
}
