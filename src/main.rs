//! The `landline` binary.

fn main() -> std::process::ExitCode {
    let matches =
        clap::Command::new("landline").subcommand(landline::cli::serve::command()).get_matches();
    match matches.subcommand() {
        Some(("serve", m)) => match landline::cli::serve::run(m) {
            Ok(()) => 0.into(),
            Err(e) => {
                eprintln!("landline: {e}");
                1.into()
            }
        },
        _ => 2.into(),
    }
}
