//! The `landline` binary.

fn main() -> std::process::ExitCode {
    landline::cli::main()
}
