//! One connection: address, TCP, WebSocket handshake, greeting; and its bytes afterwards.
//!
//! The reader owns the WebSocket. What it would write itself, pongs and the answer to a close,
//! goes to the session instead, so that only the writer ever writes.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    sync::Arc,
    time::{Duration, Instant},
};

use tungstenite::{
    HandshakeError, Message, WebSocket,
    handshake::client::ClientHandshake,
    protocol::{WebSocketConfig, frame::coding::CloseCode},
};

use crate::{
    base::clock::Clock,
    client::{
        error::{ClientError, LinkError},
        message::{Incoming, Outgoing, Text, encode},
        options::Options,
        reply,
        session::Out,
    },
    wire::codes::ComeBack,
};

/// How long a write may take nothing before the connection is given up.
const WRITE_STALL: Duration = Duration::from_secs(10);
/// What a relay takes that did not say.
const MESSAGE_BYTES_MAX: usize = 256 << 10;

/// Where a relay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    path: String,
}

impl Address {
    /// Parses `http://host:port`, `ws://host:port` or `host:port`, with an optional path in front
    /// of the relay's own. Without a port it is 80.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] says which rule is broken.
    pub fn parse(url: &str) -> Result<Address, ClientError> {
        let wrong = |rule| ClientError::Address { url: url.to_owned(), rule };
        let rest = match url.split_once("://") {
            Some(("http" | "ws", rest)) => rest,
            Some(("https" | "wss", _)) => {
                return Err(wrong("asks for TLS, which this build does not have"));
            }
            Some(_) => return Err(wrong("does not begin with http:// or ws://")),
            None => url,
        };
        if rest.contains(['?', '#', '@']) || rest.contains(char::is_whitespace) {
            return Err(wrong("has more than a host, a port and a path"));
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = path.trim_end_matches('/');
        let path = path.strip_suffix("/ws").unwrap_or(path).to_owned();
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong("has a port that is not a number"))?)
            }
            _ => (authority, 80),
        };
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if bare.is_empty() {
            return Err(wrong("has no host"));
        }
        Ok(Address { host: bare.to_owned(), port, path })
    }

    /// `host:port`, as it stands in a `Host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        let Address { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The path of a resource of the relay.
    #[must_use]
    pub fn path(&self, resource: &str) -> String {
        format!("{}{resource}", self.path)
    }

    /// Opens a TCP connection.
    ///
    /// # Errors
    ///
    /// [`LinkError::Resolve`], [`LinkError::Tcp`] or [`LinkError::Timeout`].
    ///
    /// # Blocking
    ///
    /// At most `limit` beside what resolving the name takes.
    pub fn connect(&self, clock: &Clock, limit: Duration) -> Result<TcpStream, LinkError> {
        let resolve = |error: io::Error| LinkError::Resolve {
            host: self.host.clone(),
            source: Arc::new(error),
        };
        let addresses: Vec<SocketAddr> =
            (self.host.as_str(), self.port).to_socket_addrs().map_err(resolve)?.collect();
        let deadline = clock.now() + limit;
        let mut failure =
            resolve(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
        for address in addresses {
            let left = deadline.saturating_duration_since(clock.now());
            if left.is_zero() {
                return Err(LinkError::Timeout { limit });
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(socket) => return Ok(socket),
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    failure = LinkError::Timeout { limit };
                }
                Err(error) => {
                    let address = address.to_string();
                    failure = LinkError::Tcp { address, source: Arc::new(error) };
                }
            }
        }
        Err(failure)
    }
}

/// The stream under the WebSocket: reads the socket; writes go where `mode` says.
pub(super) struct Wire {
    socket: Arc<TcpStream>,
    clock: Clock,
    mode: Mode,
}

enum Mode {
    /// Handshake and greeting: written at once, and over by this time.
    Greeting(Instant),
    /// Kept until flushed, then handed to the session.
    Running { out: Vec<u8>, sink: Sink },
}

/// Takes frames for the writer. `false` if it cannot take any more.
pub(super) type Sink = Box<dyn FnMut(Vec<u8>) -> bool + Send>;

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Mode::Greeting(deadline) = self.mode {
                let left = deadline.saturating_duration_since(self.clock.now());
                if left.is_zero() {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                self.socket.set_read_timeout(Some(left))?;
            }
            // A process that was stopped and goes on is interrupted here (signal(7): sockets with
            // a time-out are not restarted); its connection is as good as it was.
            match (&*self.socket).read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.mode {
            Mode::Greeting(_) => (&*self.socket).write(bytes),
            Mode::Running { out, .. } => {
                out.extend_from_slice(bytes);
                Ok(bytes.len())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.mode {
            Mode::Greeting(_) => Ok(()),
            Mode::Running { out, sink } => {
                if out.is_empty() || sink(std::mem::take(out)) {
                    Ok(())
                } else {
                    Err(io::Error::other("the relay sends pings faster than they can be answered"))
                }
            }
        }
    }
}

/// A connection that the relay has welcomed.
pub(super) struct Opened {
    pub socket: WebSocket<Wire>,
    pub stream: Arc<TcpStream>,
    pub connection: String,
    pub message_bytes_max: usize,
    /// Silence after which the relay is taken for dead.
    pub silence: Option<Duration>,
}

/// Why there is no connection, and whether to try again.
#[derive(Debug)]
pub(super) struct Failure {
    pub error: LinkError,
    pub advice: ComeBack,
    pub wait: Option<Duration>,
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Failure {
        let mut advice = ComeBack::WithBackoff;
        let mut wait = None;
        if let LinkError::ClosedWith { code, .. } = &error {
            advice = ComeBack::after(Some(*code));
        } else if let LinkError::Refused(refused) = &error
            && refused.is_temporary()
        {
            wait = refused.retry_after;
        } else if error.is_refusal() || matches!(error, LinkError::Refused(_)) {
            advice = ComeBack::Never;
        }
        Failure { error, advice, wait }
    }
}

/// Connects, shakes hands and greets.
///
/// # Blocking
///
/// At most the connect timeout, beside what resolving the name takes.
pub(super) fn open(
    address: &Address,
    options: &Options,
    clock: &Clock,
    hello_id: u64,
) -> Result<Opened, Failure> {
    let limit = options.connect_timeout;
    let deadline = clock.now() + limit;
    let stream = address.connect(clock, limit)?;
    stream.set_nodelay(true).map_err(LinkError::broken)?;
    stream.set_write_timeout(Some(WRITE_STALL.min(limit))).map_err(LinkError::broken)?;
    let stream = Arc::new(stream);
    let wire =
        Wire { socket: Arc::clone(&stream), clock: clock.clone(), mode: Mode::Greeting(deadline) };
    let config = WebSocketConfig::default()
        .read_buffer_size(64 << 10)
        .write_buffer_size(0)
        .max_message_size(Some(64 << 20))
        .max_frame_size(Some(64 << 20));
    let url = format!("ws://{}{}", address.authority(), address.path("/ws"));
    let (mut socket, _) = tungstenite::client::client_with_config(url, wire, Some(config))
        .map_err(|error| handshake_failure(error, limit))?;
    let Options { user, text, .. } = options;
    let hello = Outgoing::Hello { user: user.as_deref(), client: text.as_deref() };
    socket.send(Message::text(encode(hello_id, &hello))).map_err(|error| failure(error, limit))?;
    greet(socket, stream, limit)
}

/// Waits for `welcome`.
fn greet(
    mut socket: WebSocket<Wire>,
    stream: Arc<TcpStream>,
    limit: Duration,
) -> Result<Opened, Failure> {
    let mut wait = None;
    loop {
        let text = match socket.read().map_err(|error| failure(error, limit)) {
            Ok(Message::Text(text)) => text,
            Ok(Message::Close(frame)) => return Err(Failure { wait, ..closed(frame) }),
            Ok(_) => continue,
            Err(failure) => return Err(Failure { wait, ..failure }),
        };
        let message: Incoming<'_> = serde_json::from_str(&text).map_err(protocol)?;
        match message.kind.as_str() {
            "welcome" => {
                let silence = silence(message.heartbeat_ms);
                stream.set_read_timeout(silence).map_err(LinkError::broken)?;
                let connection = message.connection.as_ref().map_or("", Text::as_str).to_owned();
                let message_bytes_max = message.max_message_bytes.unwrap_or(MESSAGE_BYTES_MAX);
                return Ok(Opened { socket, stream, connection, message_bytes_max, silence });
            }
            "error" => return Err(LinkError::Refused(reply::refused(&message)).into()),
            "bye" => wait = message.reconnect_after_ms.map(Duration::from_millis),
            _ => {}
        }
    }
}

/// A relay pings every heartbeat; two that are missed, and some time to travel, are enough.
fn silence(heartbeat_ms: u64) -> Option<Duration> {
    let margin_ms = heartbeat_ms.min(4_000);
    (0 < heartbeat_ms).then(|| Duration::from_millis(heartbeat_ms * 2 + margin_ms))
}

impl Opened {
    /// From now on nothing is written directly.
    pub(super) fn run(&mut self, sink: Sink) {
        self.socket.get_mut().mode = Mode::Running { out: Vec::new(), sink };
    }
}

fn protocol(error: serde_json::Error) -> LinkError {
    LinkError::Protocol { what: format!("a message cannot be read: {error}") }
}

fn handshake_failure(error: HandshakeError<ClientHandshake<Wire>>, limit: Duration) -> Failure {
    match error {
        HandshakeError::Interrupted(_) => LinkError::Timeout { limit }.into(),
        HandshakeError::Failure(error) => failure(error, limit),
    }
}

/// What an error of the WebSocket means; `limit` is how long silence may last.
pub(super) fn failure(error: tungstenite::Error, limit: Duration) -> Failure {
    use tungstenite::error::{Error, ProtocolError};
    let over = matches!(
        error,
        Error::ConnectionClosed
            | Error::AlreadyClosed
            | Error::Protocol(
                ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete
            )
    );
    let silent = |error: &io::Error| {
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
    };
    let error = if over {
        LinkError::Closed
    } else if let Error::Io(error) = error {
        if silent(&error) { LinkError::Silent { limit } } else { LinkError::broken(error) }
    } else if let Error::Http(response) = error {
        LinkError::Status { status: response.status().as_u16() }
    } else {
        LinkError::Protocol { what: error.to_string() }
    };
    error.into()
}

/// What a close frame means.
pub(super) fn closed(frame: Option<tungstenite::protocol::CloseFrame>) -> Failure {
    match frame {
        Some(frame) => {
            let reason = frame.reason.as_str().to_owned();
            LinkError::ClosedWith { code: frame.code.into(), reason }.into()
        }
        None => LinkError::Closed.into(),
    }
}

/// Frames and masks `out`. Returns whether a close frame is among it.
pub(super) fn frame(out: &[Out], masks: &mut Masks, bytes: &mut Vec<u8>) -> bool {
    for one in out {
        match one {
            Out::Text(text) => push_masked(bytes, TEXT, text.as_bytes(), masks.next()),
            Out::Frames(frames) => bytes.extend_from_slice(frames),
            Out::Close => {
                let code = u16::from(CloseCode::Normal).to_be_bytes();
                push_masked(bytes, CLOSE, &code, masks.next());
                return true;
            }
        }
    }
    false
}

const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;

/// Appends one whole frame as a client writes it (RFC 6455, section 5.3).
fn push_masked(bytes: &mut Vec<u8>, first: u8, payload: &[u8], mask: [u8; 4]) {
    bytes.push(first);
    if let Ok(len @ 0..126) = u8::try_from(payload.len()) {
        bytes.push(MASKED | len);
    } else if let Ok(len) = u16::try_from(payload.len()) {
        bytes.push(MASKED | 126);
        bytes.extend_from_slice(&len.to_be_bytes());
    } else {
        bytes.push(MASKED | 127);
        bytes.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    }
    bytes.extend_from_slice(&mask);
    bytes.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// Masks for frames: SplitMix64 from a random seed. They keep a page's script from choosing the
/// bytes that a proxy sees, which is no concern of a program that opens its own sockets.
pub(super) struct Masks(u64);

impl Masks {
    pub(super) fn new(seed: u64) -> Self {
        Masks(seed)
    }

    fn next(&mut self) -> [u8; 4] {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let [a, b, c, d, ..] = (mixed ^ (mixed >> 27)).to_le_bytes();
        [a, b, c, d]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_a_port_and_a_path() {
        for (url, authority, path) in [
            ("http://relay:5263", "relay:5263", "/ws"),
            ("ws://relay:5263/ws", "relay:5263", "/ws"),
            ("relay:5263", "relay:5263", "/ws"),
            ("http://[::1]:5263/", "[::1]:5263", "/ws"),
            ("http://relay/events/", "relay:80", "/events/ws"),
            ("[::1]", "[::1]:80", "/ws"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(
                (address.authority().as_str(), address.path("/ws").as_str()),
                (authority, path)
            );
        }
        for url in ["https://relay", "ftp://relay", "", "http://", "http://relay:x", "http://a b"] {
            assert!(Address::parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn frames_of_every_size_class_can_be_read_by_a_server() {
        let mut masks = Masks::new(7);
        for len in [0, 1, 125, 126, 127, 65_535, 65_536] {
            let text: Arc<str> = "x".repeat(len).into();
            let mut bytes = Vec::new();
            assert!(!frame(&[Out::Text(Arc::clone(&text))], &mut masks, &mut bytes));
            let role = tungstenite::protocol::Role::Server;
            let stream = io::Cursor::new(bytes);
            let mut socket = WebSocket::from_raw_socket(stream, role, None);
            assert_eq!(socket.read().unwrap().into_text().unwrap().as_str(), &*text);
        }
    }

    #[test]
    fn the_relays_refusals_are_final_and_its_overload_is_not() {
        let advice = |error: LinkError| Failure::from(error).advice;
        assert_eq!(advice(LinkError::Status { status: 401 }), ComeBack::Never);
        assert_eq!(advice(LinkError::Status { status: 503 }), ComeBack::WithBackoff);
        assert_eq!(advice(LinkError::Closed), ComeBack::WithBackoff);
        let closed = |code| LinkError::ClosedWith { code, reason: String::new() };
        assert_eq!(advice(closed(4002)), ComeBack::Never);
        assert_eq!(advice(closed(4100)), ComeBack::WithBackoff);
        assert_eq!(advice(closed(4103)), ComeBack::WithBackoff);
        assert_eq!(advice(closed(4200)), ComeBack::AtOnce);
    }
}
