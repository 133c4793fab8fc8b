//! Times in SQLite: an INTEGER, milliseconds since 1970.

use rusqlite::{
    ToSql,
    types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef},
};

use crate::model::time::Millis;

impl ToSql for Millis {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.0.to_sql()
    }
}

impl FromSql for Millis {
    fn column_result(value: ValueRef) -> FromSqlResult<Self> {
        i64::column_result(value).map(Self)
    }
}
