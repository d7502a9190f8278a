//! The rules between settings: what no single value can break.
//!
//! # Place
//!
//! After the layers, on their outcome. A rule is skipped where one of its values was wrong already:
//! what it would say about the value in its place would mislead.

use crate::config::{
    address,
    layers::Draft,
    settings::Config,
    table::{TOPICS, key},
    units,
};
use crate::name::Filter;

/// Room in the outbox, beside the payload, for what a reply says about it: names, position, time.
const REPLY_BYTES: usize = 4 << 10;

/// Adds what breaks a rule to the problems of `draft`, and what has no effect to its warnings.
pub(super) fn check(draft: &mut Draft) {
    let mut problems = Vec::new();
    check_times(draft, &mut problems);
    check_sizes(draft, &mut problems);
    check_listeners(draft, &mut problems);
    check_store(draft, &mut problems);
    draft.problems.append(&mut problems);
    warn_of_hidden_rules(draft);
    warn_of_idle_store(draft);
}

fn check_times(draft: &Draft, problems: &mut Vec<String>) {
    let connections = &draft.config.connections;
    if draft.is_settled(&["heartbeat", "heartbeat_timeout"])
        && connections.heartbeat_timeout <= connections.heartbeat
    {
        problems.push(format!(
            "{}, {}: heartbeat must be shorter than heartbeat_timeout, or every quiet connection \
             is taken for dead",
            told(draft, "heartbeat"),
            told(draft, "heartbeat_timeout"),
        ));
    }
}

fn check_sizes(draft: &Draft, problems: &mut Vec<String>) {
    let max_message = draft.config.connections.max_message;
    let message_bytes = u64::try_from(max_message).unwrap_or(u64::MAX);
    let topics = &draft.config.topics;
    if draft.is_settled(&["max_outbox", "max_message"])
        && draft.config.connections.max_outbox < max_message + REPLY_BYTES
    {
        problems.push(format!(
            "{}, {}: max_outbox must be at least {} larger than max_message, or a reply with the \
             largest event does not fit",
            told(draft, "max_outbox"),
            told(draft, "max_message"),
            units::write_size(REPLY_BYTES as u64),
        ));
    }
    for (name, bytes) in
        [("max_bytes", topics.default_policy.max_bytes), ("max_memory", topics.max_memory)]
    {
        if draft.is_settled(&[name, "max_message"]) && bytes < message_bytes {
            problems.push(format!(
                "{}, {}: {name} must be at least max_message, or the largest event cannot be kept",
                told(draft, name),
                told(draft, "max_message"),
            ));
        }
    }
    // A rule without its own max_bytes has the default's, which was checked above.
    for (rule, (_, own)) in topics.rules.iter().zip(&draft.rules) {
        let Some(origin) = own else { continue };
        if draft.is_settled(&["max_message"]) && rule.policy.max_bytes < message_bytes {
            problems.push(format!(
                "max_bytes of [[{TOPICS}]] {:?} is {:?} ({origin}), {}: max_bytes must be at least \
                 max_message, or the largest event cannot be kept",
                rule.filter.as_str(),
                units::write_size(rule.policy.max_bytes),
                told(draft, "max_message"),
            ));
        }
    }
}

fn check_listeners(draft: &Draft, problems: &mut Vec<String>) {
    let listen = &draft.config.listen;
    if !draft.is_settled(&["listen"]) {
        return;
    }
    for (index, entry) in listen.iter().enumerate() {
        if listen[..index].iter().any(|earlier| address::is_same(earlier, entry)) {
            problems.push(format!(
                "{}: {entry:?} is there twice, and an address can be listened on once",
                told(draft, "listen"),
            ));
        }
    }
    let open: Vec<_> = listen.iter().filter(|entry| !address::is_loopback(entry)).collect();
    if !open.is_empty() && draft.is_settled(&["allow_anonymous"]) && !draft.config.allow_anonymous {
        problems.push(format!(
            "{}, {}: other machines may reach {open:?}, and there is no authentication yet, so \
             everybody there could read and write everything; set allow_anonymous = true if that \
             is meant, or listen on 127.0.0.1",
            told(draft, "listen"),
            told(draft, "allow_anonymous"),
        ));
    }
}

fn check_store(draft: &Draft, problems: &mut Vec<String>) {
    let Config { store, topics, connections, .. } = &draft.config;
    if draft.is_settled(&["data_dir", "durable"])
        && store.data_dir.is_none()
        && topics.has_durable()
    {
        let rule = topics.rules.iter().zip(&draft.rules).find(|(rule, _)| rule.policy.durable);
        let what = match rule {
            Some((rule, (origin, _))) if !topics.default_policy.durable => {
                format!("durable of [[{TOPICS}]] {:?} is true ({origin})", rule.filter.as_str())
            }
            _ => told(draft, "durable"),
        };
        problems.push(format!(
            "{what}, {}: durable topics need a directory; set data_dir",
            told(draft, "data_dir"),
        ));
    }
    if draft.is_settled(&["data_dir", "durable_state"])
        && store.data_dir.is_none()
        && draft.config.state.durable
    {
        problems.push(format!(
            "{}, {}: a durable state needs a directory; set data_dir",
            told(draft, "durable_state"),
            told(draft, "data_dir"),
        ));
    }
    let message_bytes = u64::try_from(connections.max_message).unwrap_or(u64::MAX);
    if draft.is_settled(&["max_backlog", "max_message"]) && store.max_backlog < message_bytes {
        problems.push(format!(
            "{}, {}: max_backlog must be at least max_message, or the largest event cannot be \
             stored",
            told(draft, "max_backlog"),
            told(draft, "max_message"),
        ));
    }
}

fn warn_of_idle_store(draft: &mut Draft) {
    let Config { store, topics, state, .. } = &draft.config;
    if store.data_dir.is_some() && !topics.has_durable() && !state.durable {
        let warning = format!(
            "{}: no topic is durable, so nothing is kept there; set durable = true, at the top or \
             in a [[{TOPICS}]] table, or durable_state = true",
            told(draft, "data_dir"),
        );
        draft.warnings.push(warning);
    }
}

fn warn_of_hidden_rules(draft: &mut Draft) {
    let rules = &draft.config.topics.rules;
    for (index, (rule, (origin, _))) in rules.iter().zip(&draft.rules).enumerate() {
        let covering = rules[..index].iter().find(|earlier| covers(&earlier.filter, &rule.filter));
        if let Some(earlier) = covering {
            draft.warnings.push(format!(
                "{}: [[{TOPICS}]] {:?} is never used, because the earlier {:?} matches all of its \
                 topics and the first match decides",
                origin.place(),
                rule.filter.as_str(),
                earlier.filter.as_str(),
            ));
        }
    }
}

/// Whether `wide` matches every topic that `narrow` matches. May miss cases, never invents one.
fn covers(wide: &Filter, narrow: &Filter) -> bool {
    let (wide, narrow) = (wide.as_str(), narrow.as_str());
    // A pattern matches a reserved name only if it begins with '$' itself.
    if narrow.starts_with('$') && !wide.starts_with('$') {
        return false;
    }
    let mut narrow = narrow.split('/');
    for wanted in wide.split('/') {
        match (wanted, narrow.next()) {
            ("#", _) => return true,
            (_, None | Some("#")) => return false,
            ("+", Some(_)) => {}
            (wanted, Some(segment)) if wanted == segment => {}
            _ => return false,
        }
    }
    narrow.next().is_none()
}

/// A value with its name and origin.
fn told(draft: &Draft, name: &str) -> String {
    let value = key(name).map(|key| key.kind.written(&draft.config)).unwrap_or_default();
    format!("{name} is {value} ({})", draft.origin(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_covers_what_it_always_matches() {
        for (wide, narrow, expected) in [
            ("#", "a", true),
            ("#", "a/#", true),
            ("#", "+/b", true),
            ("a/#", "a", true),
            ("a/#", "a/b/#", true),
            ("a/+", "a/b", true),
            ("a/+", "a/+", true),
            ("a/b", "a/b", true),
            ("$sys/#", "$sys/a", true),
            ("#", "$sys/a", false),
            ("+/a", "$sys/a", false),
            ("a/+", "a/#", false),
            ("a/+", "a", false),
            ("a/+", "a/b/c", false),
            ("a/b", "a/+", false),
            ("a/b/#", "a/#", false),
            ("b/#", "a/#", false),
        ] {
            let (wide, narrow) = (Filter::parse(wide).unwrap(), Filter::parse(narrow).unwrap());
            assert_eq!(covers(&wide, &narrow), expected, "{wide} {narrow}");
        }
    }
}
