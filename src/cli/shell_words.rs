//! Words for a POSIX shell.

/// One word, in single quotes where it needs them.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A command line of these words.
pub fn join<S: AsRef<str>>(words: &[S]) -> String {
    words.iter().map(|word| quote(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// The command of `pody exec` and `pody shell`: a single argument is one already, several are words.
pub fn command(args: &[String]) -> String {
    match args {
        [line] => line.clone(),
        words => join(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shell_reads_the_words_back() {
        let words = ["printf", "%s|", "a b", "it's", "", "$HOME", "`id`", "x\ny", "*"];
        let output = std::process::Command::new("sh").args(["-c", &join(&words)]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "a b|it's||$HOME|`id`|x\ny|*|");
    }

    #[test]
    fn one_argument_is_a_command_line() {
        assert_eq!(command(&["echo $HOME | wc".to_owned()]), "echo $HOME | wc");
        assert_eq!(command(&["echo".to_owned(), "$HOME".to_owned()]), "echo '$HOME'");
    }
}
