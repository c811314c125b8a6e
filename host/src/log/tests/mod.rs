//! Tests of the whole log on a real sled in a temporary folder.

mod durability;
mod endurance;
mod failpoints;
mod groups;
mod inspect;
mod journal;
mod model;
mod parts;
mod reopen;
mod rot;
mod suite;
pub(crate) mod support;
