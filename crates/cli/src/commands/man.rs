//! `hyperferry man`: the manual page, every command in it.

use std::io;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::{
    args::Cli,
    exit::{self, Error, Result},
    output,
};

/// Prints it: `hyperferry man > hyperferry.1`.
pub(super) fn run() -> Result<u8> {
    let page = render(Cli::command()).map_err(Error::stdout)?;
    output::print(&String::from_utf8_lossy(&page))?;
    Ok(exit::OK)
}

/// The page of the program, then each command's options below a heading of its own.
fn render(mut command: Command) -> io::Result<Vec<u8>> {
    command.build();
    let mut page = Vec::new();
    Man::new(command.clone()).render(&mut page)?;
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let title = format!(".SH \"HYPERFERRY {}\"\n", command.get_name().to_uppercase());
        page.extend_from_slice(title.as_bytes());
        let man = Man::new(command.clone());
        man.render_description_section(&mut page)?;
        man.render_synopsis_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    Ok(page)
}
