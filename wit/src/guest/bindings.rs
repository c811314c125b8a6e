//! What wit-bindgen makes of `wit/machine.wit`. Nothing is written by hand here; next is `run.rs`, which connects it
//! with [`super::Machine`].

#![allow(missing_docs, clippy::too_many_arguments)]

wit_bindgen::generate!({
    path: "wit",
    world: "state-machine",
    pub_export_macro: true,
    export_macro_name: "export_component",
    default_bindings_module: "raftlet_machine::guest::bindings",
    runtime_path: "::raftlet_machine::wit_bindgen_rt",
});
