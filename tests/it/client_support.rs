//! What the client's tests need: a real relay as a process, a proxy that cuts, and a scripted
//! peer for what a real relay does not do.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use landline::base::{
    clock::Clock,
    lifecycle::{Crew, Panics, Stop},
    sync::{Mutex, atomic::Ordering},
};
use serde_json::Value;
use tungstenite::{
    Message, WebSocket,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

/// No wait in these tests is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_landline");

/// A relay of its own, killed at the end.
pub(crate) struct Relay {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Relay {
    #[must_use]
    pub(crate) fn start() -> Relay {
        Relay::start_with(&["--listen", "127.0.0.1:0"])
    }

    /// A relay on `address`, after another one that was there.
    #[must_use]
    pub(crate) fn start_at(address: SocketAddr) -> Relay {
        Relay::start_with(&["--listen", &address.to_string()])
    }

    #[must_use]
    pub(crate) fn start_with(flags: &[&str]) -> Relay {
        let mut child = Command::new(PROGRAM)
            .arg("serve")
            .args(flags)
            .env_remove("LANDLINE_CONFIG")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the relay starts");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("its output is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let address = line.trim().strip_prefix("listening on http://").expect("an address");
        let address = address.parse().expect("an address");
        Relay { child, address }
    }

    #[must_use]
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }
}

/// Forwards connections to a relay, until they are cut.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    stop: Stop,
    crew: Crew,
    open: Arc<Mutex<Vec<Arc<TcpStream>>>>,
}

impl Proxy {
    #[must_use]
    pub(crate) fn start(relay: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let stop = Stop::default();
        let crew = Crew::new(stop.clone(), Panics::default());
        let open = Arc::new(Mutex::new(Vec::new()));
        let proxy =
            Proxy { address, stop: stop.clone(), crew: crew.clone(), open: Arc::clone(&open) };
        let body = move || {
            while let Ok((client, _)) = listener.accept() {
                if stop.is_raised() {
                    return;
                }
                let Ok(server) = TcpStream::connect(relay) else { continue };
                let (client, server) = (Arc::new(client), Arc::new(server));
                open.lock().extend([Arc::clone(&client), Arc::clone(&server)]);
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (Arc::clone(from), Arc::clone(to));
                    crew.spawn("pipe".to_owned(), 128 * 1024, move || pipe(&from, &to)).unwrap();
                }
            }
        };
        proxy.crew.spawn("proxy".to_owned(), 128 * 1024, body).unwrap();
        proxy
    }

    #[must_use]
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends every connection in the middle of whatever it was doing. Returns how many there were.
    pub(crate) fn cut(&self) -> usize {
        let open = std::mem::take(&mut *self.open.lock());
        for socket in &open {
            // It may have ended by itself.
            drop(socket.shutdown(Shutdown::Both));
        }
        open.len() / 2
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.raise(landline::base::lifecycle::Cause::Requested);
        drop(TcpStream::connect(self.address));
        self.cut();
        let clock = Clock::default();
        assert_eq!(self.crew.join(&clock, clock.now() + LIMIT), 0, "the proxy's threads end");
    }
}

fn pipe(from: &TcpStream, to: &TcpStream) {
    let mut buffer = [0; 4_096];
    let (mut from_half, mut to_half) = (from, to);
    while let Ok(len @ 1..) = from_half.read(&mut buffer) {
        if to_half.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    drop(from.shutdown(Shutdown::Both));
    drop(to.shutdown(Shutdown::Both));
}

/// A relay that follows a script, on a thread of its own. A panic in it fails the test.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    crew: Crew,
    panics: Panics,
}

impl Scripted {
    #[must_use]
    pub(crate) fn start(script: impl FnOnce(&TcpListener) + Send + 'static) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let panics = Panics::default();
        let crew = Crew::new(Stop::default(), Arc::clone(&panics));
        crew.spawn("script".to_owned(), 512 * 1024, move || script(&listener)).unwrap();
        Scripted { address, crew, panics }
    }

    #[must_use]
    pub(crate) fn url(&self) -> String {
        format!("ws://{}", self.address)
    }

    /// Waits for the script to end.
    #[track_caller]
    pub(crate) fn finish(self) {
        let clock = Clock::default();
        assert_eq!(self.crew.join(&clock, clock.now() + LIMIT), 0, "the script ends");
        assert_eq!(self.panics.load(Ordering::Relaxed), 0, "the script did not panic");
    }
}

/// One client's connection, in a script.
pub(crate) struct Peer(WebSocket<TcpStream>);

impl Peer {
    /// Accepts a client and its greeting, and welcomes it.
    #[must_use]
    pub(crate) fn welcome(listener: &TcpListener, heartbeat_ms: u64) -> Peer {
        let mut peer = Peer::accept(listener);
        let hello = peer.next().expect("a greeting");
        assert_eq!(hello["type"], "hello");
        peer.say(&format!(
            r#"{{"type":"welcome","id":{},"connection":"c1","user":null,
                "heartbeat_ms":{heartbeat_ms},"max_message_bytes":1000}}"#,
            hello["id"]
        ));
        peer
    }

    #[must_use]
    pub(crate) fn accept(listener: &TcpListener) -> Peer {
        let (socket, _) = listener.accept().expect("a client");
        socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
        Peer(tungstenite::accept(socket).expect("a handshake"))
    }

    /// The next message, or `None` when the client has gone.
    pub(crate) fn next(&mut self) -> Option<Value> {
        loop {
            match self.0.read() {
                Ok(Message::Text(text)) => {
                    return Some(serde_json::from_str(&text).expect("JSON from the client"));
                }
                Ok(Message::Close(_)) => {}
                Ok(other) => assert!(!other.is_binary()),
                Err(_) => return None,
            }
        }
    }

    pub(crate) fn say(&mut self, text: &str) {
        self.0.send(Message::text(text)).expect("the client listens");
    }

    pub(crate) fn close(mut self, code: u16) {
        let frame = CloseFrame { code: CloseCode::from(code), reason: "script".into() };
        self.0.close(Some(frame)).expect("the client listens");
        while self.next().is_some() {}
    }
}

/// Runs `landline` with `arguments` against `url` and returns exit code, output and messages.
pub(crate) fn run(url: &str, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    let mut child = spawn(url, arguments);
    let mut stdin = child.stdin.take().expect("its input is piped");
    match stdin.write_all(input.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => panic!("{error}"),
        _ => {}
    }
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

pub(crate) fn spawn(url: &str, arguments: &[&str]) -> Child {
    Command::new(PROGRAM)
        .args(arguments)
        .env("LANDLINE_URL", url)
        .env_remove("LANDLINE_OUTPUT")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts")
}

#[track_caller]
pub(crate) fn succeeds(url: &str, arguments: &[&str], input: &str) -> String {
    let (code, out, err) = run(url, arguments, input);
    assert_eq!(code, Some(0), "{arguments:?}: {err}");
    out
}

#[track_caller]
pub(crate) fn fails(url: &str, arguments: &[&str], code: i32) -> String {
    let (found, out, err) = run(url, arguments, "");
    assert_eq!(found, Some(code), "{arguments:?}: {out} {err}");
    err
}
