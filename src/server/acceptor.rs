//! The thread that accepts connections of one listener.
//!
//! # Threads
//!
//! `accept-<n>`, one per listener. It waits in `accept`; shutting the listener down ends it.
//!
//! # Locks
//!
//! The roster, for one insertion.

use std::{
    collections::VecDeque,
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use crate::{
    base::{backoff::Backoff, limits::READER_STACK_BYTES, pause, sync::atomic::Ordering},
    http::response::TOO_MANY_CONNECTIONS,
    metrics::labels::{Closed, Refused},
    server::{
        connection::{Birth, Connection},
        reader,
        relay::{Shared, grace_deadline_ms},
        writer::Command,
    },
};

/// Connections that may wait to be accepted. The default of 128 costs seconds under a connect
/// storm: the kernel drops what is beyond it and the clients try again a second later.
const BACKLOG: i32 = 4_096;
/// Turned-away connections that are kept until their clients have read why.
pub(crate) const TURNED_AWAY_MAX: usize = 32;

/// Binds a listener to `address`, a `host:port` whose host may be a name.
///
/// # Errors
///
/// The name does not resolve, or none of its addresses can be bound.
pub(crate) fn bind(address: &str) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in address.to_socket_addrs()? {
        match bind_to(address) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        // One listener for both families where the machine has them.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until the listener is shut down.
pub(crate) fn run(shared: &Arc<Shared>, listener: &TcpListener) {
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_secs(1));
    let mut turned_away = VecDeque::new();
    while !shared.stop.is_raised() {
        match listener.accept() {
            Ok((socket, peer)) => {
                pause::point();
                backoff.reset();
                admit(shared, socket, peer, &mut turned_away);
            }
            Err(_) if shared.stop.is_raised() => return,
            Err(error) if is_about_the_peer(&error) => {}
            Err(error) => {
                // Out of descriptors or memory: those who wait stay in the backlog meanwhile.
                shared.metrics.accept_errors.add(1);
                if let Some(suppressed) = shared.accept_errors.allow(shared.clock.uptime_ms()) {
                    log::warn!("cannot accept error=\"{error}\" suppressed={suppressed}");
                }
                turned_away.clear();
                if shared.stop.wait(backoff.delay()) {
                    return;
                }
            }
        }
    }
}

/// Errors of `accept` that concern one connection that is gone already (accept(2)).
fn is_about_the_peer(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, TimedOut};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | TimedOut)
        || matches!(error.raw_os_error(), Some(71 | 92 | 64 | 95 | 100 | 101 | 112 | 113 | 1))
}

fn admit(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    turned_away: &mut VecDeque<TcpStream>,
) {
    shared.metrics.accepted.add(1);
    if shared.connections_max <= shared.roster.len() as u64 {
        return turn_away(shared, socket, Refused::Limit, turned_away);
    }
    prepare(&socket);
    let connection = introduce(shared, socket, peer);
    let (id, now_ms) = (connection.id, connection.opened_ms);
    let body = {
        let (shared, connection) = (Arc::clone(shared), Arc::clone(&connection));
        move || reader::run(&shared, &connection)
    };
    let name = format!("conn-{}", id % 10_000_000_000);
    if let Err(error) = shared.crew.spawn(name, READER_STACK_BYTES, body) {
        shared.metrics.refused.add(Refused::Thread, 1);
        if let Some(suppressed) = shared.accept_errors.allow(now_ms) {
            log::warn!("cannot start a reader error=\"{error}\" suppressed={suppressed}");
        }
        // The keeper must not cut it before the writer has said it; the writer drops it then.
        connection.finish(Closed::Deadline, grace_deadline_ms(now_ms), |out| {
            out.extend_from_slice(TOO_MANY_CONNECTIONS);
        });
        connection.command(Command::Detach { connection: id });
    }
}

/// Makes a connection, and makes it known to everybody but its reader.
pub(crate) fn introduce(
    shared: &Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
) -> Arc<Connection> {
    // Relaxed: an id is only unique, it orders nothing.
    let id = shared.next_connection.fetch_add(1, Ordering::Relaxed);
    let writer = usize::try_from(id % shared.writers.len() as u64).unwrap_or(0);
    let (_, config) = shared.config();
    let now_ms = shared.clock.uptime_ms();
    let timeout = config.connections.handshake_timeout;
    let deadline_ms = now_ms + u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX / 2);
    let handle = shared.writers[writer].clone();
    let birth = Birth { id, peer, socket, writer, handle, now_ms, deadline_ms };
    let connection = Arc::new(Connection::new(birth));
    shared.roster.insert(&connection);
    connection.command(Command::Attach(Arc::clone(&connection)));
    shared.watch(&connection, now_ms);
    connection
}

/// Socket options that every connection gets. None of them is vital: an error leaves the default.
fn prepare(socket: &TcpStream) {
    drop(socket.set_nodelay(true));
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3);
    drop(SockRef::from(socket).set_tcp_keepalive(&keepalive));
}

/// Answers a connection beyond the limit without giving it a thread.
fn turn_away(
    shared: &Shared,
    socket: TcpStream,
    reason: Refused,
    turned_away: &mut VecDeque<TcpStream>,
) {
    shared.metrics.refused.add(reason, 1);
    // What does not fit into a fresh socket's buffer is not worth a thread.
    _ = send(&socket, TOO_MANY_CONNECTIONS, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
    drop(socket.shutdown(Shutdown::Write));
    // Closing now would reset the connection if the request is still on its way, and the client
    // would not see the answer.
    turned_away.push_back(socket);
    if TURNED_AWAY_MAX < turned_away.len()
        && let Some(oldest) = turned_away.pop_front()
    {
        let mut nowhere = [0; 4096];
        _ = recv(&oldest, &mut nowhere, RecvFlags::DONTWAIT);
    }
}
