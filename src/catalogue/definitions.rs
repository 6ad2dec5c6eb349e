//! What a new list of a server's tools changes. PURE.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::{OnChange, ServerName, Timestamp, ToolName, ToolStatus};
use crate::protocol::ToolDefinition;
use crate::store::{HistoryKind, HistoryRow, ToolRow};

/// A tool as stored, and its definition as read.
#[derive(Debug, Clone)]
pub struct KnownTool {
    /// The row.
    pub row: ToolRow,
    /// The definition in force: for a held tool the one that was last approved.
    pub definition: ToolDefinition,
}

/// How old the stored time of a server's last answer, or a tool's last sighting, may become.
pub(super) const SEEN: Duration = Duration::from_secs(3600);
/// So many tools that are gone are remembered of a server; one that invents new names for ever must
/// not fill the memory. The history keeps them all.
const GONE: usize = 1000;

/// Compares a server's new list with what is known and gives the rows to store and the history
/// they make.
///
/// The `first` list of a server is always accepted. Later, a new or changed definition is taken
/// (`accept`, `warn`) or held: a held tool is neither listed nor callable.
#[must_use]
pub fn diff(
    server: &ServerName,
    known: &[KnownTool],
    listed: &[ToolDefinition],
    first: bool,
    on_change: OnChange,
    now: Timestamp,
) -> (Vec<KnownTool>, Vec<HistoryRow>) {
    let old: HashMap<&ToolName, &KnownTool> =
        known.iter().map(|tool| (&tool.row.tool, tool)).collect();
    let mut rows = Vec::with_capacity(listed.len());
    let mut history = Vec::new();
    let mut push_history =
        |tool: &ToolName, old: Option<[u8; 32]>, new: Option<[u8; 32]>, kind: HistoryKind| {
            history.push(HistoryRow {
                server: server.clone(),
                tool: tool.clone(),
                old_hash: old,
                new_hash: new,
                kind,
                at: now,
                by: None,
            });
        };
    let mut seen: HashMap<&ToolName, ()> = HashMap::new();
    for definition in listed {
        // A list with one name twice: the first stands.
        if seen.insert(&definition.name, ()).is_some() {
            continue;
        }
        let before = old.get(&definition.name);
        let position = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        let unchanged = before.is_some_and(|tool| tool.row.hash == definition.hash);
        let back = before.is_some_and(|tool| tool.row.status == ToolStatus::Gone);
        if !unchanged {
            let kind = if before.is_some() { HistoryKind::Changed } else { HistoryKind::Added };
            push_history(
                &definition.name,
                before.map(|tool| tool.row.hash),
                Some(definition.hash),
                kind,
            );
        } else if back {
            push_history(&definition.name, None, Some(definition.hash), HistoryKind::Added);
        }
        let held_before = before.is_some_and(|tool| tool.row.status == ToolStatus::Held);
        // What went away and comes back may have been held, or be the trick of a server.
        let held = on_change == OnChange::Hold && !first && (!unchanged || held_before || back);
        rows.push(KnownTool {
            row: ToolRow {
                server: server.clone(),
                tool: definition.name.clone(),
                hash: definition.hash,
                definition: definition.raw.clone(),
                status: if held { ToolStatus::Held } else { ToolStatus::Active },
                position,
                first_seen_at: before.map_or(now, |tool| tool.row.first_seen_at),
                last_seen_at: now,
            },
            definition: definition.clone(),
        });
    }
    let gone = known.iter().filter(|tool| !seen.contains_key(&tool.row.tool));
    for tool in gone.take(GONE) {
        if tool.row.status != ToolStatus::Gone {
            push_history(&tool.row.tool, Some(tool.row.hash), None, HistoryKind::Removed);
        }
        let mut gone = tool.clone();
        gone.row.status = ToolStatus::Gone;
        gone.row.position = u32::try_from(rows.len()).unwrap_or(u32::MAX);
        rows.push(gone);
    }
    (rows, history)
}

/// Whether two lists say the same; when tools were last seen is not worth a write each time.
pub(super) fn same_but_for_time(before: &[KnownTool], after: &[KnownTool]) -> bool {
    before.len() == after.len()
        && before.iter().zip(after).all(|(before, after)| {
            let seen_lately = after.row.last_seen_at.since(before.row.last_seen_at) < SEEN;
            before.row.tool == after.row.tool
                && before.row.hash == after.row.hash
                && before.row.status == after.row.status
                && seen_lately
        })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn definition(name: &str, description: &str) -> ToolDefinition {
        let raw = format!(r#"{{"name":"{name}","description":"{description}"}}"#);
        ToolDefinition::parse(&Bytes::from(raw)).unwrap()
    }

    fn step(
        known: &[KnownTool],
        listed: &[ToolDefinition],
        on_change: OnChange,
    ) -> (Vec<KnownTool>, Vec<String>) {
        let server = ServerName::parse("up").unwrap();
        let (rows, history) =
            diff(&server, known, listed, known.is_empty(), on_change, Timestamp::from_millis(1));
        (
            rows,
            history.into_iter().map(|row| format!("{} {}", row.kind.as_str(), row.tool)).collect(),
        )
    }

    fn states(rows: &[KnownTool]) -> Vec<(String, ToolStatus)> {
        rows.iter().map(|tool| (tool.row.tool.to_string(), tool.row.status)).collect()
    }

    #[test]
    fn additions_changes_and_removals_make_history() {
        let (rows, history) =
            step(&[], &[definition("a", "1"), definition("b", "1")], OnChange::Warn);
        assert_eq!(history, ["added a", "added b"]);
        let (rows, history) =
            step(&rows, &[definition("b", "2"), definition("c", "1")], OnChange::Warn);
        assert_eq!(history, ["changed b", "added c", "removed a"]);
        assert_eq!(
            states(&rows),
            [
                ("b".into(), ToolStatus::Active),
                ("c".into(), ToolStatus::Active),
                ("a".into(), ToolStatus::Gone)
            ]
        );
        let (rows, history) = step(&rows, &[definition("a", "1")], OnChange::Warn);
        assert_eq!(history, ["added a", "removed b", "removed c"]);
        assert_eq!(rows[0].row.status, ToolStatus::Active);
    }

    #[test]
    fn held_tools_stay_held_until_approved() {
        let (rows, _) = step(&[], &[definition("a", "1")], OnChange::Hold);
        assert_eq!(rows[0].row.status, ToolStatus::Active);
        let changed = [definition("a", "2"), definition("b", "1")];
        let (rows, _) = step(&rows, &changed, OnChange::Hold);
        assert!(rows.iter().all(|tool| tool.row.status == ToolStatus::Held));
        let (rows, history) = step(&rows, &changed, OnChange::Hold);
        assert!(rows.iter().all(|tool| tool.row.status == ToolStatus::Held));
        assert!(history.is_empty());
    }

    #[test]
    fn a_name_listed_twice_counts_once() {
        let (rows, _) = step(&[], &[definition("a", "1"), definition("a", "2")], OnChange::Warn);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].definition.description.as_deref(), Some("1"));
    }
}
