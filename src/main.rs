//! The `landline` binary.

fn main() {}
