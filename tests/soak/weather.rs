//! Ways to the relay that fail by a script that a seed decides.

use std::{net::SocketAddr, time::Duration};

use crate::{
    support::{
        dice::Dice,
        proxy::{Mode, Proxy},
        wait::pause,
    },
    world::World,
};

/// Keeps way number `index` open and failing, until the clients are to settle.
pub fn blow(world: &World, index: usize, mut dice: Dice) {
    while world.runs() {
        let proxy = Proxy::start(world.relay);
        put(world, index, proxy.addr());
        for _ in 0..3 + dice.below(4) {
            if !world.runs() {
                break;
            }
            let (what, time) = match dice.below(8) {
                0 => {
                    proxy.cut();
                    ("faults: cut", 500)
                }
                1 => {
                    proxy.half_open();
                    ("faults: half-open", 500)
                }
                2 => {
                    proxy.set(Mode::Stall);
                    ("faults: stall", 6_000)
                }
                3 => {
                    proxy.set(Mode::Trickle);
                    ("faults: trickle", 2_000)
                }
                _ => ("calm", 2_000),
            };
            world.count(what, 1);
            pause(Duration::from_millis(100 + dice.below(time)));
            proxy.set(Mode::Pass);
        }
        // Its end cuts what goes through it.
    }
    world.detours.lock().clear();
}

fn put(world: &World, index: usize, addr: SocketAddr) {
    let mut detours = world.detours.lock();
    if detours.len() <= index {
        detours.resize(index + 1, addr);
    }
    detours[index] = addr;
}
