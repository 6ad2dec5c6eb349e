//! [`Encoder`]: calls as lines of an export.
//!
//! Changes when a format of exports changes. Values in, values out.
//!
//! An export is opened in spreadsheets, printed on terminals and fed to programs that read line by
//! line. So each call is exactly one line, and nothing in it is taken for a formula, a command to a
//! terminal, or a further line.

use serde::Serialize;
use serde_json::Value;

use super::query::{AttemptRecord, CallRecord, CallRecordDetail, Payloads};
use crate::model::{escape_json, escape_line};

/// How an export is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// One JSON object a line, with attempts.
    Jsonl,
    /// RFC 4180 with a header line, without attempts (their number is there).
    Csv,
}

impl ExportFormat {
    /// Every format.
    pub const ALL: [Self; 2] = [Self::Jsonl, Self::Csv];

    /// The name in the API, and what file names end in.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }

    /// Reads a format's name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }

    /// The media type.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Jsonl => "application/x-ndjson; charset=utf-8",
            Self::Csv => "text/csv; charset=utf-8; header=present",
        }
    }
}

/// The columns of CSV: the members of a call, in their order.
const COLUMNS: [&str; 31] = [
    "id",
    "seq",
    "started_at",
    "started_at_ms",
    "caller",
    "session",
    "client_name",
    "client_version",
    "entrance",
    "protocol_version",
    "view",
    "tool",
    "upstream_tool",
    "server",
    "definition_hash",
    "outcome",
    "error_code",
    "error",
    "failure",
    "http_status",
    "attempts",
    "duration_ms",
    "upstream_ms",
    "queue_ms",
    "request_bytes",
    "response_bytes",
    "trace_id",
    "remote_address",
    "arguments_level",
    "results_level",
    "breaker",
];
/// The columns that follow with payloads.
const PAYLOAD_COLUMNS: [&str; 2] = ["arguments", "result"];

/// Writes calls in one format.
#[derive(Debug, Clone, Copy)]
pub struct Encoder {
    format: ExportFormat,
    payloads: Payloads,
}

/// As [`CallRecordDetail`], where payloads were not asked for: absent says more than null.
#[derive(Serialize)]
struct WithoutPayloads<'a> {
    #[serde(flatten)]
    call: &'a CallRecord,
    attempt_list: &'a [AttemptRecord],
}

impl Encoder {
    /// Writes in `format`.
    #[must_use]
    pub const fn new(format: ExportFormat, payloads: Payloads) -> Self {
        Self { format, payloads }
    }

    /// What stands before the first call.
    #[must_use]
    pub fn header(self) -> String {
        if self.format == ExportFormat::Jsonl {
            return String::new();
        }
        let mut columns = COLUMNS.to_vec();
        if self.payloads == Payloads::With {
            columns.extend(PAYLOAD_COLUMNS);
        }
        columns.join(",") + "\r\n"
    }

    /// Adds a call to `out`: one line with its end.
    pub fn call(self, call: &CallRecordDetail, out: &mut String) {
        match self.format {
            ExportFormat::Jsonl => self.jsonl(call, out),
            ExportFormat::Csv => self.csv(call, out),
        }
    }

    fn jsonl(self, call: &CallRecordDetail, out: &mut String) {
        let json = match self.payloads {
            Payloads::With => serde_json::to_string(call),
            Payloads::Without => serde_json::to_string(&WithoutPayloads {
                call: &call.call,
                attempt_list: &call.attempt_list,
            }),
        };
        // Names are text and numbers finite, so this does not fail; if it did, a call that is
        // missing would be worse than one without its members.
        let json = json.unwrap_or_else(|_impossible| format!("{{\"seq\":{}}}", call.call.seq));
        // A payload is kept as it came and may have line ends between its tokens.
        let line = json.replace(['\n', '\r'], " ");
        out.push_str(&escape_json(&line));
        out.push('\n');
    }

    fn csv(self, call: &CallRecordDetail, out: &mut String) {
        let members = serde_json::to_value(&call.call).unwrap_or_default();
        for (at, column) in COLUMNS.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            match members.get(column) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => cell(text, out),
                Some(other) => out.push_str(&other.to_string()),
            }
        }
        if self.payloads == Payloads::With {
            for payload in [&call.arguments, &call.result] {
                out.push(',');
                if let Some(json) = payload {
                    cell(json.get(), out);
                }
            }
        }
        out.push_str("\r\n");
    }
}

/// Adds a text as one cell.
///
/// A spreadsheet takes what begins with one of these for a formula, also when it stands in quotes; a
/// single quote in front makes it text there. Some take the wide forms for the narrow ones.
fn cell(text: &str, out: &mut String) {
    let formula = text.starts_with([
        '=', '+', '-', '@', '\t', '\r', '\n', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
    ]);
    let text = escape_line(text);
    // Programs of some countries part cells at semicolons: quotes hold those together, too.
    let quoted =
        text.contains([',', '"', ';', '\'']) || text.starts_with(' ') || text.ends_with(' ');
    let quotes = if quoted || formula { "\"" } else { "" };
    out.push_str(quotes);
    if formula {
        out.push('\'');
    }
    out.push_str(&text.replace('"', "\"\""));
    out.push_str(quotes);
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;
    use crate::model::Outcome;

    fn call(tool: &str, error: Option<&str>) -> CallRecordDetail {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        CallRecordDetail {
            call: CallRecord {
                id: "0193".to_owned(),
                seq: 7,
                started_at: "2026-11-24T10:00:00.000Z".to_owned(),
                started_at_ms: 1,
                caller: "laptop".to_owned(),
                session: None,
                client_name: None,
                client_version: None,
                entrance: "rest",
                protocol_version: None,
                view: None,
                tool: tool.to_owned(),
                upstream_tool: None,
                server: None,
                definition_hash: None,
                outcome: Outcome::Ok,
                error_code: None,
                error: error.map(str::to_owned),
                failure: None,
                http_status: 200,
                attempts: 1,
                duration_ms: 1.5,
                upstream_ms: 0.0,
                queue_ms: 0.0,
                request_bytes: 2,
                response_bytes: 3,
                trace_id: None,
                remote_address: None,
                arguments_level: None,
                results_level: None,
                breaker: None,
            },
            attempt_list: Vec::new(),
            arguments: Some(raw("{\"n\":\n1e400,\"t\":\"\u{202e}\"}")),
            result: Some(raw("\"=1+1\"")),
            arguments_digest: None,
            result_digest: None,
        }
    }

    fn written(format: ExportFormat, payloads: Payloads, call: &CallRecordDetail) -> String {
        let encoder = Encoder::new(format, payloads);
        let mut out = encoder.header();
        encoder.call(call, &mut out);
        out
    }

    #[test]
    fn the_columns_are_the_members_of_a_call() {
        let json = serde_json::to_string(&call("t", None).call).unwrap();
        let mut at = 0;
        for column in COLUMNS {
            let rest = json.get(at..).unwrap();
            let found = rest.find(&format!("\"{column}\":"));
            at += found.unwrap_or_else(|| panic!("{column} is not next in {rest}"));
        }
        let members: Value = serde_json::from_str(&json).unwrap();
        assert_eq!(members.as_object().unwrap().len(), COLUMNS.len());
    }

    #[test]
    fn a_line_of_csv_has_a_cell_for_each_column() {
        let text = written(ExportFormat::Csv, Payloads::Without, &call("t", Some("a, \"b\"; c")));
        let expected = "0193,7,2026-11-24T10:00:00.000Z,1,laptop,,,,rest,,,t,,,,ok,,\
                        \"a, \"\"b\"\"; c\",,200,1,1.5,0.0,0.0,2,3,,,,,\r\n";
        assert_eq!(text, COLUMNS.join(",") + "\r\n" + expected);
        let text = written(ExportFormat::Csv, Payloads::With, &call("t", None));
        assert!(text.contains("breaker,arguments,result\r\n"), "{text}");
        let cells = ",\"{\"\"n\"\":\\n1e400,\"\"t\"\":\"\"\\u{202e}\"\"}\",\"\"\"=1+1\"\"\"\r\n";
        assert!(text.ends_with(cells), "{text}");
    }

    #[test]
    fn no_cell_is_a_formula() {
        for (text, expected) in [
            ("=1+1", "\"'=1+1\""),
            ("+1", "\"'+1\""),
            ("-1", "\"'-1\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\\t=1\""),
            ("\r=1", "\"'\\r=1\""),
            ("\n=1", "\"'\\n=1\""),
            ("\u{ff1d}1", "\"'\u{ff1d}1\""),
            ("=\"a\"", "\"'=\"\"a\"\"\""),
            ("a=1", "a=1"),
            ("", ""),
        ] {
            let mut out = String::new();
            cell(text, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_line_of_json_is_one_line_and_means_the_same() {
        let text = written(ExportFormat::Jsonl, Payloads::With, &call("a\u{9b}\nb", None));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.contains(r#""arguments":{"n": 1e400,"t":"\u202e"}"#), "{text}");
        assert!(text.contains(r#""tool":"a\u009b\nb""#) && text.contains(r#""attempt_list":[]"#));
        let text = written(ExportFormat::Jsonl, Payloads::Without, &call("t", None));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert!(value.get("arguments").is_none() && value.get("result").is_none(), "{text}");
    }
}
