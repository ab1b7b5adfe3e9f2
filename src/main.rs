//! The `ovl` program: a thin command line over the library. See [`cli`].

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
