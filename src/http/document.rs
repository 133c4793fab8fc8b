//! Tables of docs/API.md that tests keep true.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

/// Two tables are written at the same time otherwise.
static TURN: Mutex<()> = Mutex::new(());

/// Fails unless the document shows this table between its marks. `UPDATE_DOCS=1 cargo test` writes it there.
pub fn check(name: &str, table: &str) {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/API.md");
    let document = std::fs::read_to_string(&path).expect("docs/API.md");
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) = document.split_once(&begin).expect("the mark before the table");
    let (shown, after) = rest.split_once(&end).expect("the mark after the table");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, format!("{before}{begin}{table}{end}{after}")).expect("docs/API.md is written");
    } else {
        assert_eq!(shown, table, "run `UPDATE_DOCS=1 cargo test the_document` and check the change");
    }
}
