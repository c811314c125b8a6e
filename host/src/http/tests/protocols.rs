//! HTTP/1.0, HTTP/1.1 and HTTP/2 as clients speak them, and that the bytes of a request arrive as they were sent.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use raftlet_machine::Method;
use tokio::net::TcpStream;

use super::*;

#[tokio::test]
async fn a_connection_is_kept_alive() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    for body in ["one", "", "three"] {
        client.send(format!("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len())).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.body), (200, body.as_bytes().to_vec()));
    }
    assert_eq!(rig.server.metrics().connections_accepted.load(SeqCst), 1);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    let put = |body: &str| format!("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    client.send([put("first"), put("second"), put("third")].concat()).await;
    for body in ["first", "second", "third"] {
        assert_eq!(client.reply().await.body, body.as_bytes());
    }
}

#[tokio::test]
async fn a_reply_does_not_wait_for_the_rest_of_the_next_request() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    client.send("PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\noneGET /b HT").await;
    assert_eq!(client.reply().await.body, b"one");
    client.send("TP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn http_1_0_closes_unless_keep_alive_is_asked() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").await;
        let reply = client.reply().await;
        assert!(reply.head.starts_with("HTTP/1.0 200"), "{}", reply.head);
        assert_eq!(reply.header("connection").map(str::to_lowercase).as_deref(), Some("keep-alive"));
    }
    client.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(client.reply().await.status, 200);
    client.closed().await;
}

#[tokio::test]
async fn http_2_with_prior_knowledge() {
    let rig = Rig::new(HttpLimits::default()).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = |method: &str, body: &'static [u8]| {
        let request = hyper::Request::builder().method(method).uri("http://h/a%2Fb?x=%00");
        request.body(Full::new(Bytes::from_static(body))).unwrap()
    };
    let big = vec![7_u8; 1 << 20];
    let both = (sender.send_request(request("PUT", b"\0\xff")), sender.clone().send_request(request("POST", b"two")));
    let (one, two) = (both.0.await.unwrap(), both.1.await.unwrap());
    assert_eq!(one.headers()["raftlet-index"], "42");
    assert_eq!(one.into_body().collect().await.unwrap().to_bytes().as_ref(), b"\0\xff");
    assert_eq!(two.into_body().collect().await.unwrap().to_bytes().as_ref(), b"two");
    assert_eq!(rig.node.last_seen().0.path, "/a%2Fb");
    assert_eq!(rig.node.last_seen().0.query, "x=%00");

    let whole = hyper::Request::put("http://h/big").body(Full::new(Bytes::from(big.clone()))).unwrap();
    let reply = sender.send_request(whole).await.unwrap();
    assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), big);

    let head = sender.send_request(request("HEAD", b"")).await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"0".parse().unwrap()));
    assert_eq!(head.into_body().collect().await.unwrap().to_bytes().len(), 0);
}

#[tokio::test]
async fn http_2_refuses_a_body_over_the_limit_and_too_many_headers() {
    let rig = Rig::new(HttpLimits { body_bytes_max: 100, headers_max: 5, ..HttpLimits::default() }).await;
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let put = |bytes: usize| hyper::Request::put("http://h/a").body(Full::new(Bytes::from(vec![0; bytes]))).unwrap();
    assert_eq!(sender.send_request(put(101)).await.unwrap().status(), 413);
    assert_eq!(sender.send_request(put(100)).await.unwrap().status(), 200);
    let mut many = put(1);
    for i in 0..6 {
        many.headers_mut().insert(hyper::header::HeaderName::try_from(format!("x-{i}")).unwrap(), "v".parse().unwrap());
    }
    assert_eq!(sender.send_request(many).await.unwrap().status(), 431);
}

#[tokio::test]
async fn the_bytes_of_a_request_arrive_as_they_were_sent() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    let body = b"|BATCH|\0\r\n\r\n\xff\xfe\x80";
    client
        .send("PATCH /kv/a%2Fb%00%zz/../c//%C3%A9?q=%26&consistency=stale&= HTTP/1.1\r\nHost: h\r\nContent-Length: 15\r\n\r\n")
        .await;
    client.send(body).await;
    assert_eq!(client.reply().await.body, body);
    let (request, consistency) = rig.node.last_seen();
    assert_eq!(request.method, Method::Patch);
    assert_eq!(request.path, "/kv/a%2Fb%00%zz/../c//%C3%A9");
    assert_eq!(request.query, "q=%26&consistency=stale&=", "in a command the parameter is the module's");
    assert_eq!((request.body.as_slice(), consistency), (body.as_slice(), None));
}

#[tokio::test]
async fn chunked_bodies_and_expect_continue() {
    let rig = Rig::new(HttpLimits::default()).await;
    let mut client = rig.client().await;
    client.send("PUT /a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n\0\r\n\r\n").await;
    client.send(b"2\r\n\xff\xfe\r\n0\r\n\r\n").await;
    assert_eq!(client.reply().await.body, b"\0\r\n\xff\xfe");
    client.send("PUT /a HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n").await;
    assert!(client.head().await.starts_with("HTTP/1.1 100 "));
    client.send("hi").await;
    assert_eq!(client.reply().await.body, b"hi");
}

#[tokio::test]
async fn only_the_agreed_headers_reach_the_module() {
    let rig = Rig::new(HttpLimits::default()).await;
    let head = b"GET / HTTP/1.1\r\nHost: h\r\nIF-Match: \"1\"\r\nif-match: \"2\"\r\nCookie: c\r\nX-Other: o\r\n\
                Content-Type: a/b\r\nConnection: keep-alive\r\nAuthorization: x\xe9y\r\n\r\n";
    assert_eq!(rig.ask(head).await.status, 200);
    let mut headers = rig.node.last_seen().0.headers;
    headers.sort_by(|a, b| (&a.name, &a.value).cmp(&(&b.name, &b.value)));
    let authorization = Header { name: "authorization".into(), value: b"x\xe9y".to_vec() };
    let expected =
        vec![authorization, header("content-type", "a/b"), header("if-match", "\"1\""), header("if-match", "\"2\"")];
    assert_eq!(headers, expected);
}

#[tokio::test]
async fn reads_are_linearizable_unless_stale_is_asked() {
    let rig = Rig::new(HttpLimits::default()).await;
    let ask = |query: &str| rig.ask(format!("GET /a{query} HTTP/1.1\r\nHost: h\r\n\r\n"));
    ask("?b=1").await;
    assert_eq!(rig.node.last_seen().1, Some(Consistency::Linearizable));
    ask("?b=1&consistency=stale&c").await;
    let (request, consistency) = rig.node.last_seen();
    assert_eq!((request.query.as_str(), consistency), ("b=1&c", Some(Consistency::Stale)));
    let refused = ask("?consistency=eventual").await;
    assert_eq!((refused.status, refused.outcome().as_str()), (400, "rejected"));
}

#[tokio::test]
async fn what_is_no_request_for_anyone_is_refused() {
    let rig = Rig::new(HttpLimits::default()).await;
    for method in ["OPTIONS /a", "OPTIONS *", "TRACE /a", "CONNECT h:1", "BREW /a"] {
        let reply = rig.ask(format!("{method} HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        assert_eq!((reply.status, reply.outcome().as_str()), (405, "rejected"), "{method}");
        assert_eq!(reply.header("allow"), Some("GET, HEAD, POST, PUT, PATCH, DELETE"));
    }
    for bad in
        ["GET /a\0b HTTP/1.1\r\nHost: h", "GET a HTTP/1.1\r\nHost: h", "GET / b HTTP/1.1\r\nHost: h", "GET / HTTP/1.1"]
    {
        assert_eq!(rig.ask(format!("{bad}\r\n\r\n")).await.status, 400, "{bad:?}");
    }
    assert!(rig.node.seen.lock().unwrap().is_empty());
}
