//! Counters and gauges: atomics that know how to print themselves.

use std::{
    fmt::Write,
    marker::PhantomData,
    sync::atomic::{AtomicU64, Ordering},
};

/// A metric label whose values are the variants of a small enum.
pub trait Label: Copy {
    const KEY: &'static str;
    const VALUES: &'static [&'static str];
    /// Index into [`Label::VALUES`].
    fn index(self) -> usize;
}

/// Something with a value to show.
pub trait Sample {
    const KIND: &'static str;

    fn label() -> Option<(&'static str, &'static [&'static str])> {
        None
    }

    /// Calls `show` with the label's value, if there is a label, and the number.
    fn each(&self, show: &mut dyn FnMut(Option<(&'static str, &'static str)>, u64));
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, by: u64) {
        // Relaxed here and below: nothing is ordered by a metric.
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that only grows, and that somebody else counts.
#[derive(Debug, Default)]
pub struct Total(AtomicU64);

impl Total {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Sample for Total {
    const KIND: &'static str = "counter";

    fn each(&self, show: &mut dyn FnMut(Option<(&'static str, &'static str)>, u64)) {
        show(None, self.value());
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn add(&self, by: u64) -> u64 {
        self.0.fetch_add(by, Ordering::Relaxed) + by
    }

    pub fn sub(&self, by: u64) -> u64 {
        self.0.fetch_sub(by, Ordering::Relaxed) - by
    }

    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One counter per value of a label.
#[derive(Debug)]
pub struct CounterBy<L> {
    cells: Box<[AtomicU64]>,
    label: PhantomData<fn(L)>,
}

impl<L: Label> Default for CounterBy<L> {
    fn default() -> Self {
        let cells = L::VALUES.iter().map(|_| AtomicU64::new(0)).collect();
        Self { cells, label: PhantomData }
    }
}

impl<L: Label> CounterBy<L> {
    pub fn add(&self, label: L, by: u64) {
        self.cells[label.index()].fetch_add(by, Ordering::Relaxed);
    }

    #[must_use]
    pub fn value(&self, label: L) -> u64 {
        self.cells[label.index()].load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn sum(&self) -> u64 {
        self.cells.iter().map(|cell| cell.load(Ordering::Relaxed)).sum()
    }
}

impl Sample for Counter {
    const KIND: &'static str = "counter";

    fn each(&self, show: &mut dyn FnMut(Option<(&'static str, &'static str)>, u64)) {
        show(None, self.value());
    }
}

impl Sample for Gauge {
    const KIND: &'static str = "gauge";

    fn each(&self, show: &mut dyn FnMut(Option<(&'static str, &'static str)>, u64)) {
        show(None, self.value());
    }
}

impl<L: Label> Sample for CounterBy<L> {
    const KIND: &'static str = "counter";

    fn label() -> Option<(&'static str, &'static [&'static str])> {
        Some((L::KEY, L::VALUES))
    }

    fn each(&self, show: &mut dyn FnMut(Option<(&'static str, &'static str)>, u64)) {
        for (value, cell) in L::VALUES.iter().zip(&self.cells) {
            show(Some((L::KEY, value)), cell.load(Ordering::Relaxed));
        }
    }
}

/// Appends one metric with its comment lines.
pub(crate) fn render<S: Sample>(sample: &S, name: &str, help: &str, out: &mut String) {
    let wrote = (|| -> std::fmt::Result {
        writeln!(out, "# HELP {name} {help}")?;
        writeln!(out, "# TYPE {name} {}", S::KIND)?;
        let mut result = Ok(());
        sample.each(&mut |label, value| {
            let line = match label {
                Some((key, text)) => writeln!(out, "{name}{{{key}=\"{text}\"}} {value}"),
                None => writeln!(out, "{name} {value}"),
            };
            result = result.and(line);
        });
        result
    })();
    wrote.expect("writing into a string cannot fail");
}
