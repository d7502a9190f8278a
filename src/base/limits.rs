//! Hard limits. Configuration moves inside them; the relations between them are checked here, by
//! the compiler.

use std::{num::NonZeroUsize, time::Duration};

/// Longest topic name, state key or pattern, in bytes of UTF-8.
pub const NAME_BYTES_MAX: usize = 255;
/// Longest user or consumer name, in bytes.
pub const USER_BYTES_MAX: usize = 128;
/// Longest idempotency key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;
/// Longest event name, in bytes.
pub const EVENT_NAME_BYTES_MAX: usize = 128;
/// Deepest nesting of arrays and objects in a message.
pub const JSON_DEPTH_MAX: usize = 32;
/// Most events in one `history` reply.
pub const HISTORY_EVENTS_MAX: u64 = 1_000;
/// Bytes after which a `history` reply stops, except that its first event is always whole.
pub const HISTORY_BYTES_MAX: usize = 1024 * 1024;
/// Most topics that the `positions` of one pattern subscription may list.
pub const POSITIONS_MAX: usize = 10_000;

/// Most topics of one stream of server-sent events: the id of each event has a place for all.
pub const STREAM_TOPICS_MAX: usize = 512;
/// Most bytes that one topic takes in such an id.
pub const MARK_BYTES_MAX: usize = 25;

/// Largest `info` of a presence, in bytes of JSON.
pub const INFO_BYTES_MAX: usize = 1_024;
/// Longest life of a key that expires: a year.
pub const TTL_MS_MAX: u64 = 365 * 86_400_000;

/// Events that may be sent and not acknowledged where a subscription does not say.
pub const ACK_WINDOW_DEFAULT: u64 = 256;
/// Most events that a subscription may ask to be sent and not acknowledged.
pub const ACK_WINDOW_MAX: u64 = 65_536;

/// Bytes that one commit takes from the topics that are in a hurry, and a little more.
pub const COMMIT_BYTES: u64 = 4 * 1024 * 1024;
/// Bytes of events that the operating system alone may have, before they are committed.
pub const WRITTEN_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What an event that waits for the disk costs beside its frame: whoever waits for the answer.
pub const WAITER_BYTES: u64 = 64;
/// Bytes that the answer to a publish takes at most.
pub const PUBLISHED_BYTES: usize = 160;
/// Pages of history that one writer may have asked for.
pub const PAGES_PER_WRITER: usize = 8;

/// Largest HTTP head, request line included, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Most header fields in one HTTP request.
pub const HEADERS_MAX: usize = 64;

/// Stack of a connection's reader. Measured high-water: `docs/testing.md`.
pub const READER_STACK_BYTES: usize = if cfg!(debug_assertions) { 512 * 1024 } else { 256 * 1024 };
/// Stack of every other thread.
pub const WORKER_STACK_BYTES: usize = 512 * 1024;
/// Longest thread name Linux keeps; a longer one loses its tail, which is where the number is.
pub const THREAD_NAME_BYTES_MAX: usize = 15;
/// Memory mappings that one thread takes: stack, guard, alternative signal stack and its guard.
pub const MAPPINGS_PER_THREAD: u64 = 4;

/// Bytes of one topic that a writer hands to a connection before it looks at the others.
pub const TURN_BYTES: usize = 128 * 1024;
/// Commands that a writer takes before it writes.
pub const COMMANDS_PER_TURN: usize = 1_024;
/// Most bytes a log keeps in one piece of memory, unless a single frame is larger.
pub const SEGMENT_BYTES: usize = 64 * 1024;

/// How long a connection that said goodbye may take to close its side.
pub const CLOSE_GRACE: Duration = Duration::from_secs(3);

/// Workers of a `bus::Pool` where nobody says how many.
pub const BUS_WORKERS_DEFAULT: NonZeroUsize = NonZeroUsize::new(2).expect("two is not zero");
/// How long a `bus::Pool` that nobody stopped may take to run its jobs when it is dropped.
pub const POOL_DROP_LIMIT: Duration = Duration::from_secs(1);

// A browser sends the id back in a header field, beside the others.
const _: () = assert!(STREAM_TOPICS_MAX * MARK_BYTES_MAX <= HEAD_BYTES_MAX - 3 * 1024);
// A reply of any size must fit into an outbox that is empty.
const _: () = assert!(SEGMENT_BYTES <= TURN_BYTES);
const _: () = assert!(HISTORY_EVENTS_MAX <= 1_000);
