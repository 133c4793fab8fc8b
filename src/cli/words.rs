//! Words of a POSIX shell command line.

use shlex::QuoteError;

/// The command of `pody exec` and `pody shell`: a single argument is a command line, several are words.
pub fn command(args: &[String]) -> Result<String, QuoteError> {
    match args {
        [line] => Ok(line.clone()),
        words => shlex::try_join(words.iter().map(String::as_str)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_the_words_back() {
        let words = ["printf", "%s|", "a b", "it's", "", "$HOME", "`id`", "x\ny", "*", "a^b!c"].map(str::to_owned);
        let output = std::process::Command::new("sh").args(["-c", &command(&words).unwrap()]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|it's||$HOME|`id`|x\ny|*|a^b!c|");
    }

    #[test]
    fn one_argument_is_a_command_line() {
        assert_eq!(command(&["echo $HOME | wc".to_owned()]).unwrap(), "echo $HOME | wc");
        assert_eq!(command(&["echo".to_owned(), "$HOME".to_owned()]).unwrap(), "echo '$HOME'");
    }
}
