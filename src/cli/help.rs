//! `pody --help` in groups, and `pody help`: the help of a command, or the routes of the server as in pody 0.4.1.

use std::fmt::Write;

use clap::{Args, error::ErrorKind};

use super::{command_line, error::CliError, exit, output::Output, request};

/// All visible commands. The sentences beside them in `pody --help` are those of the commands themselves.
pub const GROUPS: [(&str, &[&str]); 6] = [
    (
        "Everyday",
        &[
            "create", "ps", "shell", "exec", "ssh", "logs", "stats", "inspect", "gpu", "start", "stop", "restart",
            "rm", "images", "commit",
        ],
    ),
    ("Saving", &["checkpoint", "restore", "checkpoints", "schedule", "actions"]),
    ("Account", &["login", "logout", "whoami", "passwd", "token", "key", "events", "stat"]),
    (
        "Admin (on the server's host)",
        &["doctor", "serve", "user", "quota", "log", "drain", "undrain", "util", "import"],
    ),
    ("Compatibility with pody 0.4.1", &["get", "post", "fetch", "copy-id", "connect"]),
    ("Other", &["help", "version", "completions"]),
];

/// The help text below the options of a command: how it is typed.
macro_rules! examples {
    ($($line:literal),+ $(,)?) => { concat!("Examples:", $("\n  ", $line),+) };
}
pub(super) use examples;

#[derive(Debug, Args)]
pub struct HelpArgs {
    /// A command, like `checkpoint rm`; or a route, like `pod/create`; a route that ends in '/' lists all below it
    #[arg(value_name = "COMMAND|ROUTE")]
    words: Vec<String>,
}

/// The layout of `pody --help`: a line per command, in groups. (clap has no headings for subcommands.)
pub fn template(program: &clap::Command) -> String {
    let header = program.get_styles().get_header();
    let literal = program.get_styles().get_literal();
    let width = GROUPS.iter().flat_map(|(_, names)| *names).map(|name| name.len()).max().unwrap_or_default();
    let mut groups = String::new();
    for (title, names) in GROUPS {
        let _ = writeln!(groups, "{header}{title}:{header:#}");
        for name in names {
            let about = program.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            let _ = writeln!(groups, "  {literal}{name:<width$}{literal:#}  {about}");
        }
        groups.push('\n');
    }
    format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}{header}Options:{header:#}\n{{options}}\n\n\
         `pody help COMMAND` shows arguments and examples of a command.{{after-help}}"
    )
}

impl HelpArgs {
    pub async fn run(self, out: &Output) -> Result<u8, CliError> {
        match self.words.as_slice() {
            [route] if route.contains('/') => request::help(route, out).await,
            words if is_command(words) => print_help(words),
            [route] if request::is_route(route).await => request::help(route, out).await,
            words => Err(CliError::usage(
                format!("there is no command or route {:?}", words.join(" ")),
                "`pody --help` lists the commands, `pody help /` the routes of the server",
            )),
        }
    }
}

fn is_command(words: &[String]) -> bool {
    let program = command_line();
    words.iter().try_fold(&program, |command, word| command.find_subcommand(word)).is_some()
}

/// Prints what `pody COMMAND --help` prints.
fn print_help(words: &[String]) -> Result<u8, CliError> {
    let line = ["pody"].into_iter().chain(words.iter().map(String::as_str)).chain(["--help"]);
    match command_line().try_get_matches_from(line) {
        Err(help) if help.kind() == ErrorKind::DisplayHelp => help.print()?,
        Err(error) => error.exit(),
        Ok(_) => {}
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Command;

    use super::*;

    /// Commands below this one with their names from `pody` on; hidden ones if wanted.
    fn walk(command: &Command, path: &str, hidden: bool, found: &mut Vec<(String, Command)>) {
        for sub in command.get_subcommands().filter(|sub| hidden || !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name());
            found.push((path.clone(), sub.clone()));
            walk(sub, &path, hidden, found);
        }
    }

    fn commands(hidden: bool) -> Vec<(String, Command)> {
        let mut found = Vec::new();
        walk(&command_line(), "pody", hidden, &mut found);
        found
    }

    fn after_help(command: &Command) -> String {
        command.get_after_help().map(ToString::to_string).unwrap_or_default()
    }

    #[test]
    fn every_visible_command_is_in_one_group() {
        let program = command_line();
        let visible: BTreeSet<_> =
            program.get_subcommands().filter(|sub| !sub.is_hide_set()).map(Command::get_name).collect();
        let listed: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        assert_eq!(listed.len(), visible.len(), "a command is listed twice");
        assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), visible);
    }

    #[test]
    fn the_list_of_commands_fits_80_columns_with_one_line_per_command() {
        let help = command_line().term_width(80).render_long_help().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let mut titles = Vec::new();
        for (title, names) in GROUPS {
            titles.push(help.find(&format!("\n{title}:\n")).unwrap_or_else(|| panic!("no {title} in {help}")));
            for name in names {
                let lines = help.lines().filter(|line| line.split_whitespace().next() == Some(name));
                assert_eq!(lines.filter(|line| line.starts_with("  ")).count(), 1, "{name} in {help}");
            }
        }
        assert!(titles.is_sorted());
        assert!(help.contains("\nExit codes:\n") && help.contains("\nEnvironment:\n"), "{help}");
    }

    #[test]
    fn every_command_and_argument_says_what_it_is() {
        for (path, command) in commands(true) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            assert!(!about.is_empty() && !about.ends_with('.'), "{path}: {about:?}");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty() && !help.ends_with('.'), "{path} {}: {help:?}", argument.get_id());
            }
        }
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        for (path, command) in commands(false) {
            let text = after_help(&command);
            let examples: Vec<_> = text.strip_prefix("Examples:\n").unwrap_or_default().lines().collect();
            assert!(!examples.is_empty(), "{path} has no examples");
            let mut shows_itself = false;
            for example in examples {
                assert!(example.starts_with("  ") && example.chars().count() <= 80, "{path}: {example}");
                // Without what the shell takes away.
                let words = shlex::split(example).unwrap_or_else(|| panic!("{path}: {example}"));
                let words: Vec<_> = match words[0].as_str() {
                    "sudo" => words[1..].to_vec(),
                    "source" => vec!["pody".to_owned(), "completions".to_owned(), "bash".to_owned()],
                    _ => words,
                };
                let words: Vec<_> = words.into_iter().take_while(|word| word != "<" && word != ">").collect();
                let parsed = command_line().try_get_matches_from(&words);
                assert!(parsed.is_ok(), "{path}: {example}: {}", parsed.unwrap_err());
                shows_itself |= format!("{} ", words.join(" ")).starts_with(&format!("{path} "));
            }
            assert!(shows_itself, "{path}: no example shows it");
        }
    }

    /// What each verb of a noun does is in the doc of `cli`.
    #[test]
    fn one_verb_means_one_thing() {
        let others = ["delete", "remove", "revoke", "del", "ls", "new", "make", "edit", "change", "get", "info"];
        for (path, command) in commands(false).iter().filter(|(path, _)| path.split(' ').count() == 3) {
            assert!(!others.contains(&command.get_name()), "{path}");
            if command.get_name() == "list" {
                assert!(command.get_all_aliases().any(|alias| alias == "ls"), "{path} is not known as ls");
            }
            assert_eq!(command.get_visible_aliases().count(), 0, "{path} has two visible spellings");
        }
    }

    #[test]
    fn old_spellings_still_parse() {
        for line in [
            // pody 0.4.1
            "user add alice secret --admin",
            "user update alice --password secret --no-admin",
            "user list",
            "user delete alice",
            "user purge alice -y",
            "quota update alice --max-pods -1 --gpus 0,1 --memory-limit 8g",
            "quota reset alice",
            "quota list --fallback",
            "util show-home",
            "util config",
            "util systemd-unit",
            "log show old.db --limit 5 --offset 1 --level WARNING",
            "log shrink old.db --keep 5",
            "stat cputime 1w",
            "stat gputime",
            "get pod/list",
            "post pod/create ins:main image:x --raw",
            "fetch pod/stop ins:main",
            "copy-id main key.pub",
            "connect ins:main -i key -p 22 -u root -t",
            "help pod/create",
            "help",
            "version",
            // pody 0.5.0
            "token revoke 3",
            "checkpoint schedules --all",
            "checkpoint schedule main",
            "checkpoint schedule main every 6h keep 4",
            "checkpoint schedule main --off",
        ] {
            let words = ["pody"].into_iter().chain(line.split(' '));
            let parsed = command_line().try_get_matches_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}
