//! The list of routes.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// One route.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelpRow {
    pub path: Cow<'static, str>,
    pub methods: Vec<String>,
    pub params: Vec<HelpParam>,
    /// A pody 0.4.1 server does not send it.
    #[serde(default)]
    pub summary: Cow<'static, str>,
}

/// One of its parameters.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HelpParam {
    pub name: Cow<'static, str>,
    pub optional: bool,
}
