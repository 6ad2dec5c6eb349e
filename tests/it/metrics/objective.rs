//! Whose failure a call is, is judged alike everywhere.

use std::collections::BTreeSet;
use std::path::Path;

use switchyard::error::ErrorCode;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// What stands between each `before` and the next of `after`.
fn each<'a>(text: &'a str, before: &str, after: char) -> Vec<&'a str> {
    text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
}

#[test]
fn one_list_of_faults_holds_for_objectives_alerts_dashboards_and_documents() {
    let faults: BTreeSet<&str> =
        ErrorCode::ALL.iter().filter(|code| code.is_fault()).map(|code| code.as_str()).collect();
    let alerts = read("grafana/alerts.yaml");
    let in_alerts = each(&alerts, "error_type=~\"", '"');
    assert_eq!(in_alerts.len(), 7, "{in_alerts:?}");
    let overview = read("grafana/overview.json");
    let mut in_panels = each(&overview, "error_type=~\\\"", '\\');
    in_panels.extend(each(&overview, "error_type!~\\\"", '\\'));
    assert!(in_panels.len() >= 3, "{in_panels:?}");
    for list in in_alerts.into_iter().chain(in_panels) {
        assert_eq!(list.split('|').collect::<BTreeSet<_>>(), faults);
    }
    let document = read("docs/observability.md");
    let rows = document.lines().filter(|line| line.ends_with("| yes |"));
    let words = rows.flat_map(|row| each(row, "`", '`'));
    let in_document: BTreeSet<&str> = words.filter(|word| word.ends_with("Error")).collect();
    assert_eq!(in_document, faults);
}
