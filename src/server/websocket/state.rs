//! State and presence, as one connection's reader handles them.

use std::sync::Arc;

use super::Session;
use crate::{
    base::limits::PUBLISHED_BYTES,
    name::Filter,
    server::{
        connection::Publisher,
        state::Which,
        sys,
        writer::{Command, UnwatchOrder, WatchOrder},
    },
    state::{Change, Settle},
    wire::{
        self,
        codes::Code,
        request::{Refusal, StateRequest},
        state::StatePosition,
    },
};

impl Session {
    #[inline(never)]
    pub(super) fn handle_state(
        &mut self,
        id: Option<u64>,
        request: StateRequest<'_>,
    ) -> Result<(), Refusal> {
        match request {
            StateRequest::Set { key, value, if_version, ttl_ms } => {
                let value = Some(value);
                self.change(id, Change { key: &key, value, if_version, ttl_ms, user: None })
            }
            StateRequest::Delete { key, if_version } => {
                let change =
                    Change { key: &key, value: None, if_version, ttl_ms: None, user: None };
                self.change(id, change)
            }
            StateRequest::Get { filter, after, limit } => {
                self.values(id, &filter, after.as_deref(), limit);
                Ok(())
            }
            StateRequest::Watch { filter, from } => self.watch(id, filter, from),
            StateRequest::Unwatch { filter } => self.unwatch(id, filter),
            StateRequest::Join { topic, info } => self.join(id, &topic, info),
            StateRequest::Leave { topic } => self.leave_topic(id, &topic),
        }
    }

    fn change(&mut self, id: Option<u64>, change: Change<'_>) -> Result<(), Refusal> {
        let user = self.user_json.clone();
        let change = Change { user: user.as_deref(), ..change };
        let shared = Arc::clone(&self.line.shared);
        if !shared.state.shared.is_durable() {
            let (stored, _) = shared.change_state(&change, None)?;
            if let Some(id) = id {
                self.line.reply(|out| wire::state::stored(out, id, &stored));
            }
            return Ok(());
        }
        if !shared.vault.has_room() {
            self.line.tell();
        }
        self.line.make_room();
        let promised = if id.is_some() { PUBLISHED_BYTES } else { 0 };
        if !self.line.connection.outbox.promise(promised) {
            // The last word has been said: nobody would hear that it is stored.
            return Ok(());
        }
        let publisher = Publisher::of(&self.line, &mut self.publisher) as Arc<dyn Settle>;
        let done = shared.change_state(&change, Some((&publisher, id)));
        if done.is_err() {
            // The answer is an error, which goes the usual way.
            self.line.connection.outbox.keep_promise(promised, |_| {});
            self.line.connection.flush();
        }
        done.map(drop)
    }

    fn values(&mut self, id: Option<u64>, filter: &Filter, after: Option<&str>, limit: u64) {
        let (at, values, next) = self.line.shared.values(filter, after, limit);
        self.line.reply(|out| wire::state::values(out, id, &at, &values, next.as_deref()));
    }

    pub(in crate::server) fn watch(
        &mut self,
        request: Option<u64>,
        filter: Filter,
        from: Option<StatePosition>,
    ) -> Result<(), Refusal> {
        let max = self.line.config().connections.max_subscriptions;
        if max <= self.watches.len() && !self.watches.contains(&filter) {
            let message = format!("this connection already has {max} watches, which is its limit");
            return Err(Refusal::new(Code::LimitExceeded, message));
        }
        // The reply comes from the writer, in order with what follows it.
        self.line.make_room();
        let (connection, writer) = (self.line.connection.id, self.line.connection.writer);
        let which = Which::of(filter.as_str());
        self.line.shared.state.space(which).follow(writer);
        if self.watches.insert(filter.clone()) && sys::is_about(filter.as_str()) {
            self.line.shared.begin_sys();
        }
        let order = WatchOrder { connection, request, filter, from };
        self.line.command(Command::Watch(which, Box::new(order)));
        Ok(())
    }

    fn unwatch(&mut self, request: Option<u64>, filter: Filter) -> Result<(), Refusal> {
        if !self.watches.remove(&filter) {
            let message = format!("this connection does not watch {filter}");
            return Err(Refusal {
                field: Some("pattern"),
                ..Refusal::new(Code::NotFound, message)
            });
        }
        self.line.make_room();
        self.end_if_sys(&filter);
        let connection = self.line.connection.id;
        let which = Which::of(filter.as_str());
        let order = UnwatchOrder { connection, request, filter };
        self.line.command(Command::Unwatch(which, Box::new(order)));
        Ok(())
    }

    /// Forgets all watches; the writer does so by itself.
    pub(super) fn leave_watches(&mut self) {
        for filter in std::mem::take(&mut self.watches) {
            self.end_if_sys(&filter);
        }
    }

    fn end_if_sys(&self, filter: &Filter) {
        if sys::is_about(filter.as_str()) {
            self.line.shared.end_sys();
        }
    }
}
