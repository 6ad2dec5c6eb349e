//! `switchyard audit show`: everything about one call.
//!
//! Changes when one call's entry shows something else.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Call, outcome_style};
use crate::cli::client::Ask;
use crate::cli::table::{Cell, Style, Table};
use crate::cli::{CliError, Context, Status, text, when};

pub(super) async fn show(context: &Context, id: &str) -> Result<Status, CliError> {
    let client = context.client()?;
    let answer = client.request(Ask::get(&["mcp", "audit", id])).await?;
    if context.out.is_json() {
        context.out.json(answer.text()?)?;
        return Ok(Status::Done);
    }
    let out = &context.out;
    let call: Call = answer.parse()?;
    out.line(format!(
        "{} {}",
        out.paint(call.tool.as_deref().unwrap_or("(no tool)"), Style::Bold),
        out.paint(&call.outcome, call.style())
    ))?;
    // In the router's order, and payloads as they are stored: no number passes through our hands.
    let fields: Fields = answer.parse()?;
    let zone = when::zone();
    for (name, value) in &fields.0 {
        let value = match (name.as_str(), value.get()) {
            (_, "null") | ("started_at_ms" | "attempt_list", _) => continue,
            ("started_at", _) => call.time(&zone, false),
            (_, json) => {
                serde_json::from_str::<String>(json).unwrap_or_else(|_json| json.to_owned())
            }
        };
        // Names are one line; a further one would look like a name of ours to whoever reads fast.
        let value = match name.as_str() {
            "error" | "arguments" | "result" => {
                text::escape_block(&value).replace('\n', "\n                   ")
            }
            _ => text::escape_line(&value).into_owned(),
        };
        out.line(format!("  {:<16} {value}", text::escape_line(name)))?;
    }
    let tried: Tried = answer.parse()?;
    if !tried.attempt_list.is_empty() {
        out.line("")?;
        out.table(&attempts(&tried.attempt_list))?;
    }
    Ok(Status::Done)
}

/// What was tried, as far as the table shows it. Absent in answers of a router before this one.
#[derive(Deserialize)]
struct Tried {
    #[serde(default)]
    attempt_list: Vec<Attempt>,
}

#[derive(Deserialize)]
struct Attempt {
    n: u32,
    began_ms: f64,
    took_ms: f64,
    outcome: String,
    #[serde(default)]
    failure: Option<String>,
    #[serde(default)]
    error: Option<String>,
    #[serde(default)]
    http_status: Option<u16>,
    #[serde(default)]
    probe: bool,
}

fn attempts(list: &[Attempt]) -> Table {
    // Probes are rare: without one, nobody need wonder what the column means.
    let probes = list.iter().any(|attempt| attempt.probe);
    let mut table = Table::new().number("TRY").number("BEGAN").number("TOOK").whole("OUTCOME");
    if probes {
        table = table.whole("PROBE");
    }
    let mut table = table.whole("FAILURE").number("STATUS").cut("ERROR");
    for attempt in list {
        let mut cells = vec![
            attempt.n.to_string().into(),
            format!("+{}", when::milliseconds(attempt.began_ms)).into(),
            when::milliseconds(attempt.took_ms).into(),
            Cell::new(&attempt.outcome, outcome_style(&attempt.outcome)),
        ];
        if probes {
            cells.push(if attempt.probe { "probe" } else { "" }.into());
        }
        cells.extend([
            attempt.failure.as_deref().unwrap_or_default().into(),
            attempt.http_status.map_or_else(String::new, |status| status.to_string()).into(),
            attempt.error.as_deref().map(text::first_line).unwrap_or_default().into(),
        ]);
        table.row(cells);
    }
    table
}

/// An object's fields in their order.
struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;
        impl<'de> serde::de::Visitor<'de> for InOrder {
            type Value = Fields;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut map: A,
            ) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_order_and_bytes() {
        let fields: Fields =
            serde_json::from_str(r#"{"z":1e400,"a":{"n":1.0, "n":2},"m":"x"}"#).unwrap();
        let fields: Vec<(&str, &str)> =
            fields.0.iter().map(|(name, value)| (name.as_str(), value.get())).collect();
        assert_eq!(fields, [("z", "1e400"), ("a", r#"{"n":1.0, "n":2}"#), ("m", "\"x\"")]);
    }

    fn tried(json: &str) -> String {
        let tried: Tried = serde_json::from_str(json).unwrap();
        attempts(&tried.attempt_list).render(None, false)
    }

    #[test]
    fn attempts_are_a_table_in_their_order() {
        let first = r#"{"n":1,"began_ms":0.04,"took_ms":12.3,"outcome":"unavailable","failure":"not_sent","error":"refused\nmore","http_status":null,"probe":false}"#;
        let second = r#"{"n":2,"began_ms":512.4,"took_ms":1500.0,"outcome":"unavailable","failure":"ambiguous","error":null,"http_status":502,"probe":false}"#;
        let third = r#"{"n":3,"began_ms":3000.0,"took_ms":2.0,"outcome":"ok","failure":null,"error":null,"http_status":200,"probe":true}"#;
        assert_eq!(
            tried(&format!(r#"{{"attempt_list":[{first},{second}]}}"#)),
            "TRY    BEGAN   TOOK  OUTCOME      FAILURE    STATUS  ERROR\n\
             \x20 1  +0.0 ms  12 ms  unavailable  not_sent           refused\n\
             \x20 2  +512 ms  1.5 s  unavailable  ambiguous     502\n"
        );
        assert_eq!(
            tried(&format!(r#"{{"attempt_list":[{first},{third}]}}"#)),
            "TRY    BEGAN    TOOK  OUTCOME      PROBE  FAILURE   STATUS  ERROR\n\
             \x20 1  +0.0 ms   12 ms  unavailable         not_sent          refused\n\
             \x20 3   +3.0 s  2.0 ms  ok           probe               200\n"
        );
    }

    #[test]
    fn an_entry_without_attempts_can_be_shown() {
        for json in [r#"{"id":"1"}"#, r#"{"attempt_list":[]}"#] {
            let tried: Tried = serde_json::from_str(json).unwrap();
            assert!(tried.attempt_list.is_empty());
        }
    }
}
