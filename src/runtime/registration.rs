//! Whether Docker can restore pods: whether the program under the runtime's name is this one.

use std::path::Path;

use super::{NAME, PROTOCOL, PROTOCOL_COMMAND};
use crate::{criu::command::ask, engine::EngineFacts};

/// Why the engine cannot restore pods with the runtime of that name, with the remedy.
pub async fn why_not(facts: &EngineFacts, runtime: &str) -> Option<String> {
    let Some(program) = facts.runtimes.get(runtime) else {
        return Some(format!(
            "Docker has no runtime \"{runtime}\", which restores pods; run install.sh again, or add \"runtimes\": \
             {{\"{runtime}\": {{\"path\": \"/usr/local/bin/{NAME}\"}}}} to /etc/docker/daemon.json and reload Docker (SIGHUP)"
        ));
    };
    let spoken = ask(&program.to_string_lossy(), &[PROTOCOL_COMMAND]).await;
    not_ours(program, runtime, &spoken)
}

fn not_ours(program: &Path, runtime: &str, spoken: &Result<String, String>) -> Option<String> {
    let found = match spoken {
        Ok(number) if number.trim() == PROTOCOL.to_string() => return None,
        Ok(_) => "is not the one of this pody".to_owned(),
        Err(why) => format!("does not answer as one of pody's ({why})"),
    };
    Some(format!(
        "Docker's runtime \"{runtime}\", {}, {found}; run install.sh again, which puts {NAME} there",
        program.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_without_the_runtime_is_refused_with_the_remedy() {
        let why = why_not(&EngineFacts::default(), "pody").await.unwrap();
        assert!(why.contains("no runtime \"pody\"") && why.contains("/usr/local/bin/pody-runc"), "{why}");
    }

    #[tokio::test]
    async fn another_program_under_the_runtimes_path_is_named() {
        let facts = |program: &str| EngineFacts {
            runtimes: [("pody".to_owned(), program.into())].into(),
            ..EngineFacts::default()
        };
        for program in ["/bin/echo", "/bin/false", "/nowhere/pody-runc"] {
            let why = why_not(&facts(program), "pody").await.unwrap();
            assert!(why.contains(program) && why.contains("install.sh"), "{why}");
        }
        assert_eq!(not_ours(Path::new("/x"), "pody", &Ok(format!("{PROTOCOL}\n"))), None);
    }
}
