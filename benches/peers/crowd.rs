//! Subscribers that one thread reads for, and checks; and who publishes for them.

use std::{
    io::{ErrorKind, Read, Write},
    mem::MaybeUninit,
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::Duration,
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, Event, EventData, EventFlags},
};

use crate::{protocol::Protocol, support::PATIENCE};

const READ_BYTES: usize = 128 * 1024;
/// Subscribers that one turn reads for.
const READY_MAX: usize = 256;

pub(crate) struct Crowd {
    protocol: Protocol,
    epoll: OwnedFd,
    buffer: Vec<u8>,
    members: Vec<Member>,
    deliveries: u64,
    /// The numbers that came with the last turn.
    fresh: Vec<u64>,
}

struct Member {
    stream: TcpStream,
    /// The message that is next.
    next: u64,
    /// What came of it.
    part: Vec<u8>,
}

impl Crowd {
    /// Connects `count` subscribers, which all are subscribed when this returns.
    pub(crate) fn join(protocol: Protocol, server: SocketAddr, count: usize) -> Crowd {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("a descriptor is free");
        let member = |index: usize| {
            let mut stream = protocol.connect(server);
            protocol.subscribe(&mut stream);
            stream.set_nonblocking(true).expect("an open socket takes options");
            epoll::add(&epoll, &stream, EventData::new_u64(index as u64), EventFlags::IN)
                .expect("the socket is not there yet");
            Member { stream, next: 0, part: Vec::new() }
        };
        let members = (0..count).map(member).collect();
        let buffer = vec![0; READ_BYTES];
        Crowd { protocol, epoll, buffer, members, deliveries: 0, fresh: Vec::new() }
    }

    /// Waits for something to read, `wait` at most, and reads once from everybody who has
    /// something.
    pub(crate) fn turn(&mut self, wait: Duration) {
        self.fresh.clear();
        let timeout = Timespec::try_from(wait).expect("seconds at most");
        let mut ready = [const { MaybeUninit::<Event>::uninit() }; READY_MAX];
        let ready = match epoll::wait(&self.epoll, &mut ready, Some(&timeout)) {
            Ok((ready, _)) => ready,
            Err(rustix::io::Errno::INTR) => return,
            Err(error) => panic!("cannot wait for the subscribers: {error}"),
        };
        assert!(!ready.is_empty() || wait < PATIENCE, "nothing came for {wait:?}");
        for event in ready {
            let index = usize::try_from(event.data.u64()).expect("an index was put in");
            self.members[index].read(self.protocol, &mut self.buffer, &mut self.fresh);
        }
        self.deliveries += self.fresh.len() as u64;
    }

    /// The numbers of what came with the last turn.
    pub(crate) fn fresh(&self) -> impl Iterator<Item = u64> {
        self.fresh.iter().copied()
    }

    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// How many messages the last of them has.
    pub(crate) fn slowest(&self) -> u64 {
        self.members.iter().map(|member| member.next).min().unwrap_or(0)
    }
}

impl Member {
    fn read(&mut self, protocol: Protocol, buffer: &mut [u8], fresh: &mut Vec<u64>) {
        let had = self.part.len();
        buffer[..had].copy_from_slice(&self.part);
        let got = match self.stream.read(&mut buffer[had..]) {
            Ok(0) => panic!("the server closed a subscriber"),
            Ok(got) => got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("a subscriber cannot read: {error}"),
        };
        let mut rest = &buffer[..had + got];
        while let Some((number, length)) = protocol.message(rest) {
            assert_eq!(number, self.next, "a message is missing, or came again");
            self.next += 1;
            fresh.push(number);
            rest = &rest[length..];
        }
        self.part.clear();
        self.part.extend_from_slice(rest);
    }
}

/// A connection that publishes the numbers from 0 on.
pub(crate) struct Publisher {
    protocol: Protocol,
    stream: TcpStream,
    published: u64,
    bytes: Vec<u8>,
}

impl Publisher {
    pub(crate) fn new(protocol: Protocol, server: SocketAddr) -> Publisher {
        let stream = protocol.connect(server);
        Publisher { protocol, stream, published: 0, bytes: Vec::new() }
    }

    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Publishes the next `count` messages.
    pub(crate) fn publish(&mut self, count: u64) {
        self.bytes.clear();
        for _ in 0..count {
            self.protocol.push_publish(&mut self.bytes, self.published);
            self.published += 1;
        }
        self.stream.write_all(&self.bytes).expect("the server reads");
        if self.protocol == Protocol::Redis {
            self.take_answers();
        }
    }

    /// Takes the answers that are there, so that they do not fill the connection.
    fn take_answers(&mut self) {
        let mut answers = [0; 4_096];
        self.stream.set_nonblocking(true).expect("an open socket takes options");
        while matches!(self.stream.read(&mut answers), Ok(1..)) {}
        self.stream.set_nonblocking(false).expect("an open socket takes options");
    }
}
