//! The program: reads the command line, runs the command, tells what went wrong in one sentence on stderr.
//!
//! Exit status: 0 done, 1 it failed, 2 it was called wrongly; of `verify`: 0 sound, 1 damaged, 2 it could not look.

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Server-Sent Events with a persistent log: publish over HTTP, follow with EventSource or curl, resume by
/// Last-Event-ID with no gap and no duplicate.
#[derive(Parser)]
#[command(name = "tidelog", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a log over HTTP
    Serve(cli::serve::Args),
    /// Publish events from the command line or stdin
    Publish(cli::publish::Args),
    /// Follow topics, resuming after every disconnect
    Subscribe(cli::subscribe::Args),
    Verify(cli::verify::Args),
    Bench(cli::bench::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Serve(args) => cli::serve::run(&args).map_err(|e| e.to_string()),
        Command::Publish(args) => cli::publish::run(args).map_err(|e| e.to_string()),
        Command::Subscribe(args) => cli::subscribe::run(args).map_err(|e| e.to_string()),
        Command::Verify(args) => return cli::verify::run(&args),
        Command::Bench(args) => cli::bench::run(args).map_err(|e| e.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nowhere is left to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "tidelog: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
