//! The SDK's loop and the store of its test host, through a machine that is nothing but a probe.
#![cfg(feature = "guest")]

use raftlet_machine::guest::bindings::{Guest, raftlet::machine::types};
use raftlet_machine::guest::{Context, KeyRange, Machine, Route, Store, StoreView, TestHost};
use raftlet_machine::{ArchivedRequest, Batch, Method, Replies, Reply, Request};

struct Probe;

impl Machine for Probe {
    const NAME: &'static str = "probe";
    const VERSION: &'static str = "1.2.3";
    const SCHEMA: u32 = 4;

    fn routes() -> &'static [Route] {
        const ROUTES: &[Route] = &[Route::new(Method::Patch, "/x", "probes")];
        ROUTES
    }

    fn apply(ctx: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply {
        let key = request.path().as_bytes();
        store.set(key, request.body());
        match request.query.as_str() {
            "rollback" => store.rollback(),
            "delete" => assert!(store.delete(key) && !store.delete(key)),
            "clear" => return Reply::text(200, store.delete_range(&KeyRange::prefix(b"/a"))),
            _ => {}
        }
        Reply::text(200, ctx.command_number)
    }

    fn query(_: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply {
        let kind = format!("{:?}", request.method());
        let keys = |range: &KeyRange, limit, bytes_max| {
            let keys = store.scan(range, limit, bytes_max).into_iter().map(|e| String::from_utf8(e.key).unwrap());
            keys.collect::<Vec<_>>().join(" ")
        };
        match request.query.as_str() {
            "all" => Reply::text(200, keys(&KeyRange::all(), 100, 1000)),
            "back" => Reply::text(200, keys(&KeyRange::all().reversed(), 2, 1000)),
            "small" => Reply::text(200, keys(&KeyRange::all().after(b"/a"), 100, 1)),
            _ => Reply::text(200, kind),
        }
    }
}

fn put(target: &str) -> Request {
    Request::new(Method::Put, target).with_body("value")
}

fn texts(replies: &[Reply]) -> Vec<&str> {
    replies.iter().map(|r| std::str::from_utf8(&r.body).unwrap().trim_end()).collect()
}

#[test]
fn an_empty_run_is_all_positions_and_another_is_those_in_order() {
    let batch = Batch { commands: vec![put("/a"), put("/b"), put("/c")] }.to_bytes();
    let run = |run: &[u32]| {
        let ctx = types::Context { log_index: 1, term: 1, time_ms: 0, first_command: 10, seed: 0 };
        let replies = Replies::from_bytes(&probe(ctx, batch.clone(), run.to_vec())).unwrap().replies;
        texts(&replies).join(" ")
    };
    assert_eq!(run(&[]), "10 11 12");
    assert_eq!(run(&[2]), "12");
    assert_eq!(run(&[0, 2]), "10 12");
}

/// As `Guest::apply` does it, but over a store in memory.
fn probe(ctx: types::Context, batch: Vec<u8>, run: Vec<u32>) -> Vec<u8> {
    <Probe as Guest>::apply(ctx, batch, run)
}

#[test]
fn an_empty_batch_has_no_replies() {
    assert_eq!(TestHost::<Probe>::default().apply(Vec::new()), Vec::new());
}

#[test]
fn rollback_undoes_one_command_and_only_that() {
    let mut host = TestHost::<Probe>::default();
    host.apply(vec![put("/a"), put("/b?rollback"), put("/c"), put("/d?delete")]);
    assert_eq!(texts(&host.query(vec![Request::new(Method::Get, "/?all")])), ["/a /c"]);
    assert_eq!(host.store().get(b"/a").as_deref(), Some(&b"value"[..]));
}

#[test]
fn scans_go_both_ways_and_always_give_one_entry() {
    let mut host = TestHost::<Probe>::default();
    host.apply(["/a", "/a1", "/b", "/c"].map(put).to_vec());
    let mut ask = |query: &str| texts(&[host.send(Request::new(Method::Get, query))])[0].to_string();
    assert_eq!(ask("/?all"), "/a /a1 /b /c");
    assert_eq!(ask("/?back"), "/c /b");
    assert_eq!(ask("/?small"), "/a1");
    assert_eq!(texts(&host.apply(vec![put("/z?clear")])), ["2"]);
    assert_eq!(texts(&[host.send(Request::new(Method::Get, "/?all"))]), ["/b /c /z"]);
}

#[test]
fn a_query_sees_whether_it_is_a_head() {
    let mut host = TestHost::<Probe>::default();
    let kinds = [Method::Get, Method::Head].map(|method| host.send(Request::new(method, "/")));
    assert_eq!(texts(&kinds), ["Get", "Head"]);
}

#[test]
fn the_description_and_the_default_migration_come_from_the_constants() {
    let about = <Probe as Guest>::describe();
    assert_eq!((about.name.as_str(), about.version.as_str(), about.schema), ("probe", "1.2.3", 4));
    assert_eq!((about.routes[0].method.as_str(), about.routes[0].path.as_str()), ("PATCH", "/x"));
    assert_eq!(<Probe as Guest>::migrate(4), Ok(()));
    assert_eq!(<Probe as Guest>::migrate(3), Err("probe has no migration from schema 3 to 4".into()));
}
