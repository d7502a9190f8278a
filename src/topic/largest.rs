//! Which of many sizes is the largest, while they change.
//!
//! Pure data: the sizes are asked for, never remembered for long. Building it is linear, and each
//! answer logarithmic, so that taking a little from each of many costs no look at all of them.

use std::collections::BinaryHeap;

/// Things by their sizes, the largest first. A thing is its index.
#[derive(Debug)]
pub(super) struct Largest {
    heap: BinaryHeap<(u64, usize)>,
}

/// The largest thing there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Top {
    pub(super) index: usize,
    pub(super) size: u64,
    /// About the size of the next one; 0 if there is none.
    pub(super) second: u64,
}

impl Largest {
    /// Things of these sizes, by their order. Those without a size are left out.
    pub(super) fn new(sizes: impl Iterator<Item = u64>) -> Self {
        let things = sizes.enumerate().map(|(index, size)| (size, index));
        Self { heap: things.filter(|(size, _)| 0 < *size).collect::<Vec<_>>().into() }
    }

    /// Takes the largest out, going by what `size` says now about those that seem to be. One that
    /// grew while it was not among them is found later.
    pub(super) fn take(&mut self, size: impl Fn(usize) -> u64) -> Option<Top> {
        while let Some((noted, index)) = self.heap.pop() {
            let size = size(index);
            let second = self.heap.peek().map_or(0, |(size, _)| *size);
            if size < noted && size < second {
                self.put(index, size);
            } else if 0 < size {
                return Some(Top { index, size, second });
            }
        }
        None
    }

    /// Puts back what was taken out, with its size now.
    pub(super) fn put(&mut self, index: usize, size: u64) {
        if 0 < size {
            self.heap.push((size, index));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    #[test]
    fn the_largest_comes_first_even_if_it_shrank_since() {
        let sizes = RefCell::new(vec![5, 9, 0, 7]);
        let mut largest = Largest::new(sizes.borrow().iter().copied());
        let mut take = || largest.take(|index| sizes.borrow()[index]);
        assert_eq!(take(), Some(Top { index: 1, size: 9, second: 7 }));
        sizes.borrow_mut()[3] = 4;
        assert_eq!(take(), Some(Top { index: 0, size: 5, second: 4 }));
        assert_eq!(take(), Some(Top { index: 3, size: 4, second: 0 }));
        assert_eq!(take(), None);
        assert_eq!(Largest::new([3].into_iter()).take(|_| 0), None, "it has nothing left");
    }

    #[test]
    fn emptying_many_asks_for_few_sizes() {
        const COUNT: usize = 10_000;
        let asked = Cell::new(0_usize);
        let mut largest = Largest::new((0..COUNT).map(|_| 1));
        let size = |_| {
            asked.set(asked.get() + 1);
            1
        };
        let mut taken = 0;
        while let Some(top) = largest.take(size) {
            largest.put(top.index, 0);
            taken += 1;
        }
        assert_eq!((taken, asked.get()), (COUNT, COUNT));
    }
}
