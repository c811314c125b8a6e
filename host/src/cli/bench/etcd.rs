//! etcd's own protocol, as far as a comparison needs it: Put, Range and Txn of its service `KV`, with the field numbers
//! of etcd's public `rpc.proto`. Each bench client has one of a few HTTP/2 connections, as etcd's own benchmark does it.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use bytes::{BufMut as _, BytesMut};

use super::clients::Failed;
use super::workload::Workload;
use crate::cli::http::Url;
use crate::cli::http2::{Channel, Refused};

/// An answer that takes longer counts as an error.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// etcd's default for operations of one transaction.
pub const TXN_OPS_MAX: u64 = 128;
/// gRPC's code for "too many requests" and its like (etcd answers it when its backlog is full).
const RESOURCE_EXHAUSTED: u16 = 8;

#[derive(Clone)]
pub struct Etcd {
    channel: Rc<Channel>,
    workload: Workload,
    message: BytesMut,
    value: BytesMut,
}

impl Etcd {
    /// So many connections to each node, in turn.
    pub async fn connect_all(urls: &[Url], connections: usize, workload: Workload) -> anyhow::Result<Vec<Etcd>> {
        let mut all = Vec::with_capacity(urls.len() * connections);
        for url in urls.iter().cycle().take(urls.len() * connections) {
            let channel = Rc::new(Channel::connect(url, ANSWER_TIMEOUT).await?);
            all.push(Etcd { channel, workload, message: BytesMut::new(), value: BytesMut::new() });
        }
        Ok(all)
    }

    pub async fn write(&mut self, ops: Range<u64>) -> Result<(), Failed> {
        self.message.clear();
        if ops.end - ops.start == 1 {
            self.put(ops.start);
            self.call("/etcdserverpb.KV/Put").await?;
            return Ok(());
        }
        // TxnRequest.success = 2, RequestOp.request_put = 2.
        let mut txn = BytesMut::new();
        for op in ops {
            self.put(op);
            let mut request_op = BytesMut::new();
            field(&mut request_op, 2, &self.message.split());
            field(&mut txn, 2, &request_op);
        }
        self.message = txn;
        self.call("/etcdserverpb.KV/Txn").await?;
        Ok(())
    }

    /// Linearizable: that is a Range's default.
    pub async fn read(&mut self, op: u64) -> Result<(), Failed> {
        self.message.clear();
        // RangeRequest.key = 1.
        field(&mut self.message, 1, self.workload.path_of(op).as_bytes());
        let answer = self.call("/etcdserverpb.KV/Range").await?;
        let found = value_of(&answer).with_context(|| format!("Range {}", self.workload.path_of(op)))?;
        if found != self.workload.value(op, &mut self.value) {
            return Err(anyhow!("Range {}: not the value that was written", self.workload.path_of(op)).into());
        }
        Ok(())
    }

    /// PutRequest: key = 1, value = 2.
    fn put(&mut self, op: u64) {
        field(&mut self.message, 1, self.workload.path_of(op).as_bytes());
        let value = self.workload.value(op, &mut self.value);
        field(&mut self.message, 2, &value);
    }

    async fn call(&self, method: &'static str) -> Result<bytes::Bytes, Failed> {
        let answered = tokio::time::timeout(ANSWER_TIMEOUT, self.channel.call(method, &self.message)).await;
        let answered = answered.map_err(|_| anyhow!("{method}: no answer within {ANSWER_TIMEOUT:?}"))?;
        answered.map_err(|Refused { code, detail }| match code {
            Some(RESOURCE_EXHAUSTED) => Failed::Refused(detail),
            Some(code) => anyhow!("{method}: gRPC status {code}: {detail}").into(),
            None => anyhow!("{method}: {detail}").into(),
        })
    }
}

/// A field of bytes: Protocol Buffers' wire type 2.
fn field(into: &mut BytesMut, number: u8, bytes: &[u8]) {
    into.put_u8(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        into.put_u8(length as u8 | 0x80);
        length >>= 7;
    }
    into.put_u8(length as u8);
    into.put_slice(bytes);
}

/// RangeResponse.kvs = 2, KeyValue.value = 5; a value that is empty is left out.
fn value_of(response: &[u8]) -> anyhow::Result<&[u8]> {
    let pair = find(response, 2)?.context("the key isn't there")?;
    Ok(find(pair, 5)?.unwrap_or_default())
}

/// The first field of bytes with this number.
fn find(mut message: &[u8], wanted: u64) -> anyhow::Result<Option<&[u8]>> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        match tag & 7 {
            0 => drop(varint(&mut message)?),
            2 => {
                let length = usize::try_from(varint(&mut message)?)?;
                let Some((bytes, rest)) = message.split_at_checked(length) else { bail!("the message is torn") };
                if tag >> 3 == wanted {
                    return Ok(Some(bytes));
                }
                message = rest;
            }
            other => bail!("wire type {other} is in none of these messages"),
        }
    }
    Ok(None)
}

fn varint(message: &mut &[u8]) -> anyhow::Result<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let Some((byte, rest)) = message.split_first() else { bail!("the message is torn") };
        *message = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    bail!("a number is over 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_written_as_protocol_buffers_are() {
        let mut message = BytesMut::new();
        field(&mut message, 1, b"foo");
        field(&mut message, 2, &[7; 300]);
        assert_eq!(&message[..8], b"\x0a\x03foo\x12\xac\x02");
        assert_eq!(find(&message, 1).unwrap(), Some(&b"foo"[..]));
        assert_eq!(find(&message, 2).unwrap().unwrap().len(), 300);
        assert_eq!(find(&message, 3).unwrap(), None);
    }

    #[test]
    fn a_value_is_found_behind_numbers_and_a_header() {
        // header {cluster_id: 1}, kvs {key: "a", create_revision: 300, value: "v"}, count: 1.
        let response = b"\x0a\x02\x08\x01\x12\x09\x0a\x01a\x10\xac\x02\x2a\x01v\x20\x01";
        assert_eq!(value_of(response).unwrap(), b"v");
        assert_eq!(value_of(b"\x12\x03\x0a\x01a").unwrap(), b"", "an empty value isn't sent");
        assert!(value_of(b"\x20\x00").unwrap_err().to_string().contains("isn't there"));
        for torn in [&response[..9], b"\x12", b"\x12\xff", b"\x13", &[0xff; 11]] {
            assert!(value_of(torn).is_err(), "{torn:?}");
        }
    }
}
