//! Publishing to durable topics, as one connection's reader does it.

use std::sync::Arc;

use crate::{
    base::limits::PUBLISHED_BYTES,
    metrics::labels::Transport,
    server::{connection::Publisher, line::Line},
    topic::{Confirm, Draft, Topic},
    wire::{reply, request::Refusal},
};

impl Publisher {
    /// Who hears of what a connection has stored; made when it is needed.
    pub(super) fn of(line: &Line, own: &mut Option<Arc<Publisher>>) -> Arc<Publisher> {
        Arc::clone(own.get_or_insert_with(|| {
            let (connection, shared) = (Arc::clone(&line.connection), Arc::clone(&line.shared));
            Arc::new(Publisher { connection, shared })
        }))
    }
}

/// Appends an event that nobody is to see, and whose publisher is not to be answered, before it is
/// as safe as its topic asks for. The committer does both.
#[inline(never)]
pub(super) fn publish_durable(
    line: &mut Line,
    publisher: &mut Option<Arc<Publisher>>,
    id: Option<u64>,
    topic: &mut Arc<Topic>,
    draft: &Draft<'_>,
) -> Result<(), Refusal> {
    let publisher = Publisher::of(line, publisher) as Arc<dyn Confirm>;
    if !line.shared.vault.has_room() {
        line.tell();
    }
    line.make_room();
    let promised = if id.is_some() { PUBLISHED_BYTES } else { 0 };
    if !line.connection.outbox.promise(promised) {
        // The last word has been said: nobody would hear that it is stored.
        return Ok(());
    }
    let done = line.shared.publish(topic, draft, line.now_ms(), Some((&publisher, id)));
    let is_pending = done.as_ref().is_ok_and(|done| done.is_pending);
    if !is_pending {
        let connection = &line.connection;
        connection.outbox.keep_promise(promised, |out| {
            if let (Ok(done), Some(id)) = (&done, id) {
                reply::published(out, id, &done.receipt);
            }
        });
        connection.flush();
    }
    if !done?.receipt.duplicate {
        line.has_news(topic, Transport::WebSocket, draft.data.len());
    }
    Ok(())
}
