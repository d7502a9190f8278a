//! Pauses at random, wherever a thread takes up what another has left: they show who relies on how
//! fast the relay is. A busy machine stops threads as well, but seldom where it hurts.
//!
//! Only a relay that is built with `--cfg landline_pauses` has them, as `make pauses` does;
//! everywhere else [`point`] is empty.

/// What pauses where `LANDLINE_PAUSES` does not say it: so many of 1,000 points, up to so many
/// milliseconds.
#[cfg(landline_pauses)]
const USUAL: [u64; 2] = [30, 120];

/// Where a thread may be stopped for a while. Waits for nothing unless it is built to.
#[cfg(not(landline_pauses))]
#[inline(always)]
pub fn point() {}

/// Where a thread is stopped for a while, now and then. Waits for nothing but the time; a caller
/// holds no lock.
#[cfg(landline_pauses)]
pub fn point() {
    use std::{sync::LazyLock, time::Duration};

    use crate::base::{lock, random};

    static PAUSES: LazyLock<[u64; 2]> = LazyLock::new(|| {
        let Ok(said) = std::env::var("LANDLINE_PAUSES") else { return USUAL };
        let numbers = said.split_once(':').map(|(often, long)| [often.parse(), long.parse()]);
        match numbers {
            Some([Ok(often), Ok(long)]) => [often, long],
            _ => panic!("LANDLINE_PAUSES={said} is not so many of 1,000 and a time, as in 30:120"),
        }
    });
    lock::assert_none_held();
    let [often, long] = *PAUSES;
    if random::below(1_000) < often {
        let pause = Duration::from_millis(1 + random::below(long));
        _ = crossbeam::channel::never::<()>().recv_timeout(pause);
    }
}

#[cfg(all(test, landline_pauses))]
mod tests {
    use crate::base::clock::Clock;

    #[test]
    fn some_points_pause() {
        let clock = Clock::default();
        let begin = clock.now();
        (0..1_000).for_each(|_| super::point());
        assert!(100 <= clock.now().duration_since(begin).as_millis());
    }
}
