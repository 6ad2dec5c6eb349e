//! Tables that programs rely on, kept as files: a change is a diff that someone reads.

use switchyard::error::ErrorCode;

#[test]
fn error_codes_are_as_reviewed() {
    let mut table = String::new();
    for code in ErrorCode::ALL {
        table += &format!(
            "{:26} {}  {}  {}\n",
            code.as_str(),
            code.http_status(),
            code.json_rpc_code(),
            code.title()
        );
    }
    insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!("error_codes", table);
    });
}

#[test]
fn every_error_code_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<_> =
        ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
    assert_eq!(names.len(), ErrorCode::ALL.len());
}
