//! Counters over HTTP: `POST /counter/{name}` adds the number in the body (or 1), `GET /counter/{name}` reads.

use raftlet_machine::guest::{Context, Machine, Store, StoreView};
use raftlet_machine::{ArchivedRequest, Reply};

struct Counter;

impl Machine for Counter {
    const NAME: &'static str = "counter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");

    fn apply(_: &Context, request: &ArchivedRequest, store: &mut Store) -> Reply {
        let Some(Ok(name)) = request.path_after("/counter/") else { return Reply::not_found() };
        let step = if request.body().is_empty() { "1" } else { request.body_text().unwrap_or_default() };
        let Ok(step) = step.trim().parse::<i64>() else { return Reply::bad_request("not a number") };
        let total = read(store, &name).wrapping_add(step);
        store.set(&name, &total.to_le_bytes());
        Reply::text(200, total)
    }

    fn query(_: &Context, request: &ArchivedRequest, store: &StoreView) -> Reply {
        let Some(Ok(name)) = request.path_after("/counter/") else { return Reply::not_found() };
        Reply::text(200, read(store, &name))
    }
}

fn read(store: &StoreView, name: &[u8]) -> i64 {
    store.get(name).and_then(|bytes| bytes.try_into().ok()).map_or(0, i64::from_le_bytes)
}

raftlet_machine::export!(Counter);

#[cfg(test)]
mod tests {
    use super::*;
    use raftlet_machine::{Method, Request, guest::TestHost};

    #[test]
    fn counters_count() {
        let mut host = TestHost::<Counter>::default();
        let mut send = |method, path, body: &str| {
            let reply = host.send(Request::new(method, path).with_body(body));
            (reply.status, String::from_utf8(reply.body).unwrap())
        };
        assert_eq!(send(Method::Get, "/counter/a", ""), (200, "0\n".into()));
        assert_eq!(send(Method::Post, "/counter/a", ""), (200, "1\n".into()));
        assert_eq!(send(Method::Post, "/counter/a", "41"), (200, "42\n".into()));
        assert_eq!(send(Method::Post, "/counter/b", "-7\n"), (200, "-7\n".into()));
        assert_eq!(send(Method::Get, "/counter/a", ""), (200, "42\n".into()));
        assert_eq!(send(Method::Post, "/counter/a", "many").0, 400);
        assert_eq!(send(Method::Post, "/elsewhere", "").0, 404);
    }
}
