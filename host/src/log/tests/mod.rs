//! Tests of the whole log on a real sled in a temporary folder.

mod durability;
mod groups;
mod model;
mod reopen;
mod suite;
pub(crate) mod support;
