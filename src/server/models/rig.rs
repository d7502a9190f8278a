//! A whole relay for a model: all its threads but acceptors, readers that are handed their
//! requests, and clients that look at their sockets.

use std::{
    io::{ErrorKind, Read},
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;
use socket2::SockRef;

use super::memory::Memory;
use crate::{
    base::sync::thread,
    config::{Config, Policy, TopicSettings},
    server::{
        Server, acceptor,
        line::Line,
        relay::Shared,
        websocket::{self, Session},
        writer::Command,
    },
    store::Store,
    wire::frame,
};

/// The one topic of every model.
pub(super) const TOPIC: &str = "a";

pub(super) struct Rig {
    server: Server,
    listener: TcpListener,
}

impl Rig {
    /// A relay whose topics are in memory.
    pub(super) fn new(writers: usize) -> Rig {
        Rig::start(Config { writers, ..Config::default() }, None)
    }

    /// A relay whose topics are durable on `memory`, with `max_tail` bytes of each in its own.
    pub(super) fn durable(memory: &Memory, max_tail: u64) -> Rig {
        let default_policy = Policy { durable: true, max_tail, ..Policy::default() };
        let topics = TopicSettings { default_policy, ..TopicSettings::default() };
        Rig::start(Config { writers: 1, topics, ..Config::default() }, Some(memory))
    }

    fn start(config: Config, memory: Option<&Memory>) -> Rig {
        let config = Config { listen: Vec::new(), ..config };
        let store = memory.map(|memory| {
            let store: Box<dyn Store> = Box::new(memory.clone());
            (store, memory.loaded())
        });
        let server = Server::start_with(config, store).unwrap();
        Rig { server, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        self.server.shared()
    }

    /// A connection: its socket's two ends, the relay's with no reader yet.
    fn accept(&self) -> (Line, Client) {
        let socket = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        socket.set_nonblocking(true).unwrap();
        // Thousands of connections a second: none of them may leave its port occupied.
        SockRef::from(&socket).set_linger(Some(Duration::ZERO)).unwrap();
        let (own, peer) = self.listener.accept().unwrap();
        let connection = acceptor::introduce(self.shared(), own, peer);
        let client = Client { socket, bytes: Vec::new(), messages: Vec::new(), has_closed: false };
        (Line::new(Arc::clone(self.shared()), connection), client)
    }

    /// A WebSocket.
    pub(super) fn connect(&self) -> (Reader, Client) {
        let (line, client) = self.accept();
        (Reader::open(line), client)
    }

    /// A connection that is about to become a WebSocket.
    pub(super) fn knock(&self) -> (Line, Client) {
        self.accept()
    }

    /// Stops, which no thread survives.
    pub(super) fn stop(self) {
        assert_eq!(self.server.metrics().threads_panicked.value(), 0);
        let report = self.server.stop();
        assert_eq!((report.late.as_slice(), report.cut), (&[][..] as &[String], 0));
    }
}

/// A reader: its session, without the loop that waits for requests.
pub(super) struct Reader(Box<Session>);

impl Reader {
    pub(super) fn open(line: Line) -> Reader {
        Reader(websocket::open(line, Vec::new()).0)
    }

    /// Handles requests that arrived together, and tells everybody before it waits for more.
    pub(super) fn handle(&mut self, requests: &[&str]) {
        requests.iter().for_each(|request| self.0.handle(request));
        self.0.line.tell();
    }

    /// The client is gone.
    pub(super) fn end(mut self) {
        self.0.leave();
        let connection = &self.0.line.connection;
        connection.command(Command::Detach { connection: connection.id });
    }
}

/// What one client sees.
pub(super) struct Client {
    socket: TcpStream,
    bytes: Vec<u8>,
    pub(super) messages: Vec<Value>,
    pub(super) has_closed: bool,
}

impl Client {
    /// Looks at the socket until `is_enough`. One that waits in vain runs out of steps.
    pub(super) fn wait(&mut self, is_enough: impl Fn(&Client) -> bool) {
        loop {
            self.look();
            if is_enough(self) {
                return;
            }
            thread::yield_now();
        }
    }

    /// The events that have come, by their sequence.
    pub(super) fn events(&self) -> Vec<u64> {
        self.of("event").map(|event| event["seq"].as_u64().unwrap()).collect()
    }

    /// The messages of one type.
    pub(super) fn of(&self, wanted: &'static str) -> impl Iterator<Item = &Value> {
        self.messages.iter().filter(move |message| message["type"] == wanted)
    }

    fn look(&mut self) {
        let mut buffer = [0; 4_096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => break,
                Ok(got) => self.bytes.extend_from_slice(&buffer[..got]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => unreachable!("cannot read: {error}"),
            }
        }
        // The relay's writes are whole here: nothing ever fills these sockets.
        for payload in frame::payloads(&std::mem::take(&mut self.bytes)) {
            match serde_json::from_slice(payload) {
                Ok(message) => self.messages.push(message),
                Err(_) => self.has_closed = true,
            }
        }
    }
}
