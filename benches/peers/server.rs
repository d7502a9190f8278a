//! A peer's process: started on a free port, waited for, and ended with the run.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
};

use crate::{
    protocol::Protocol,
    support::{self, PATIENCE},
    wait::wait_until,
};

/// A relay that is measured.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// Where it comes from.
    pub(crate) package: &'static str,
    pub(crate) protocol: Protocol,
    program: &'static str,
    version: &'static str,
    /// Its arguments for a port.
    arguments: fn(u16) -> Vec<String>,
}

/// Landline, and others as Debian packages them, with their defaults but for what is said here.
pub(crate) const PEERS: [Peer; 4] = [
    Peer {
        name: "landline",
        package: "this project",
        protocol: Protocol::Landline,
        program: env!("CARGO_BIN_EXE_landline"),
        version: "--version",
        arguments: |port| words(&format!("serve --listen 127.0.0.1:{port} --log-level error")),
    },
    Peer {
        name: "nats",
        package: "nats-server",
        protocol: Protocol::Nats,
        program: "nats-server",
        version: "--version",
        arguments: |port| words(&format!("--addr 127.0.0.1 --port {port}")),
    },
    Peer {
        name: "mosquitto",
        package: "mosquitto",
        protocol: Protocol::Mqtt,
        program: "mosquitto",
        version: "-h",
        // Without a file it listens on loopback alone and lets everybody in.
        arguments: |port| words(&format!("-p {port}")),
    },
    Peer {
        name: "redis",
        package: "redis-server",
        protocol: Protocol::Redis,
        program: "redis-server",
        version: "--version",
        arguments: |port| {
            let mut all = words(&format!("--bind 127.0.0.1 --port {port} --appendonly no --save"));
            all.push(String::new());
            all
        },
    },
];

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

impl Peer {
    /// The first line of what it says of itself; `None` if it is not there.
    pub(crate) fn version(&self) -> Option<String> {
        let said = self.command().arg(self.version).output().ok()?;
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        text.lines().next().map(str::to_owned)
    }

    /// The program, also where servers are and a user's search path does not look.
    fn command(&self) -> Command {
        let at = PathBuf::from("/usr/sbin").join(self.program);
        Command::new(if at.exists() { at } else { self.program.into() })
    }
}

/// A server, for one run.
pub(crate) struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    pub(crate) fn start(peer: &Peer) -> Server {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
            listener.local_addr().expect("it is bound").port()
        };
        let mut command = peer.command();
        command.args((peer.arguments)(port)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", peer.name));
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Server { child, address };
        wait_until(peer.name, PATIENCE, || {
            let ended = server.child.try_wait().expect("it is our child");
            assert!(ended.is_none(), "{} ended instead of listening", peer.name);
            TcpStream::connect(address).is_ok()
        });
        server
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// CPU time of its threads, in nanoseconds.
    pub(crate) fn cpu_ns(&self) -> u64 {
        support::cpu_ns_of(&self.child.id().to_string(), |_| true)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        assert!(ended.is_ok() || thread::panicking(), "a server could not be ended: {ended:?}");
    }
}
