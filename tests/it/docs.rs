//! `docs/protocol.md` says what is so: its transcripts are replayed against the real relay, each on
//! one of its own, and its tables are compared with the code.
//!
//! The page itself explains how transcripts are written. Beyond that, for whoever writes one:
//!
//! ```text
//!   ```transcript max_events=3    settings of the relay, which become flags; or `durable`
//!   a> {...}                      connection `a`, made on first use, sends; it may have no name
//!   a< {...}                      the next message of `a`, with exactly these fields
//!   a< ...                        any messages of `a`, until one that its next line expects
//!   a> close 1000, a> binary      a close frame, a binary frame; `a< close 1000` awaits one
//!   ! ...                         what happens meanwhile, see `Stage::act`
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    io::Read,
};

use landline::{
    base::limits,
    wire::codes::{CloseCode, Code, ComeBack, GapReason},
};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    frame,
    http::request_text,
    node::{Node, Scratch},
    peer::{Incoming, Peer, read_head, tcp},
    stream::{lines_of, read_lines},
    wait::LIMIT,
};

const PAGE: &str = include_str!("../../docs/protocol.md");
const PATH: &str = "docs/protocol.md";

#[test]
fn every_transcript_happens_as_it_is_written() {
    let blocks = blocks(PAGE);
    let failures: Vec<String> = blocks.iter().filter_map(|block| block.replay().err()).collect();

    assert!(10 < blocks.len(), "only {} transcripts were found", blocks.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn the_tables_of_codes_are_those_of_the_code() {
    let advice = |code: CloseCode| match ComeBack::after(Some(code.number())) {
        ComeBack::Never => "no",
        ComeBack::WithBackoff => "after a pause",
        ComeBack::AtOnce => "at once",
    };
    let errors =
        Code::ALL.iter().map(|code| vec![code.as_str().to_owned(), code.http_status().to_string()]);
    let closes =
        CloseCode::ALL.iter().map(|code| vec![code.number().to_string(), advice(*code).to_owned()]);
    let gaps = GapReason::ALL.iter().map(|reason| vec![reason.as_str().to_owned()]);

    assert_eq!(table(PAGE, "Error codes", 2), errors.collect::<Vec<_>>());
    assert_eq!(table(PAGE, "Close codes", 2), closes.collect::<Vec<_>>());
    assert_eq!(table(PAGE, "Gaps", 1), gaps.collect::<Vec<_>>());
}

#[test]
fn the_table_of_limits_is_that_of_the_code() {
    let expected = [
        ("topic name or pattern", limits::NAME_BYTES_MAX),
        ("user name", limits::USER_BYTES_MAX),
        ("event name", limits::EVENT_NAME_BYTES_MAX),
        ("idempotency key", limits::KEY_BYTES_MAX),
        ("info of a presence", limits::INFO_BYTES_MAX),
        ("window of a subscription", limits::ACK_WINDOW_MAX as usize),
        ("nesting of a message", limits::JSON_DEPTH_MAX),
        ("events in one history", limits::HISTORY_EVENTS_MAX as usize),
        ("bytes of events in one history", limits::HISTORY_BYTES_MAX),
        ("topics in positions", limits::POSITIONS_MAX),
        ("topics of a pattern's stream", limits::STREAM_TOPICS_MAX),
        ("head of an HTTP request", limits::HEAD_BYTES_MAX),
        ("header fields of an HTTP request", limits::HEADERS_MAX),
    ];

    let number = |text: &str| text.replace(',', "").split(' ').next().unwrap().parse().unwrap();
    let rows = table(PAGE, "Limits", 2);
    let found: Vec<(&str, usize)> =
        rows.iter().map(|row| (row[0].as_str(), number(&row[1]))).collect();

    assert_eq!(found, expected);
}

#[test]
fn every_message_has_a_row_in_a_table_and_a_transcript() {
    for (heading, direction) in [("Client to relay", '>'), ("Relay to client", '<')] {
        let listed: BTreeSet<String> = table(PAGE, heading, 1).into_iter().flatten().collect();

        let mut shown = BTreeSet::new();
        let blocks = blocks(PAGE);
        let transcripts = blocks.iter().filter(|block| !block.is_http);
        for step in transcripts.flat_map(|block| &block.steps) {
            if let Some((_, found, rest)) = speech(&step.text)
                && found == direction
                && let Ok(message) = serde_json::from_str::<Value>(&quoted(rest))
                && let Some(kind) = message["type"].as_str()
            {
                shown.insert(kind.to_owned());
            }
        }
        shown.remove("dance"); // Stands for a type that does not exist.

        assert_eq!(listed, shown, "{heading}");
    }
}

#[test]
fn the_page_is_plain() {
    for (index, line) in PAGE.lines().enumerate() {
        assert!(line.is_ascii(), "{PATH}:{}: not ASCII: {line}", index + 1);
        assert!(line.trim_end() == line, "{PATH}:{}: spaces at the end", index + 1);
        let wide = !line.starts_with('|') && 100 < line.len();
        assert!(!wide, "{PATH}:{}: longer than 100 columns", index + 1);
    }
}

#[test]
fn a_transcript_that_is_not_so_fails_with_its_line() {
    let pong = "> {\"type\":\"ping\",\"id\":1}\n< {\"type\":\"pong\",\"id\":1,\"time\":{t}}\n";
    let subscribed = "> {\"type\":\"subscribe\",\"topic\":\"a\"}\n< {\"type\":\"subscribed\",\
                      \"topic\":\"a\",\"epoch\":\"{e}\",\"seq\":{n},\"first\":1,\"tail\":{n}}\n";
    for (body, complaint) in [
        (pong.to_owned(), None),
        (subscribed.to_owned(), None),
        (subscribed.replace("\"tail\":{n}", "\"tail\":{e}"), Some("{e}")),
        (subscribed.replace("\"first\":1", "\"first\":{n}"), Some("{n}")),
        (subscribed.replace("\"{e}\"", "{e}"), Some("a string where")),
        (pong.replace("\"time\":{t}", "\"time\":7"), Some("7")),
        (pong.replace(",\"time\":{t}", ""), Some("time")),
        (pong.replace("{t}", "{t},\"more\":{*}"), Some("more")),
        (pong.replace("\"ping\",", "\"ping\",\"x\":{unbound},"), Some("{unbound}")),
        (pong.lines().next().unwrap().to_owned() + "\n", Some("nothing more")),
        (pong.replace("< {", "< close {"), Some("close")),
        ("! pigs fly\n".to_owned(), Some("pigs")),
    ] {
        let page = format!("words\n```transcript\n{body}```\n");

        let result = blocks(&page)[0].replay();

        match (result, complaint) {
            (Ok(()), None) => {}
            (Err(error), Some(part)) => {
                assert!(error.contains(part) && error.contains(PATH), "{body}: {error}");
            }
            (result, _) => panic!("{body}: {result:?}"),
        }
    }
}

/// One fenced block.
struct Block {
    is_http: bool,
    /// `key=value` of the configuration.
    options: Vec<String>,
    line: usize,
    steps: Vec<Step>,
}

/// One line of a block, with those that continue it.
#[derive(Clone)]
struct Step {
    line: usize,
    text: String,
}

/// All transcripts of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (index, text) in page.lines().enumerate() {
        let line = index + 1;
        let Some(mut block) = open.take() else {
            let mut words = text.strip_prefix("```").unwrap_or_default().split_whitespace();
            let kind = words.next().filter(|kind| ["transcript", "http"].contains(kind));
            open = kind.map(|kind| Block {
                is_http: kind == "http",
                options: words.map(str::to_owned).collect(),
                line,
                steps: Vec::new(),
            });
            continue;
        };
        if text == "```" {
            blocks.push(block);
            continue;
        }
        match (text.strip_prefix("  "), block.steps.last_mut()) {
            (Some(more), Some(last)) => last.text += &format!(" {}", more.trim()),
            _ if text.is_empty() || text.starts_with('#') => {}
            _ => block.steps.push(Step { line, text: text.to_owned() }),
        }
        open = Some(block);
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

impl Block {
    /// Does what the block says on a relay of its own. The error names block, line, what was
    /// expected and what came.
    fn replay(&self) -> Result<(), String> {
        let is_durable = self.options.iter().any(|option| option == "durable");
        let settings = self.options.iter().filter(|option| *option != "durable");
        let flags = settings.flat_map(|option| {
            let (key, value) = option.split_once('=').expect("options are key=value");
            [format!("--{}", key.replace('_', "-")), value.to_owned()]
        });
        let flags: Vec<String> = flags.collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let data = is_durable.then(|| Scratch::new("transcript"));
        let node =
            data.as_ref().map_or_else(|| Node::with(&flags), |dir| Node::durable(dir, &flags));
        let mut stage = Stage {
            node,
            data,
            peers: BTreeMap::new(),
            bindings: Bindings::default(),
            unheard: BTreeSet::new(),
            stopping: false,
        };
        let played =
            if self.is_http { stage.play_http(&self.steps) } else { stage.play(&self.steps) };
        let finished = played.and_then(|()| stage.finish(self.line));
        finished.map_err(|(line, why)| {
            format!("{PATH}:{line}: in the transcript of line {}: {why}", self.line)
        })
    }
}

/// The number of a line, and what is wrong there.
type Complaint = (usize, String);

/// A relay, and who talks to it in a transcript.
struct Stage {
    /// Before the relay, so that it need not wait for them when both are dropped.
    peers: BTreeMap<String, Peer>,
    node: Node,
    /// What a durable relay keeps.
    data: Option<Scratch>,
    bindings: Bindings,
    /// Who may hear more than is written.
    unheard: BTreeSet<String>,
    /// The relay was told to stop.
    stopping: bool,
}

impl Stage {
    fn play(&mut self, steps: &[Step]) -> Result<(), Complaint> {
        for Step { line, text } in steps {
            let outcome = match (text.strip_prefix("! "), speech(text)) {
                (Some(act), _) => self.act(act),
                (None, Some((name, '>', rest))) => self.say(name, rest),
                (None, Some((name, _, "..."))) => {
                    self.unheard.insert(name.to_owned());
                    Ok(())
                }
                (None, Some((name, _, rest))) => self.hear(name, rest),
                (None, None) => Err(format!("neither > nor < nor !: {text}")),
            };
            outcome.map_err(|why| (*line, why))?;
        }
        Ok(())
    }

    /// What happens beside the connections of the transcript.
    fn act(&mut self, act: &str) -> Result<(), String> {
        match act.split(' ').collect::<Vec<_>>()[..] {
            ["the", "relay", "is", "told", "to", "stop"] => {
                self.stopping = true;
                self.node.signal(Signal::TERM);
            }
            ["the", "relay", "stops", "and", "starts", "again"] => {
                self.peers.clear();
                self.node.signal(Signal::TERM);
                self.node.ends_cleanly();
                self.node = Node::durable(self.data.as_ref().expect("a durable relay"), &[]);
            }
            [count, "events", "of", size, "KiB", "are", "published", "to", topic] => {
                let count = count.replace(',', "").parse().expect("a count");
                let size: usize = size.parse().expect("a size");
                self.node.peer().publish_many(topic, count, size * 1024);
            }
            _ => return Err(format!("nobody knows how to do this: {act}")),
        }
        Ok(())
    }

    fn peer(&mut self, name: &str) -> &mut Peer {
        let addr = self.node.addr();
        // A small buffer, so that who does not read is soon seen not to.
        self.peers.entry(name.to_owned()).or_insert_with(|| Peer::connect_tiny(addr))
    }

    fn say(&mut self, name: &str, words: &str) -> Result<(), String> {
        let words = self.bindings.fill(words)?;
        let peer = self.peer(name);
        match words.split_once(' ') {
            Some(("close", code)) => {
                let code: u16 = code.parse().expect("a close code");
                peer.send_raw(&frame::masked(frame::CLOSE, &code.to_be_bytes()));
            }
            _ if words == "binary" => peer.send_raw(&frame::masked(frame::BINARY, b"\0")),
            _ => peer.send_text(&words),
        }
        Ok(())
    }

    /// Receives what `name` is expected to hear.
    fn hear(&mut self, name: &str, expected: &str) -> Result<(), String> {
        let skip = self.unheard.remove(name);
        let bindings = self.bindings.clone();
        let peer = self.peer(name);
        loop {
            let incoming = peer.receive(LIMIT);
            let attempt = match &incoming {
                Some(Incoming::Text(text)) => bindings.match_json(expected, text),
                Some(Incoming::Close(Some(code))) if expected == format!("close {code}") => {
                    self.peers.remove(name);
                    return Ok(());
                }
                _ => Err(differs(expected, &incoming)),
            };
            match (attempt, incoming) {
                (Ok(bindings), _) => {
                    self.bindings = bindings;
                    return Ok(());
                }
                (Err(_), Some(Incoming::Text(_))) if skip => {}
                (Err(why), _) => return Err(why),
            }
        }
    }

    /// Ends the transcript that began at `line`: nobody hears anything that is not in it.
    fn finish(mut self, line: usize) -> Result<(), Complaint> {
        for (name, mut peer) in std::mem::take(&mut self.peers) {
            if self.stopping {
                continue;
            }
            peer.send(&json!({"type": "ping", "id": u32::MAX}));
            let next = peer.message();
            if next["id"] != u32::MAX && !self.unheard.contains(&name) {
                return Err((line, format!("{name:?} should hear nothing more, got {next}")));
            }
        }
        if self.stopping {
            let status = self.node.wait_exit(LIMIT);
            assert!(status.success(), "the relay ended with {status}: {}", self.node.stderr());
        }
        Ok(())
    }

    fn play_http(&mut self, steps: &[Step]) -> Result<(), Complaint> {
        let mut rest = steps;
        while !rest.is_empty() {
            let mut side = |sign: char| {
                let is_other = |step: &Step| !step.text.starts_with(sign);
                let (side, tail) =
                    rest.split_at(rest.iter().position(is_other).unwrap_or(rest.len()));
                rest = tail;
                side
            };
            let (request, reply) = (side('>'), side('<'));
            let Some(first) = request.first() else {
                return Err((rest[0].line, "a request is missing".to_owned()));
            };
            let found = self.exchange(request, reply).map_err(|why| (first.line, why))?;
            self.compare_reply(reply, &found)?;
        }
        Ok(())
    }

    /// Sends a request over a connection of its own and returns all of the answer; of a stream as
    /// many lines as `reply` has.
    fn exchange(&mut self, request: &[Step], reply: &[Step]) -> Result<String, String> {
        let lines = request.iter().map(|step| self.bindings.fill(step.text[1..].trim()));
        let lines = lines.collect::<Result<Vec<String>, String>>()?;
        let empty = lines.iter().position(String::is_empty).unwrap_or(lines.len());
        let body = lines.get(empty + 1..).unwrap_or_default().join("\n");
        let words: Vec<&str> = lines[0].split(' ').collect();
        let [method, path, "HTTP/1.1"] = words[..] else {
            return Err(format!("not a request line: {}", lines[0]));
        };
        let mut headers: Vec<&str> = lines[1..empty].iter().map(String::as_str).collect();
        if !headers.iter().any(|line| line.starts_with("Connection:")) {
            headers.push("Connection: close");
        }
        let addr = self.node.addr();
        let mut stream = tcp(addr, None);
        let text = request_text(addr, method, path, &headers, &body);
        std::io::Write::write_all(&mut stream, text.as_bytes()).expect("send the request");
        let (head, mut rest) = read_head(&mut stream);
        if head.contains("text/event-stream") {
            let wanted = reply.iter().skip_while(|step| step.text != "<").skip(1);
            let wanted = wanted.filter(|step| step.text != "<").count();
            read_lines(&mut stream, &mut rest, wanted);
        } else if !head.starts_with("HTTP/1.1 101 ") {
            stream.read_to_end(&mut rest).expect("read the body");
        }
        Ok(head + &String::from_utf8_lossy(&rest))
    }

    /// Compares an answer: the status line and the body whole, of the head what is written.
    fn compare_reply(&mut self, expected: &[Step], found: &str) -> Result<(), Complaint> {
        let (head, found_body) = found.split_once("\r\n\r\n").unwrap_or((found, ""));
        let mut lines = expected.iter().map(|step| (step.line, step.text[1..].trim()));
        for (index, (line, expected)) in
            lines.by_ref().take_while(|line| !line.1.is_empty()).enumerate()
        {
            let expected = self.bindings.fill(expected).map_err(|why| (line, why))?;
            let mut found = head.lines().skip(index.min(1)).take(if index == 0 { 1 } else { 99 });
            if !found.any(|found| found == expected) {
                return Err((line, differs(&expected, &head)));
            }
        }
        if head.contains("text/event-stream") {
            for ((line, expected), found) in
                lines.filter(|line| !line.1.is_empty()).zip(lines_of(found_body))
            {
                self.compare_line(expected, found).map_err(|why| (line, why))?;
            }
            return Ok(());
        }
        match lines.next() {
            Some((line, body)) => {
                let bindings = self.bindings.match_json(body, found_body);
                self.bindings = bindings.map_err(|why| (line, why))?;
            }
            None if found_body.is_empty() => {}
            None => return Err((expected[0].line, differs("no body", &found_body))),
        }
        Ok(())
    }
}

impl Stage {
    /// Compares a line of a stream: JSON as JSON, anything else as text.
    fn compare_line(&mut self, expected: &str, found: &str) -> Result<(), String> {
        let json = |text| str::strip_prefix(text, "data: ").filter(|text| text.starts_with('{'));
        if let (Some(expected), Some(found)) = (json(expected), json(found)) {
            self.bindings = self.bindings.match_json(expected, found)?;
            return Ok(());
        }
        let is_same = match expected.strip_suffix("{*}") {
            Some(start) => found.starts_with(start),
            None => self.bindings.fill(expected)? == found,
        };
        if is_same { Ok(()) } else { Err(differs(expected, &found)) }
    }
}

/// Who speaks in a line, in which direction, and what.
fn speech(text: &str) -> Option<(&str, char, &str)> {
    let at = text.find(['<', '>'])?;
    let (name, rest) = text.split_at(at);
    let direction = rest.chars().next()?;
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_name.then(|| (name, direction, rest[1..].trim()))
}

fn differs(expected: &str, found: &impl Debug) -> String {
    format!("\nexpected {expected}\ngot      {found:?}")
}

/// What the placeholders of a transcript stand for.
#[derive(Clone, Debug, Default)]
struct Bindings(BTreeMap<String, Value>);

/// Begins the text that a placeholder outside of a string is turned into.
const BARE: char = '\0';

impl Bindings {
    /// Puts in what is bound.
    fn fill(&self, text: &str) -> Result<String, String> {
        let mut filled = String::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(name) = placeholder(rest) {
                match self.0.get(name) {
                    Some(Value::String(text)) => filled += text,
                    Some(value) => filled += &value.to_string(),
                    None => return Err(format!("{{{name}}} is not bound yet: {text}")),
                }
                rest = &rest[name.len() + 2..];
            } else {
                filled.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        Ok(filled)
    }

    /// Compares `found` with `expected`, and returns the bindings that hold afterwards.
    fn match_json(&self, expected: &str, found: &str) -> Result<Bindings, String> {
        let wrong = |why: String| format!("{}\n{why}", differs(expected, &found));
        let pattern: Value = serde_json::from_str(&quoted(expected))
            .map_err(|error| wrong(format!("what is expected is not JSON: {error}")))?;
        let value: Value = serde_json::from_str(found)
            .map_err(|error| wrong(format!("what came is not JSON: {error}")))?;
        let mut bindings = self.clone();
        bindings.match_value(&pattern, &value).map_err(wrong)?;
        Ok(bindings)
    }

    fn match_value(&mut self, expected: &Value, found: &Value) -> Result<(), String> {
        match (expected, found) {
            (Value::Object(wanted), Value::Object(got)) => {
                let names = |map: &serde_json::Map<String, Value>| -> Vec<String> {
                    map.keys().cloned().collect()
                };
                let (mut left, mut right) = (names(wanted), names(got));
                left.sort();
                right.sort();
                if left != right {
                    return Err(format!("the fields differ: {left:?} and {right:?}"));
                }
                wanted.iter().try_for_each(|(key, value)| self.match_value(value, &got[key]))
            }
            (Value::Array(wanted), Value::Array(got)) if wanted.len() == got.len() => {
                wanted.iter().zip(got).try_for_each(|(value, got)| self.match_value(value, got))
            }
            (Value::String(text), _) if text.starts_with(BARE) => {
                if found.is_string() {
                    return Err(format!("a string where none is expected: {found}"));
                }
                self.bind(&text[1..], found)
            }
            (Value::String(text), Value::String(_))
                if placeholder(text).is_some_and(|name| name.len() + 2 == text.len()) =>
            {
                self.bind(&text[1..text.len() - 1], found)
            }
            _ if expected == found => Ok(()),
            _ => Err(format!("{expected} is not {found}")),
        }
    }

    fn bind(&mut self, name: &str, found: &Value) -> Result<(), String> {
        if name == "*" {
            return Ok(());
        }
        let bound = self.0.entry(name.to_owned()).or_insert_with(|| found.clone());
        if bound == found { Ok(()) } else { Err(format!("{{{name}}} is {bound}, not {found}")) }
    }
}

/// The name of the placeholder that `text` begins with.
fn placeholder(text: &str) -> Option<&str> {
    let (name, _) = text.strip_prefix('{')?.split_once('}')?;
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    (name == "*" || (!name.is_empty() && name.bytes().all(is_name))).then_some(name)
}

/// Makes JSON of a message with placeholders outside of strings.
fn quoted(text: &str) -> String {
    let mut json = String::new();
    let (mut rest, mut in_string) = (text, false);
    while let Some(c) = rest.chars().next() {
        let mut len = c.len_utf8();
        match (c, placeholder(rest)) {
            ('{', Some(name)) if !in_string => {
                json += &format!("\"\\u0000{name}\"");
                len = name.len() + 2;
            }
            ('\\', _) => {
                len = rest.len().min(2);
                json += &rest[..len];
            }
            _ => {
                in_string ^= c == '"';
                json.push(c);
            }
        }
        rest = &rest[len..];
    }
    json
}

/// The first `columns` cells of each row of the table under a heading, without back-quotes.
fn table(page: &str, heading: &str, columns: usize) -> Vec<Vec<String>> {
    let is_heading = |line: &&str| line.trim_start_matches('#').trim() == heading;
    let under = page.lines().skip_while(|line| !line.starts_with('#') || !is_heading(line));
    let rows = under.skip(1).take_while(|line| !line.starts_with('#'));
    let rows = rows.filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &str| {
        let cells = row.trim_matches('|').split('|');
        cells.take(columns).map(|cell| cell.trim().replace('`', "")).collect()
    };
    rows.map(cells).collect()
}
