//! A network that fails by script: a TCP proxy that cuts, stalls, trickles, flips bits, or leaves
//! the relay with a connection whose other end is gone.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::Mutex;

use super::{
    dice::Dice,
    peer::{is_timeout, reset},
    wait::{LIMIT, pause},
};

/// Time after which a pump looks at the mode again.
const STEP: Duration = Duration::from_millis(5);

/// What the proxy does with bytes, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Passes them on.
    Pass,
    /// Keeps them, and reads no more.
    Stall,
    /// Passes one byte every millisecond.
    Trickle,
    /// Passes them on, some with another bit, as [`Damage`] says.
    Corrupt,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::Pass, Mode::Stall, Mode::Trickle, Mode::Corrupt];
}

/// Which bytes [`Mode::Corrupt`] changes. They depend on the seed, on how many connections came
/// before and on how many bytes of their direction were passed in this mode, and on nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    pub seed: u64,
    /// One byte of so many.
    pub one_in: u64,
    pub way: Way,
}

/// The directions in which bytes are changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToRelay,
    ToClient,
    Both,
}

/// Flips bits in one direction of one connection.
struct Flipper {
    dice: Dice,
    one_in: u64,
    /// Bytes that still pass as they are.
    left: u64,
}

impl Flipper {
    fn new(damage: Damage, link: u64, way: Way) -> Option<Flipper> {
        let Damage { seed, one_in, way: damaged } = damage;
        let applies = damaged == way || damaged == Way::Both;
        let mut dice = Dice(seed);
        let mut dice = Dice(dice.below(u64::MAX) ^ (link << 1 | u64::from(way == Way::ToRelay)));
        let left = dice.below(2 * one_in);
        applies.then_some(Flipper { dice, one_in, left })
    }

    fn pass(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.left == 0 {
                *byte ^= 1 << self.dice.below(8);
                self.left = self.dice.below(2 * self.one_in);
            } else {
                self.left -= 1;
            }
        }
    }
}

pub struct Proxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    accept: Option<JoinHandle<()>>,
}

struct Shared {
    target: SocketAddr,
    mode: AtomicU8,
    damage: Damage,
    stop: AtomicBool,
    links: Mutex<Vec<Link>>,
    pumps: Mutex<Vec<JoinHandle<()>>>,
}

/// One proxied connection.
struct Link {
    client: TcpStream,
    relay: TcpStream,
    /// Set where the ends are to live and die on their own.
    severed: Arc<AtomicBool>,
}

impl Proxy {
    #[track_caller]
    #[must_use]
    pub fn start(target: SocketAddr) -> Proxy {
        Proxy::with(target, Mode::Pass, Damage { seed: 0, one_in: 1_000, way: Way::Both })
    }

    /// A proxy that flips bits from the first byte on.
    #[track_caller]
    #[must_use]
    pub fn corrupting(target: SocketAddr, damage: Damage) -> Proxy {
        Proxy::with(target, Mode::Corrupt, damage)
    }

    #[track_caller]
    fn with(target: SocketAddr, mode: Mode, damage: Damage) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let addr = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            target,
            mode: AtomicU8::new(mode as u8),
            damage,
            stop: AtomicBool::new(false),
            links: Mutex::new(Vec::new()),
            pumps: Mutex::new(Vec::new()),
        });
        let accept = thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                for (number, client) in (0..).zip(listener.incoming()) {
                    if shared.stop.load(Ordering::SeqCst) {
                        return;
                    }
                    shared.link(number, client.expect("accept"));
                }
            }
        });
        Proxy { addr, shared, accept: Some(accept) }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Resets every connection, at both ends.
    pub fn cut(&self) {
        for link in self.shared.links.lock().drain(..) {
            link.severed.store(true, Ordering::SeqCst);
            reset(&link.client);
            reset(&link.relay);
        }
    }

    /// Takes every connection away from its client; the relay's end stays as it is, and silent.
    pub fn half_open(&self) {
        for link in self.shared.links.lock().iter() {
            link.severed.store(true, Ordering::SeqCst);
            reset(&link.client);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.cut();
        drop(TcpStream::connect(self.addr));
        let accept = self.accept.take().map(JoinHandle::join);
        let pumps = std::mem::take(&mut *self.shared.pumps.lock());
        let ended = pumps.into_iter().map(JoinHandle::join).chain(accept).all(|end| end.is_ok());
        assert!(ended || thread::panicking(), "a thread of the proxy panicked");
    }
}

impl Shared {
    fn link(self: &Arc<Shared>, number: u64, client: TcpStream) {
        let Ok(relay) = TcpStream::connect(self.target) else {
            reset(&client);
            return;
        };
        let severed = Arc::new(AtomicBool::new(false));
        let both = [(&client, &relay, Way::ToRelay), (&relay, &client, Way::ToClient)];
        let ways = both.map(|(from, to, way)| {
            let from = from.try_clone().expect("clone a socket");
            (from, to.try_clone().expect("clone a socket"), way)
        });
        // Before a byte passes: who has got one can rely on it that a cut finds this connection.
        self.links.lock().push(Link { client, relay, severed: Arc::clone(&severed) });
        for (from, to, way) in ways {
            let flipper = Flipper::new(self.damage, number, way);
            let (shared, severed) = (Arc::clone(self), Arc::clone(&severed));
            let pump = thread::spawn(move || shared.pump(&from, &to, &severed, flipper));
            self.pumps.lock().push(pump);
        }
    }

    /// Moves bytes until one end is gone.
    fn pump(
        &self,
        mut from: &TcpStream,
        mut to: &TcpStream,
        severed: &AtomicBool,
        mut flipper: Option<Flipper>,
    ) {
        from.set_read_timeout(Some(STEP)).ok();
        to.set_write_timeout(Some(LIMIT)).ok();
        let mut bytes = [0; 16 * 1024];
        loop {
            if self.stop.load(Ordering::SeqCst) || severed.load(Ordering::SeqCst) {
                return;
            }
            let mode = Mode::ALL[usize::from(self.mode.load(Ordering::SeqCst))];
            if mode == Mode::Stall {
                pause(STEP);
                continue;
            }
            let room = if mode == Mode::Trickle { 1 } else { bytes.len() };
            let moved = match from.read(&mut bytes[..room]) {
                Ok(0) => false,
                Ok(count) => {
                    if let (Mode::Corrupt, Some(flipper)) = (mode, &mut flipper) {
                        flipper.pass(&mut bytes[..count]);
                    }
                    to.write_all(&bytes[..count]).is_ok()
                }
                Err(error) => is_timeout(&error),
            };
            if !moved {
                if !severed.load(Ordering::SeqCst) {
                    to.shutdown(Shutdown::Write).ok();
                }
                return;
            }
            if mode == Mode::Trickle {
                pause(Duration::from_millis(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listener that the proxy leads to, a client, and the relay's end of its connection.
    fn connected() -> (Proxy, TcpStream, TcpStream) {
        let relay = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy::start(relay.local_addr().unwrap());
        let client = TcpStream::connect(proxy.addr()).unwrap();
        let (end, _) = relay.accept().unwrap();
        for stream in [&client, &end] {
            stream.set_read_timeout(Some(LIMIT)).unwrap();
        }
        (proxy, client, end)
    }

    /// Whether the other side ended the connection, rather than being silent.
    fn is_over(read: io::Result<usize>) -> bool {
        match read {
            Ok(count) => count == 0,
            Err(error) => !is_timeout(&error),
        }
    }

    fn echo(mut client: &TcpStream, mut end: &TcpStream) -> [u8; 4] {
        client.write_all(b"ping").unwrap();
        let mut bytes = [0; 4];
        end.read_exact(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn bytes_pass_at_full_speed_and_one_at_a_time() {
        let (proxy, client, end) = connected();

        assert_eq!(&echo(&client, &end), b"ping");
        proxy.set(Mode::Trickle);
        assert_eq!(&echo(&end, &client), b"ping");
    }

    #[test]
    fn a_corrupting_proxy_flips_the_same_bits_for_the_same_seed_however_bytes_come() {
        let sent = [0_u8; 5_000];
        let got = |seed, piece| {
            let relay = TcpListener::bind("127.0.0.1:0").unwrap();
            let damage = Damage { seed, one_in: 100, way: Way::ToRelay };
            let proxy = Proxy::corrupting(relay.local_addr().unwrap(), damage);
            let mut client = TcpStream::connect(proxy.addr()).unwrap();
            let (mut end, _) = relay.accept().unwrap();
            let mut bytes = [0; 5_000];
            for (out, taken) in sent.chunks(piece).zip(bytes.chunks_mut(piece)) {
                client.write_all(out).unwrap();
                end.read_exact(taken).unwrap();
            }
            // The other way nothing changes.
            end.write_all(&sent).unwrap();
            let mut back = [1; 5_000];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back, sent);
            bytes
        };

        let first = got(7, 5_000);
        let flipped: Vec<u8> = first.iter().copied().filter(|byte| *byte != 0).collect();
        assert!((25..=100).contains(&flipped.len()), "{} bytes of 5,000", flipped.len());
        assert!(flipped.iter().all(|byte| byte.count_ones() == 1));
        assert_eq!(got(7, 77), first);
        assert_ne!(got(8, 5_000), first);
    }

    #[test]
    fn a_stalled_proxy_keeps_bytes_until_it_goes_on() {
        let (proxy, mut client, mut end) = connected();
        echo(&client, &end);
        proxy.set(Mode::Stall);
        pause(STEP * 4);

        client.write_all(b"late").unwrap();
        end.set_read_timeout(Some(STEP * 10)).unwrap();
        assert!(is_timeout(&end.read(&mut [0; 4]).unwrap_err()));
        proxy.set(Mode::Pass);
        end.set_read_timeout(Some(LIMIT)).unwrap();
        let mut bytes = [0; 4];
        end.read_exact(&mut bytes).unwrap();

        assert_eq!(&bytes, b"late");
    }

    #[test]
    fn a_cut_ends_both_ends() {
        let (proxy, mut client, mut end) = connected();
        echo(&client, &end);

        proxy.cut();

        for stream in [&mut client, &mut end] {
            assert!(is_over(stream.read(&mut [0; 4])));
        }
    }

    #[test]
    fn a_half_open_connection_is_silent_for_the_relay() {
        let (proxy, mut client, mut end) = connected();
        echo(&client, &end);

        proxy.half_open();

        assert!(is_over(client.read(&mut [0; 4])));
        end.set_read_timeout(Some(STEP * 10)).unwrap();
        assert!(is_timeout(&end.read(&mut [0; 4]).unwrap_err()), "the relay's end is open");
    }
}
