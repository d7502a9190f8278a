//! A bounded channel with the interface of crossbeam's, as far as lanes and the stop signal use it:
//! a queue behind one lock, so that who comes when is the checker's choice.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

pub use crossbeam::channel::{
    RecvError, RecvTimeoutError, SendError, SendTimeoutError, TryRecvError, TrySendError,
};

use super::{Condvar, Mutex};
use crate::base::sync::Arc;

struct Shared<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
}

struct Queue<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

pub struct Sender<T>(Arc<Shared<T>>);

pub struct Receiver<T>(Arc<Shared<T>>);

/// A channel of `capacity`; one of 0 carries nothing, and only tells that its other end is gone.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let queue = Queue { messages: VecDeque::new(), capacity, senders: 1, receivers: 1 };
    let shared = Arc::new(Shared { queue: Mutex::new(queue), changed: Condvar::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Sender<T> {
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        let mut queue = self.0.queue.lock();
        if queue.receivers == 0 {
            return Err(TrySendError::Disconnected(message));
        }
        if queue.capacity <= queue.messages.len() {
            return Err(TrySendError::Full(message));
        }
        queue.messages.push_back(message);
        drop(queue);
        self.0.changed.notify_all();
        Ok(())
    }

    pub fn send(&self, mut message: T) -> Result<(), SendError<T>> {
        loop {
            match self.try_send(message) {
                Ok(()) => return Ok(()),
                Err(TrySendError::Disconnected(lost)) => return Err(SendError(lost)),
                Err(TrySendError::Full(back)) => message = back,
            }
            let mut queue = self.0.queue.lock();
            while queue.capacity <= queue.messages.len() && 0 < queue.receivers {
                self.0.changed.wait(&mut queue);
            }
        }
    }

    pub fn send_timeout(&self, message: T, _limit: Duration) -> Result<(), SendTimeoutError<T>> {
        self.send(message).map_err(|lost| SendTimeoutError::Disconnected(lost.into_inner()))
    }

    pub fn len(&self) -> usize {
        self.0.queue.lock().messages.len()
    }
}

impl<T> Receiver<T> {
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        let mut queue = self.0.queue.lock();
        match queue.messages.pop_front() {
            Some(message) => {
                drop(queue);
                self.0.changed.notify_all();
                Ok(message)
            }
            None if queue.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    pub fn recv(&self) -> Result<T, RecvError> {
        loop {
            match self.try_recv() {
                Ok(message) => return Ok(message),
                Err(TryRecvError::Disconnected) => return Err(RecvError),
                Err(TryRecvError::Empty) => {}
            }
            let mut queue = self.0.queue.lock();
            while queue.messages.is_empty() && 0 < queue.senders {
                self.0.changed.wait(&mut queue);
            }
        }
    }

    pub fn recv_timeout(&self, _limit: Duration) -> Result<T, RecvTimeoutError> {
        self.recv().map_err(|RecvError| RecvTimeoutError::Disconnected)
    }

    pub fn recv_deadline(&self, _deadline: Instant) -> Result<T, RecvTimeoutError> {
        self.recv().map_err(|RecvError| RecvTimeoutError::Disconnected)
    }

    pub fn len(&self) -> usize {
        self.0.queue.lock().messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.queue.lock().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.queue.lock().receivers += 1;
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.queue.lock().senders -= 1;
        self.0.changed.notify_all();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        queue.receivers -= 1;
        // As crossbeam's: what nobody can receive any more is dropped with the last receiver.
        let lost = if queue.receivers == 0 {
            std::mem::take(&mut queue.messages)
        } else {
            VecDeque::new()
        };
        drop(queue);
        self.0.changed.notify_all();
        drop(lost);
    }
}
