//! What the operating system allows: descriptors, threads, mappings.
//!
//! A process that runs out of memory mappings while it starts a thread is aborted, so the limit of
//! connections is fitted to the machine before anybody connects.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{base::limits::MAPPINGS_PER_THREAD, server::acceptor::TURNED_AWAY_MAX};

/// Descriptors that are not connections: listeners, logs, bells, connections that were turned away,
/// and some in reserve.
const DESCRIPTORS_RESERVED: u64 = 64 + TURNED_AWAY_MAX as u64;
/// Mappings that are not stacks: the binary, the heap's arenas, libraries.
const MAPPINGS_RESERVED: u64 = 4_000;
/// Processes and threads of everything else.
const THREADS_RESERVED: u64 = 1_000;

/// What bounds the number of connections, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) name: &'static str,
    pub(crate) connections: u64,
}

/// Raises the soft limit of descriptors to the hard one, which needs no privilege.
pub(crate) fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Where it is refused the limit stays, and the bound below is computed from it.
        _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// The tightest bound that the operating system puts on connections.
pub(crate) fn tightest_bound() -> Option<Bound> {
    let descriptors = getrlimit(Resource::Nofile).current;
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    bounds(
        descriptors,
        number("/proc/sys/vm/max_map_count"),
        number("/proc/sys/kernel/pid_max"),
        number("/proc/sys/kernel/threads-max"),
    )
    .min_by_key(|bound| bound.connections)
}

fn bounds(
    descriptors: Option<u64>,
    mappings: Option<u64>,
    pids: Option<u64>,
    threads: Option<u64>,
) -> impl Iterator<Item = Bound> {
    let bound = |name, limit: Option<u64>, reserved: u64, each: u64| {
        let connections = limit?.saturating_sub(reserved) / each;
        Some(Bound { name, connections: connections.max(1) })
    };
    [
        bound("RLIMIT_NOFILE", descriptors, DESCRIPTORS_RESERVED, 1),
        bound("vm.max_map_count", mappings, MAPPINGS_RESERVED, MAPPINGS_PER_THREAD),
        bound("kernel.pid_max", pids, THREADS_RESERVED, 1),
        bound("kernel.threads-max", threads, THREADS_RESERVED, 1),
    ]
    .into_iter()
    .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tightest_of_the_limits_bounds_the_connections() {
        let tightest = |descriptors, mappings, pids, threads| {
            bounds(descriptors, mappings, pids, threads).min_by_key(|bound| bound.connections)
        };
        let bound = |name, connections| Some(Bound { name, connections });
        let all = tightest(Some(20_000), Some(65_530), Some(32_768), Some(192_730));
        assert_eq!(all, bound("vm.max_map_count", 15_382));
        assert_eq!(tightest(Some(1_024), Some(65_530), None, None), bound("RLIMIT_NOFILE", 928));
        assert_eq!(tightest(Some(10), None, None, None), bound("RLIMIT_NOFILE", 1));
        assert_eq!(tightest(None, None, None, None), None);
    }
}
