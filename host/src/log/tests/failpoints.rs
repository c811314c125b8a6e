//! The list of this room's failpoints in `mod.rs` is complete and has nothing else.

use std::collections::BTreeSet;

const SOURCES: [&str; 5] = [
    include_str!("../writer/mod.rs"),
    include_str!("../writer/deletions.rs"),
    include_str!("../checkpoint.rs"),
    include_str!("../open.rs"),
    include_str!("../files.rs"),
];

#[test]
fn the_list_of_failpoints_is_that_of_the_sources() {
    let quoted = |text: &str| {
        text.split("failpoint!(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let used: BTreeSet<String> = SOURCES.iter().flat_map(|source| quoted(source)).collect();
    let listed = include_str!("../mod.rs").lines().filter_map(|line| line.strip_prefix("//! | `log."));
    let listed: BTreeSet<String> = listed.map(|line| format!("log.{}", line.split('`').next().unwrap())).collect();
    assert_eq!(listed, used);
}
