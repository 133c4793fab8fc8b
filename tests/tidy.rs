//! Rules of this repository, as tests.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use pody::{config::Config, http::router::routes};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files below a directory with this extension (empty = any), as (path from the root, text).
fn files(folder: &str, extension: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, extension, found);
            } else if extension.is_empty() || path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), extension, &mut found);
    found.sort();
    let relative = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a text");
        (path.strip_prefix(root()).expect("below the root").display().to_string(), text)
    };
    found.into_iter().map(relative).collect()
}

/// A source file without comments and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a path of this crate or module is named: `bollard::`, `use bollard`.
fn names(code: &str, module: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(module).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let after = &code[at + module.len()..];
        !before.is_some_and(is_name) && (after.starts_with("::") || after.starts_with(';') || after.starts_with(" as "))
    })
}

#[test]
fn each_outside_system_has_one_place() {
    let places = [
        ("bollard", "src/engine/"),
        ("rusqlite", "src/db/"),
        ("axum", "src/http/"),
        ("nvml_wrapper", "src/gpu/"),
        ("nvml_wrapper_sys", "src/gpu/"),
        ("object_store", "src/objects/"),
        ("clap", "src/cli/"),
        ("prometheus_client", "src/metrics.rs"),
    ];
    let mut wrong = Vec::new();
    for (path, text) in files("src", "rs") {
        let code = code(&text);
        for (module, place) in places {
            if names(&code, module) && !path.starts_with(place) {
                wrong.push(format!("{path} names {module}, which is {place}'s"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn policy_is_pure() {
    let modules = [
        "src/pod/admission.rs",
        "src/model/quota.rs",
        "src/gpu/enforcement.rs",
        "src/gpu/ledger.rs",
        "src/usage/gpu_time.rs",
        "src/model/buckets.rs",
        "src/checkpoint/admission.rs",
        "src/checkpoint/schedules/retention.rs",
        "src/checkpoint/gpu/verdict.rs",
        "src/checkpoint/gpu/plan.rs",
    ];
    for path in modules {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let code = code(&text);
        for module in ["bollard", "rusqlite", "axum", "tokio", "reqwest", "std::fs", "std::process", "std::net"] {
            assert!(!names(&code, module), "{path} names {module}");
        }
        assert!(!code.contains("async "), "{path} is async");
    }
}

#[test]
fn handlers_call_the_domain_not_the_engine() {
    // `facts` and `health` describe the engine itself, for /host/spec and /healthz; a shell relays a `Terminal`.
    for (path, text) in files("src/http", "rs") {
        let code = code(&text);
        for call in
            ["create_container", "start_container", "stop_container", "remove_container", "create_exec", "docker("]
        {
            assert!(!code.contains(call), "{path} calls {call}");
        }
        for (at, _) in code.match_indices(".engine.") {
            let method: String = code[at + 8..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(["facts", "health", "inventory"].contains(&method.as_str()), "{path} calls engine.{method}");
        }
    }
}

/// The states of rows follow the tables in `src/model/`: SQL writes them only in these functions, behind their guards.
#[test]
fn states_are_written_by_their_setters_only() {
    let setters = [
        ("pods", "src/db/pods.rs", "insert_pod", "update_pod"),
        ("checkpoints", "src/db/checkpoints.rs", "insert_checkpoint", "update_checkpoint"),
        ("actions", "src/db/actions.rs", "insert_action", "update_action"),
        ("copies", "src/db/copies.rs", "insert_copy", "update_copy"),
        ("drain", "src/db/drain.rs", "insert_drain", "update_drain"),
        ("drained_pods", "src/db/drain.rs", "insert_drained", "update_drained"),
    ];
    let (mut seen, mut wrong) = (0, Vec::new());
    for (path, text) in files("src", "rs") {
        let code = code(&text);
        for function in code.split("fn ").skip(1) {
            let name = function.split(['(', '<']).next().unwrap_or_default();
            let sql = function.split_whitespace().collect::<Vec<_>>().join(" ");
            for (table, file, insert, update) in setters {
                let kinds = [("INTO", insert, "ensure_initial("), ("UPDATE", update, "sources(")];
                for (verb, setter, guard) in kinds {
                    if !sql.contains(&format!("{verb} {table} ")) {
                        continue;
                    }
                    seen += 1;
                    if path != file || name != setter || !sql.contains(guard) {
                        wrong.push(format!("{path}: {name} writes {table}, without the guard of {setter} in {file}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(seen, 2 * setters.len(), "a setter is not where this test looks for it");
}

/// Comments, texts and characters are blanked out, so that the braces and names in them count for nothing.
fn blanked(text: &str) -> String {
    let mut code = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            'r' if rest.starts_with("r#\"") => rest[3..].find("\"#").map_or(rest.len(), |end| end + 5),
            '"' => length_of_text(rest),
            '\'' if rest[1..].starts_with('\\') => rest[3..].find('\'').map_or(rest.len(), |end| end + 4),
            '\'' if rest.chars().nth(2) == Some('\'') => rest.char_indices().nth(3).map_or(rest.len(), |(at, _)| at),
            _ => 0,
        };
        code.push(if length == 0 { first } else { ' ' });
        rest = &rest[length.max(first.len_utf8())..];
    }
    code
}

fn length_of_text(text: &str) -> usize {
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// Behind the bracket that closes this one.
fn closing(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, letter) in code[open..].char_indices() {
        match letter {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return open + at + 1;
        }
    }
    code.len()
}

/// The bodies of async functions and blocks, without what they give to `off_thread`.
fn async_bodies(code: &str) -> Vec<String> {
    let on_the_runtime = |mut body: &str| {
        let mut left = String::new();
        while let Some(at) = body.find("off_thread(") {
            let open = at + "off_thread".len();
            left.push_str(&body[..open]);
            body = &body[closing(body, open)..];
        }
        left + body
    };
    let bodies = code.match_indices("async ").filter_map(|(at, keyword)| {
        let rest = &code[at + keyword.len()..];
        let has_body = ["fn ", "move {", "move |", "{", "|"].iter().any(|begin| rest.starts_with(begin));
        let open = at + keyword.len() + rest.find('{').filter(|_| has_body)?;
        Some(on_the_runtime(&code[open..closing(code, open)]))
    });
    bodies.collect()
}

/// Calls of `fs` and `disk` in async code: `fs::rename`, `disk::size_of`.
fn blocking_calls(text: &str) -> BTreeSet<String> {
    let is_name = |c: &char| c.is_alphanumeric() || *c == '_';
    let mut calls = BTreeSet::new();
    for body in async_bodies(&blanked(text)) {
        for module in ["fs::", "disk::"] {
            for (at, _) in body.match_indices(module) {
                let before = &body[..at];
                let is_another = before.ends_with("tokio::") || before.ends_with("unix::");
                let name: String = body[at + module.len()..].chars().take_while(is_name).collect();
                let is_function = name.starts_with(|c: char| c.is_ascii_lowercase());
                if is_function && !is_another && !before.ends_with(|c: char| is_name(&c)) {
                    calls.insert(format!("{module}{name}"));
                }
            }
        }
    }
    calls
}

/// A disk may be slow, and a network file system may hang: that must not hold up a thread of the runtime.
#[test]
fn async_code_leaves_disks_to_off_thread() {
    /// (file, call, why it may stay)
    const EXCEPTIONS: &[(&str, &str, &str)] = &[];
    let mut wrong = Vec::new();
    for (path, text) in ["src/pod", "src/checkpoint", "src/agents", "src/files"].iter().flat_map(|at| files(at, "rs")) {
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let calls = blocking_calls(text);
        let excepted = |call: &String| EXCEPTIONS.iter().any(|(file, which, _)| *file == path && which == call);
        wrong.extend(calls.iter().filter(|call| !excepted(call)).map(|call| format!("{path} calls {call}")));
    }
    assert!(wrong.is_empty(), "give these to off_thread: {wrong:#?}");
}

#[test]
fn blocking_calls_in_async_code_are_found() {
    let text = r##"
        fn plain() { std::fs::read("a") }
        async fn one<T: Into<String>>(&self, to: [u8; 2]) -> Result<(), fs::Error> {
            let text = "} // fs::copy"; // fs::copy
            let odd = ['{', '"', '\'', '\\'];
            off_thread(move || { fs::write(")", odd); disk::free(&path) }).await;
            let data: fs::Metadata = tokio::fs::metadata(text).await?;
            std::fs::rename(a, b)
        }
        fn two<'a>(at: &'a str) -> impl Future { async move { my_disk::read(at); host::disk::size_of(at) } }
        fn three() { fs::exists(r#"async fn "} "#) }
    "##;
    assert_eq!(blocking_calls(text).into_iter().collect::<Vec<_>>(), ["disk::size_of", "fs::rename"]);
}

#[test]
fn main_dispatches_and_no_more() {
    let text = fs::read_to_string(root().join("src/main.rs")).expect("src/main.rs");
    assert!(text.lines().count() < 60, "{} lines", text.lines().count());
}

/// An `expect` states its reason; an `unwrap` does not. No unfinished code is left in, and no test is disabled.
#[test]
fn no_unfinished_code_is_left() {
    let mut wrong = Vec::new();
    for (path, text) in files("src", "rs") {
        let code = code(&text);
        let banned =
            [".unwrap()", "todo!", "unimplemented!", "dbg!", "#[allow(dead_code)]", "static mut", "println!(\"DEBUG"];
        wrong.extend(banned.iter().filter(|word| code.contains(**word)).map(|word| format!("{path} has {word}")));
        for (at, _) in code.match_indices("#[allow(").chain(code.match_indices("#[expect(")) {
            let attribute = code[at..].split(")]").next().unwrap_or_default();
            if !attribute.contains("reason") {
                wrong.push(format!("{path} allows without a reason: {attribute}"));
            }
        }
    }
    let ignore = concat!("#[ig", "nore");
    for (path, text) in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        if text.contains(ignore) {
            wrong.push(format!("{path} has {ignore}"));
        }
        for mark in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")] {
            if text.contains(mark) {
                wrong.push(format!("{path} has {mark}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_module_begins_with_a_comment() {
    for (path, text) in files("src", "rs").into_iter().chain(files("tests", "rs")) {
        assert!(text.starts_with("//!"), "{path} does not begin with a module comment");
    }
}

/// Phrases of an English that nobody else writes. A bar in each keeps this list from containing any.
const BANNED_PHRASES: [&str; 32] = [
    "of th|en",
    "of n|ow",
    "as of n|ow",
    "goes o|n",
    "let g|o",
    "lets g|o",
    "is to|ld",
    "are to|ld",
    "was to|ld",
    "were to|ld",
    "be to|ld",
    "tell o|f",
    "tells o|f",
    "told o|f",
    "hear|say",
    "un|heard",
    "stand st|ill",
    "stands st|ill",
    "stood st|ill",
    "standing st|ill",
    "an|ew",
    "men|ded",
    "men|ds",
    "who|ever",
    "come back to b|y",
    "does not re|ad",
    "without any|body",
    "memory file sys|tem",
    "memory file sys|tems",
    "has had its t|ime",
    "have had their t|ime",
    "cannot be h|ad",
];

/// The prose and the names of a text as words with single spaces: line breaks, marks of comments and `_` are gaps.
fn plain_words(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || "_/!#".contains(c));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").to_ascii_lowercase()
}

#[test]
fn no_phrase_of_our_own_is_used() {
    let mut texts = files("images", "");
    for directory in ["src", "init/src", "tests", "docs"] {
        texts.extend(["rs", "md", "sh", "py"].into_iter().flat_map(|extension| files(directory, extension)));
    }
    for name in ["README.md", "CONTRIBUTING.md", "install.sh", "config.toml.example"] {
        texts.push((
            name.to_owned(),
            fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}")),
        ));
    }
    let banned = BANNED_PHRASES.map(|phrase| phrase.replace('|', ""));
    let mut wrong = Vec::new();
    for (path, text) in texts {
        let words = plain_words(&text);
        for phrase in &banned {
            for (at, _) in words.match_indices(phrase.as_str()) {
                let end = at + phrase.len();
                let is_part = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
                if !is_part(words[..at].chars().next_back()) && !is_part(words[end..].chars().next()) {
                    let near = words.split_at(at).1.chars().take(phrase.len() + 40).collect::<String>();
                    wrong.push(format!("{path} has {phrase:?}: {near}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_example_config_loads_and_names_every_key() {
    let config =
        Config::load(&root().join("config.toml.example"), pody::objects::check).expect("config.toml.example loads");
    assert!(!config.images.is_empty());
}

/// Whether a word in backticks looks like a path in this repository.
fn is_repository_path(word: &str) -> bool {
    let folders = ["src/", "tests/", "docs/", "images/", "benches/", "static/", "examples/", ".ci/"];
    let files = ["install.sh", "config.toml.example", "Cargo.toml", "Cargo.lock", "README.md", "rustfmt.toml"];
    let clean = word.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c));
    clean && (folders.iter().any(|folder| word.starts_with(folder)) || files.contains(&word))
}

#[test]
fn paths_named_in_the_documents_exist() {
    let mut documents = files("docs", "md");
    documents.extend(files("images", "md"));
    documents.extend(fs::read_to_string(root().join("README.md")).map(|text| ("README.md".to_owned(), text)));
    let mut wrong = Vec::new();
    for (document, text) in documents {
        // Code blocks show commands; inline code names things.
        for word in text.split("```").step_by(2).flat_map(|prose| prose.split('`').skip(1).step_by(2)) {
            if is_repository_path(word) && !root().join(word).exists() {
                wrong.push(format!("{document} names {word}"));
            }
        }
        for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let outside = link.contains("://") || link.is_empty() || link.starts_with("mailto:");
            let base = root().join(Path::new(&document).parent().unwrap_or(Path::new("")));
            if !outside && !base.join(link).exists() && !root().join(link.trim_start_matches('/')).exists() {
                wrong.push(format!("{document} links to {link}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_layout_in_the_crate_doc_is_complete() {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("src/lib.rs");
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in declared {
        assert!(text.contains(&format!("[`{module}`]")), "the list in src/lib.rs lacks {module}");
    }
}

#[test]
fn every_route_is_documented_and_tested() {
    let document = fs::read_to_string(root().join("docs/API.md")).unwrap_or_default();
    let tests: String = files("tests", "rs").into_iter().map(|(_, text)| text).collect();
    for route in routes() {
        assert!(
            document.is_empty() || document.contains(&format!("`{}`", route.path)),
            "docs/API.md lacks {}",
            route.path
        );
        assert!(tests.contains(route.path), "no test names {}", route.path);
        assert!(!route.summary.is_empty() && !route.summary.ends_with('.'), "{}: {:?}", route.path, route.summary);
    }
}

/// The table in the document has all statuses of the dialect.
#[test]
fn every_status_is_documented() {
    let Ok(document) = fs::read_to_string(root().join("docs/API.md")) else { return };
    let errors = document.split("## Errors").nth(1).expect("a chapter on errors");
    let documented: BTreeSet<u16> = errors
        .lines()
        .filter_map(|line| line.strip_prefix("| "))
        .flat_map(|row| row.split(" | ").next().unwrap_or_default().split(", ").filter_map(|n| n.trim().parse().ok()))
        .collect();
    let source = fs::read_to_string(root().join("src/http/error.rs")).expect("error.rs");
    let constants = [
        ("BAD_REQUEST", 400),
        ("UNAUTHORIZED", 401),
        ("FORBIDDEN", 403),
        ("NOT_FOUND", 404),
        ("METHOD_NOT_ALLOWED", 405),
        ("REQUEST_TIMEOUT", 408),
        ("CONFLICT", 409),
        ("PAYLOAD_TOO_LARGE", 413),
        ("LOCKED", 423),
        ("UNPROCESSABLE_ENTITY", 422),
        ("TOO_MANY_REQUESTS", 429),
        ("INTERNAL_SERVER_ERROR", 500),
        ("NOT_IMPLEMENTED", 501),
        ("INSUFFICIENT_STORAGE", 507),
        ("BAD_GATEWAY", 502),
        ("SERVICE_UNAVAILABLE", 503),
    ];
    let given: Vec<&str> = source
        .split("StatusCode::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap_or_default())
        .filter(|name| !name.is_empty())
        .collect();
    for name in given {
        let (_, status) =
            constants.iter().find(|(known, _)| *known == name).unwrap_or_else(|| panic!("{name} is new here"));
        assert!(documented.contains(status), "docs/API.md does not document {status}");
    }
}

/// A clone contains no build output and no secrets.
#[test]
fn no_stray_files_are_in_the_repository() {
    let Ok(output) = Command::new("git").args(["ls-files"]).current_dir(root()).output() else { return };
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    for path in list.lines() {
        let extension = Path::new(path).extension().and_then(|e| e.to_str()).unwrap_or_default();
        assert!(!["db", "snap", "pending-snap", "orig", "rej", "log", "pem", "key"].contains(&extension), "{path}");
        let size = fs::metadata(root().join(path)).map_or(0, |file| file.len());
        assert!(size < 1 << 20 || path.starts_with("static/"), "{path} has {size} bytes");
    }
}
