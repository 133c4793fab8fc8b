//! Parameters of a route: one declaration is the parser, the row in `/help` and the entry in `/openapi.json`.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::{Value, json};
use utoipa::{
    PartialSchema,
    openapi::{RefOr, Schema},
};

use super::error::ApiError;
use crate::{
    files::FilePath,
    model::{
        checkpoint::{CheckpointName, Compression, Kind},
        ids::{ActionId, CheckpointId, SessionId},
        names::{CommitTag, ImageRef, InstanceName, PodRef, UserName, clipped},
        phase::ActionKind,
        quantities::{GpuRequest, Span},
        schedule::{Interval, Keep},
        user::PublicKey,
    },
};

/// One parameter, as the documentation shows it.
#[derive(Clone, Copy, Debug)]
pub struct Param {
    pub name: &'static str,
    pub optional: bool,
    /// JSON schema type.
    pub kind: &'static str,
}

/// The input of a request, by name. The last value of a repeated name counts.
#[derive(Debug, Default)]
pub struct Input<'a> {
    pairs: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    json: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(query: &'a str) -> Self {
        Self { pairs: form_urlencoded::parse(query.as_bytes()).collect(), json: &[] }
    }

    /// Adds a form body; it wins over the query.
    pub fn extend(&mut self, form: &'a [u8]) {
        self.pairs.extend(form_urlencoded::parse(form));
    }

    /// Adds a value that wins over all before.
    pub fn push(&mut self, name: String, value: String) {
        self.pairs.push((name.into(), value.into()));
    }

    pub fn set_json(&mut self, body: &'a [u8]) {
        self.json = body;
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.get_all(name).next_back()
    }

    /// For names that may be repeated. A name may be written with `-` for `_`, as one edition of pody's documents does.
    pub fn get_all(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        let is_meant = move |key: &str| key == name || key.contains('-') && key.replace('-', "_") == name;
        self.pairs.iter().filter(move |(key, _)| is_meant(key)).map(|(_, value)| value.as_ref())
    }
}

/// Why a parameter was refused.
#[derive(Debug)]
pub enum BadParam {
    Missing {
        name: &'static str,
    },
    /// Not of the type at all, in FastAPI's words.
    Type {
        name: &'static str,
        kind: &'static str,
        message: &'static str,
        input: String,
    },
    /// Of the type, but against a rule.
    Rule {
        name: Cow<'static, str>,
        rule: String,
    },
}

impl BadParam {
    /// The form that pody's clients parse.
    fn as_fastapi(&self) -> Option<Value> {
        match self {
            Self::Missing { name } => {
                Some(json!({"type": "missing", "loc": ["query", name], "msg": "Field required", "input": null}))
            }
            Self::Type { name, kind, message, input } => {
                Some(json!({"type": kind, "loc": ["query", name], "msg": message, "input": input}))
            }
            Self::Rule { .. } => None,
        }
    }
}

impl From<Vec<BadParam>> for ApiError {
    /// All type errors are reported at once, as a 422; otherwise the first broken rule, as a 400.
    fn from(bad: Vec<BadParam>) -> Self {
        let types: Vec<Value> = bad.iter().filter_map(BadParam::as_fastapi).collect();
        if !types.is_empty() {
            return Self::Unprocessable(types);
        }
        let rule = bad.into_iter().find_map(|bad| match bad {
            BadParam::Rule { name, rule } => Some(format!("{name}: {rule}")),
            BadParam::Missing { .. } | BadParam::Type { .. } => None,
        });
        Self::BadRequest(rule.unwrap_or_default())
    }
}

/// A type that a parameter can have.
pub trait Parameter: Sized {
    const KIND: &'static str;

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam>;
}

/// Types with a parser of their own, whose error is a sentence.
macro_rules! parsed_parameters {
    ($($type:ty),* $(,)?) => {
        $(impl Parameter for $type {
            const KIND: &'static str = "string";

            fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
                text.parse().map_err(|error: <$type as std::str::FromStr>::Err| BadParam::Rule {
                    name: name.into(),
                    rule: error.to_string(),
                })
            }
        })*
    };
}

parsed_parameters!(
    ActionId,
    ActionKind,
    CheckpointId,
    CheckpointName,
    CommitTag,
    Compression,
    FilePath,
    GpuRequest,
    ImageRef,
    InstanceName,
    Interval,
    Keep,
    Kind,
    PodRef,
    PublicKey,
    SessionId,
    Span,
    UserName,
);

/// Whole numbers, refused in FastAPI's words.
macro_rules! number_parameters {
    ($($type:ty),* $(,)?) => {
        $(impl Parameter for $type {
            const KIND: &'static str = "integer";

            fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
                text.trim().parse().map_err(|_| BadParam::Type {
                    name,
                    kind: "int_parsing",
                    message: "Input should be a valid integer, unable to parse string as an integer",
                    input: clipped(text),
                })
            }
        })*
    };
}

number_parameters!(u16, u32, u64, i64);

impl Parameter for String {
    const KIND: &'static str = "string";

    fn parse(_: &'static str, text: &str) -> Result<Self, BadParam> {
        Ok(text.to_owned())
    }
}

impl Parameter for bool {
    const KIND: &'static str = "boolean";

    fn parse(name: &'static str, text: &str) -> Result<Self, BadParam> {
        match text.to_ascii_lowercase().as_str() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
            _ => Err(BadParam::Type {
                name,
                kind: "bool_parsing",
                message: "Input should be a valid boolean, unable to interpret input",
                input: clipped(text),
            }),
        }
    }
}

/// What a route does with the body of a request.
#[derive(Clone, Copy)]
pub enum BodyUse {
    /// A form is parsed as parameters, anything else is read and discarded.
    Form,
    /// JSON of this schema.
    Json(fn() -> RefOr<Schema>),
    /// Left to the handler.
    Bytes,
}

impl BodyUse {
    /// Fields of a JSON body and whether they are optional.
    pub fn fields(self) -> Vec<(String, bool)> {
        let Self::Json(schema) = self else { return Vec::new() };
        let schema = serde_json::to_value(schema()).unwrap_or_default();
        let is_required = |name: &str| {
            schema["required"].as_array().is_some_and(|names| names.iter().any(|required| required == name))
        };
        let fields = schema["properties"].as_object().into_iter().flatten();
        fields.map(|(name, _)| (name.clone(), !is_required(name))).collect()
    }
}

/// A JSON body, beside the parameters: `(Params, Body<T>)`. Unknown fields are ignored.
pub struct Body<T>(pub T);

impl<P, T> Params for (P, Body<T>)
where
    P: Params,
    T: DeserializeOwned + PartialSchema + Send + 'static,
{
    const LIST: &'static [Param] = P::LIST;
    const BODY: BodyUse = BodyUse::Json(T::schema);

    fn read(input: &Input) -> Result<Self, Vec<BadParam>> {
        let bad = |rule: String| vec![BadParam::Rule { name: "body".into(), rule }];
        // A struct could also be parsed from an array, by the undocumented order of its fields.
        match input.json.trim_ascii().first() {
            None => return Err(bad(format!("it is empty; send a JSON object{}", with_fields(T::schema)))),
            Some(b'{') => {}
            Some(_) if serde_json::from_slice::<IgnoredAny>(input.json).is_ok() => {
                return Err(bad(format!("it is not a JSON object; send one{}", with_fields(T::schema))));
            }
            Some(_) => {}
        }
        let mut json = serde_json::Deserializer::from_slice(input.json);
        let body = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let rule = sentence(error.inner());
            match error.path().iter().next() {
                // If the text is not JSON, the field that was being read is irrelevant.
                Some(_) if error.inner().is_data() => {
                    vec![BadParam::Rule { name: error.path().to_string().into(), rule }]
                }
                _ => bad(rule),
            }
        })?;
        json.end().map_err(|error| bad(sentence(&error)))?;
        Ok((P::read(input)?, Body(body)))
    }
}

/// Why JSON was refused, without Rust's terms.
pub fn sentence(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if !error.is_data() {
        return text;
    }
    // The field is named; its position in the text is of no use then.
    let place = format!(" at line {} column {}", error.line(), error.column());
    let text = text.strip_suffix(&place).unwrap_or(&text);
    let Some((found, wanted)) = text.rsplit_once(", expected ") else { return text.to_owned() };
    let wanted = match wanted {
        "i32" => "a 32-bit integer",
        "i64" => "a 64-bit integer",
        "a map" => "an object",
        other => other,
    };
    format!("{}, expected {wanted}", clipped(found))
}

/// The names of a body's fields, for people.
fn with_fields(schema: fn() -> RefOr<Schema>) -> String {
    let fields = BodyUse::Json(schema).fields();
    let names = fields.iter().map(|(name, optional)| format!("{name}{}", if *optional { "?" } else { "" }));
    match fields.is_empty() {
        true => String::new(),
        false => format!(" with {}", names.collect::<Vec<_>>().join(", ")),
    }
}

/// The handler reads the body itself: `(Params, RawBody)`.
pub struct RawBody;

impl<P: Params> Params for (P, RawBody) {
    const LIST: &'static [Param] = P::LIST;
    const BODY: BodyUse = BodyUse::Bytes;

    fn read(input: &Input) -> Result<Self, Vec<BadParam>> {
        Ok((P::read(input)?, RawBody))
    }
}

/// The parameters of one route.
pub trait Params: Sized + Send + 'static {
    const LIST: &'static [Param];
    const BODY: BodyUse = BodyUse::Form;

    fn read(input: &Input) -> Result<Self, Vec<BadParam>>;
}

/// A parameter's name from its field's: `r#as` is `as`.
pub const fn plain(field: &'static str) -> &'static str {
    match field.as_bytes() {
        [b'r', b'#', ..] => field.split_at(2).1,
        _ => field,
    }
}

/// Declares a struct of parameters. Optional ones become `Option`.
#[macro_export]
macro_rules! params {
    ($(#[$doc:meta])* $name:ident { $($required:ident: $rtype:ty),* $(,)? $(; $($optional:ident: $otype:ty),* $(,)?)? }) => {
        $(#[$doc])*
        pub struct $name {
            $(pub $required: $rtype,)*
            $($(pub $optional: Option<$otype>,)*)?
        }

        impl $crate::http::params::Params for $name {
            const LIST: &'static [$crate::http::params::Param] = &[
                $($crate::http::params::Param {
                    name: $crate::http::params::plain(stringify!($required)),
                    optional: false,
                    kind: <$rtype as $crate::http::params::Parameter>::KIND,
                },)*
                $($($crate::http::params::Param {
                    name: $crate::http::params::plain(stringify!($optional)),
                    optional: true,
                    kind: <$otype as $crate::http::params::Parameter>::KIND,
                },)*)?
            ];

            #[allow(unused_variables, unused_mut, reason = "a route may have no parameters")]
            fn read(input: &$crate::http::params::Input) -> Result<Self, Vec<$crate::http::params::BadParam>> {
                #[allow(unused_imports, reason = "a route may have no parameters")]
                use $crate::http::params::{BadParam, Parameter};
                let mut bad: Vec<BadParam> = Vec::new();
                $(let $required = match input.get($crate::http::params::plain(stringify!($required))) {
                    None => { bad.push(BadParam::Missing { name: $crate::http::params::plain(stringify!($required)) }); None }
                    Some(text) => <$rtype as Parameter>::parse($crate::http::params::plain(stringify!($required)), text).map_err(|error| bad.push(error)).ok(),
                };)*
                $($(let $optional = input
                    .get($crate::http::params::plain(stringify!($optional)))
                    .and_then(|text| <$otype as Parameter>::parse($crate::http::params::plain(stringify!($optional)), text).map_err(|error| bad.push(error)).ok());)*)?
                match ($($required,)*) {
                    ($(Some($required),)*) if bad.is_empty() => Ok(Self { $($required,)* $($($optional,)*)? }),
                    _ => Err(bad),
                }
            }
        }
    };
}

params! {
    /// For routes without parameters.
    NoParams {}
}

#[cfg(test)]
mod tests {
    use super::*;

    params! { Sample { ins: InstanceName, image: ImageRef; timeout: u64 } }

    fn errors(query: &str) -> (u16, Value) {
        match Sample::read(&Input::new(query)) {
            Ok(Sample { ins, image, timeout }) => (200, json!([ins, image, timeout])),
            Err(bad) => {
                let error = ApiError::from(bad);
                (error.status().as_u16(), error.detail())
            }
        }
    }

    #[test]
    fn all_missing_parameters_are_reported_at_once() {
        let (status, detail) = errors("");
        assert_eq!((status, detail.as_array().unwrap().len()), (422, 2));
        assert_eq!(
            detail[0],
            json!({"type": "missing", "loc": ["query", "ins"], "msg": "Field required", "input": null})
        );
    }

    #[test]
    fn optional_parameters_may_be_absent() {
        assert_eq!(errors("ins=a&image=b"), (200, json!(["a", "b", null])));
        assert_eq!(errors("ins=a&image=b&timeout=3&other=x"), (200, json!(["a", "b", 3])));
    }

    #[test]
    fn types_are_422_and_rules_400() {
        assert_eq!(errors("ins=a&image=b&timeout=x").0, 422);
        let (status, detail) = errors("ins=a-b&image=b");
        assert_eq!(
            (status, detail),
            (400, json!("ins: a name is made of letters, digits and '_' and starts with a letter; \"a-b\" has '-'"))
        );
    }

    #[test]
    fn the_last_value_and_the_form_win() {
        let mut input = Input::new("ins=a&ins=b");
        assert_eq!(input.get("ins"), Some("b"));
        input.extend(b"ins=c+d");
        assert_eq!(input.get("ins"), Some("c d"));
        assert_eq!(input.get_all("ins").collect::<Vec<_>>(), ["a", "b", "c d"]);
        assert_eq!(Input::new("gpu-id=0").get("gpu_id"), Some("0"));
        assert_eq!((plain("r#as"), plain("ins"), plain("r")), ("as", "ins", "r"));
    }
}
