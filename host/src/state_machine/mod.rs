pub mod map;
pub mod overlay;
