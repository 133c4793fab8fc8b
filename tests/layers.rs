//! The layers of the crate: which module may import which. See "Layers" in docs/ARCHITECTURE.md.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The layers from bottom to top. A module imports from lower ranks and from itself.
const RANKS: &[(&str, u8)] = &[
    ("tls", 0),
    ("model", 1),
    ("host", 2),
    ("config", 2),
    ("engine", 2),
    ("db", 3),
    ("criu", 3),
    ("objects", 3),
    ("runtime", 4),
    ("control", 4),
    ("account", 4),
    ("gpu", 4),
    ("files", 5),
    ("pod", 5),
    ("metrics", 6),
    ("checkpoint", 6),
    ("usage", 6),
    ("agents", 7),
    ("app", 8),
    ("http", 9),
    ("daemon", 10),
    ("cli", 11),
];

/// What the crate root holds besides modules: a macro of `http` and a constant.
const ROOT_ITEMS: &[&str] = &["params", "VERSION"];

fn source_files() -> Vec<(PathBuf, String)> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).expect("a directory of the repository") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => walk(&path, found),
                false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
                false => {}
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&source, &mut found);
    found.sort();
    let relative = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("a source file");
        (path.strip_prefix(&source).expect("below src").to_owned(), text)
    };
    found.into_iter().map(relative).collect()
}

/// The module that a file is: `checkpoint/job/mod.rs` is `[checkpoint, job]`, `lib.rs` the root.
fn module_of(path: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        path.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// Without comments, texts and the tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The paths that a use tree names: `a::{b, c::{self, d}}` is `a::b`, `a::c` and `a::c::d`.
fn flatten(prefix: &[String], tree: &str, found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let Some(open) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let parts =
            path.split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty() && part != "self");
        let whole: Vec<String> = prefix.iter().cloned().chain(parts).collect();
        // A leading `self` is the module itself.
        let whole = match prefix.is_empty() && path.starts_with("self") {
            true => [vec!["self".to_owned()], whole].concat(),
            false => whole,
        };
        found.push(whole);
        return;
    };
    let head = tree[..open].split("::").map(|part| part.trim().to_owned()).filter(|part| !part.is_empty());
    let prefix: Vec<String> = prefix.iter().cloned().chain(head).collect();
    let inner = &tree[open + 1..tree.rfind('}').unwrap_or(tree.len())];
    let (mut depth, mut begin) = (0, 0);
    for (at, letter) in inner.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                flatten(&prefix, &inner[begin..at], found);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if !inner[begin..].trim().is_empty() {
        flatten(&prefix, &inner[begin..], found);
    }
}

/// From the crate's root.
fn resolve(module: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = module.to_vec();
    let mut rest = path;
    match rest.first().map(String::as_str)? {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {
            while rest.first().is_some_and(|part| part == "super") {
                base.pop();
                rest = &rest[1..];
            }
        }
        _ => return None,
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// Every path of this crate that a file names, in `use` statements and in line.
fn imports(module: &[String], text: &str) -> BTreeSet<Vec<String>> {
    let code = code(text);
    let mut named = Vec::new();
    for (at, _) in code.match_indices("use ") {
        let before = code[..at].rsplit('\n').next().unwrap_or_default().trim();
        let is_visibility = before == "pub" || (before.starts_with("pub(") && before.ends_with(')'));
        let is_statement = (before.is_empty() || is_visibility) && !code[..at].ends_with(char::is_alphanumeric);
        if let (true, Some(end)) = (is_statement, code[at..].find(';')) {
            flatten(&[], &code[at + 4..at + end], &mut named);
        }
    }
    for root in ["crate::", "super::"] {
        for (at, _) in code.match_indices(root) {
            let path: String =
                code[at..].chars().take_while(|c| c.is_alphanumeric() || matches!(c, '_' | ':')).collect();
            let parts: Vec<String> = path.split("::").map(str::to_owned).filter(|part| !part.is_empty()).collect();
            // `use super::{…}` was read above.
            if parts.len() > 1 {
                named.push(parts);
            }
        }
    }
    named.iter().filter_map(|path| resolve(module, path)).collect()
}

fn rank(module: &str) -> Option<u8> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

#[test]
fn every_module_has_a_rank_and_every_rank_a_module() {
    let modules: BTreeSet<String> =
        source_files().iter().filter_map(|(path, _)| module_of(path).into_iter().next()).collect();
    let ranked: BTreeSet<String> = RANKS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(modules, ranked);
}

#[test]
fn no_import_goes_up() {
    let mut wrong = Vec::new();
    for (path, text) in source_files() {
        let module = module_of(&path);
        // lib.rs and main.rs stand above all.
        let Some(own) = module.first() else { continue };
        for import in imports(&module, &text) {
            let Some(top) = import.first().filter(|top| *top != own && !ROOT_ITEMS.contains(&top.as_str())) else {
                continue;
            };
            match (rank(own), rank(top)) {
                (Some(here), Some(there)) if there < here => {}
                _ => wrong.push(format!("{} imports {}", path.display(), import.join("::"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The parts of a directory import each other without a circle, at every depth. What `mod.rs` holds belongs to all of them.
#[test]
fn the_parts_of_a_directory_form_no_circle() {
    let files = source_files();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|(path, _)| module_of(path)).collect();
    let directories: BTreeSet<&[String]> =
        modules.iter().filter_map(|module| module.split_last()).map(|(_, parent)| parent).collect();
    let mut circles = Vec::new();
    for directory in directories.into_iter().filter(|directory| !directory.is_empty()) {
        // The part of this directory that a path leads into.
        let part = |path: &[String]| {
            let (first, _) = path.strip_prefix(directory)?.split_first()?;
            modules.contains(&[directory, std::slice::from_ref(first)].concat()).then(|| first.clone())
        };
        let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (path, text) in &files {
            let module = module_of(path);
            let Some(here) = part(&module) else { continue };
            let there = imports(&module, text).into_iter().filter_map(|import| part(&import));
            edges.entry(here.clone()).or_default().extend(there.filter(|there| *there != here));
        }
        circles.extend(circle(&edges).map(|parts| format!("{}: {}", directory.join("/"), parts.join(" -> "))));
    }
    assert!(circles.is_empty(), "{circles:#?}");
}

/// A path that returns to its start, if there is one.
fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn visit(
        at: &str,
        edges: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        if let Some(begin) = way.iter().position(|part| part == at) {
            return Some(way[begin..].iter().cloned().chain([at.to_owned()]).collect());
        }
        if done.contains(at) {
            return None;
        }
        way.push(at.to_owned());
        for next in edges.get(at).into_iter().flatten() {
            if let Some(found) = visit(next, edges, way, done) {
                return Some(found);
            }
        }
        way.pop();
        done.insert(at.to_owned());
        None
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|begin| visit(begin, edges, &mut Vec::new(), &mut done))
}

/// What a directory must not name, whatever its rank allows.
#[test]
fn each_layer_keeps_to_its_own() {
    // `std::net` is there for its addresses, which are values.
    let banned = [
        "tokio",
        "rusqlite",
        "bollard",
        "axum",
        "nix",
        "rand",
        "reqwest",
        "std::fs",
        "std::process",
        "std::thread",
        "std::os",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "async ",
    ];
    let mut wrong = Vec::new();
    for (path, text) in source_files() {
        let module = module_of(&path);
        let code = code(&text);
        let own = module.first().map_or("", String::as_str);
        if own == "model" {
            let named = banned.iter().filter(|word| names(&code, word));
            wrong.extend(named.map(|word| format!("{} names {word}", path.display())));
        }
        let may_name_http = matches!(own, "" | "http" | "daemon" | "cli");
        for import in imports(&module, &text) {
            let top = import.first().map_or("", String::as_str);
            let is_wrong = match own {
                "db" => !matches!(top, "db" | "model" | "host"),
                "criu" => !matches!(top, "criu" | "model" | "host" | "config"),
                _ => top == "http" && !may_name_http,
            };
            if is_wrong {
                wrong.push(format!("{} imports {}", path.display(), import.join("::")));
            }
            if let ([first, dialect, ..], [_, other, ..]) = (import.as_slice(), module.as_slice())
                && first == "http"
                && own == "http"
                && is_dialect(dialect)
                && other != dialect
                && other != "router"
            {
                wrong.push(format!("{} names the dialect {dialect}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A directory of `http` is a dialect.
fn is_dialect(name: &str) -> bool {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http").join(name).is_dir()
}

fn names(code: &str, word: &str) -> bool {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let (before, after) = (code[..at].chars().next_back(), code[at + word.len()..].chars().next());
        !before.is_some_and(is_name) && (word.ends_with(' ') || !after.is_some_and(is_name))
    })
}

/// The reader of imports itself: what it overlooks, no rule sees.
#[test]
fn imports_are_read_whole() {
    let text = "use super::{Held, other::{self, Thing as _}};\nuse self::part::Item;\nuse std::fs;\n\
                use crate::{a::b::C, d};\nfn f() { crate::e::g(); super::h(); }\n// use crate::comment;\n\
                #[cfg(test)]\nmod tests { use crate::tests_only; }";
    let module = ["pod".to_owned(), "create".to_owned()];
    let found: Vec<String> = imports(&module, text).into_iter().map(|path| path.join("::")).collect();
    let wanted =
        ["a::b::C", "d", "e::g", "pod::Held", "pod::create::part::Item", "pod::h", "pod::other", "pod::other::Thing"];
    assert_eq!(found, wanted);
}
