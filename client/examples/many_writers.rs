//! A thousand tasks that share one client: `cargo run --example many_writers -- http://127.0.0.1:8080 ...`, with the
//! URLs of a cluster that has the key-value module.

use std::time::Instant;

use anyhow::Context as _;
use raftlet_client::{Client, Error};

const WRITERS: u32 = 1_000;
const WRITES: u32 = 20;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let urls: Vec<String> = std::env::args().skip(1).collect();
    // With keys of its own the client may send a command again whatever happened: each happens once.
    let client = Client::builder(urls).idempotency_keys(true).build()?;
    let begun = Instant::now();
    let writers: Vec<_> = (0..WRITERS).map(|writer| tokio::spawn(write(client.clone(), writer))).collect();
    for writer in writers {
        writer.await?.context("a write failed")?;
    }
    println!("{} writes in {:?}; {:?}", WRITERS * WRITES, begun.elapsed(), client.figures());
    let last = client.get(&format!("/kv/example-0-{}", WRITES - 1)).await?;
    println!("the last one: status {}, {} bytes, at log index {}", last.status(), last.body().len(), last.index());
    Ok(())
}

async fn write(client: Client, writer: u32) -> Result<(), Error> {
    for write in 0..WRITES {
        let reply = client.put(&format!("/kv/example-{writer}-{write}"), "value").await?;
        assert!(reply.is_success(), "the module said {}", reply.status());
    }
    Ok(())
}
