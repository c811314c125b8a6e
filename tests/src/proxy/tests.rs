//! Each fault on a link between a test and a listener of its own.

use std::io::{Read, Write};
use std::net;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(300);

/// A network of nodes 1 and 2, where the test is node 1 and the listener node 2.
fn pair() -> (Network, net::TcpListener) {
    let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let network = Network::between(&[(1, nobody), (2, listener.local_addr().unwrap())]).unwrap();
    (network, listener)
}

fn dial(network: &Network) -> net::TcpStream {
    let stream = net::TcpStream::connect(network.address(1, 2)).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn accept(listener: &net::TcpListener) -> net::TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

fn gets(stream: &mut net::TcpStream, expected: &[u8]) {
    let mut bytes = vec![0; expected.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, expected);
}

fn hears_nothing(stream: &mut net::TcpStream) {
    stream.set_read_timeout(Some(SILENCE)).unwrap();
    let heard = stream.read(&mut [0; 8]);
    assert!(matches!(&heard, Err(e) if e.kind() == io::ErrorKind::WouldBlock), "{heard:?}");
    stream.set_read_timeout(Some(SOON)).unwrap();
}

#[test]
fn a_cut_is_silent_and_what_was_held_arrives_after_it() {
    let (network, listener) = pair();
    let mut dialler = dial(&network);
    let mut server = accept(&listener);
    dialler.write_all(b"before").unwrap();
    gets(&mut server, b"before");
    network.cut_one_way(1, 2);
    dialler.write_all(b"held").unwrap();
    hears_nothing(&mut server);
    server.write_all(b"back").unwrap();
    gets(&mut dialler, b"back");
    network.cut_one_way(2, 1);
    server.write_all(b"also").unwrap();
    hears_nothing(&mut dialler);
    // A new connection hangs; it isn't refused.
    let mut new = dial(&network);
    new.write_all(b"new").unwrap();
    hears_nothing(&mut new);
    network.heal();
    gets(&mut server, b"held");
    gets(&mut dialler, b"also");
    gets(&mut accept(&listener), b"new");
    let all = || (network.carried() == 6 + 4 + 4 + 4 + 3).then_some(());
    crate::wait::until("all bytes are counted", SOON, all);
    drop(dialler);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0, "an end is passed on");
}

#[test]
fn a_reset_is_one_and_new_connections_pass() {
    let (network, listener) = pair();
    let mut dialler = dial(&network);
    let mut server = accept(&listener);
    dialler.write_all(b"before").unwrap();
    gets(&mut server, b"before");
    network.reset(1, 2);
    for stream in [&mut dialler, &mut server] {
        let ended = stream.read(&mut [0; 8]);
        assert!(matches!(&ended, Err(e) if e.kind() == io::ErrorKind::ConnectionReset), "{ended:?}");
    }
    dial(&network).write_all(b"new").unwrap();
    gets(&mut accept(&listener), b"new");
}

#[test]
fn late_bytes_arrive_after_those_of_the_new_connection() {
    let (network, listener) = pair();
    let mut dialler = dial(&network);
    let mut server = accept(&listener);
    network.cut_one_way(1, 2);
    dialler.write_all(b"old").unwrap();
    hears_nothing(&mut server);
    let began = Instant::now();
    network.reconnect_late(1, 2, SILENCE);
    network.heal();
    assert_eq!(dialler.read(&mut [0; 8]).unwrap(), 0, "closed towards the dialler");
    dial(&network).write_all(b"new").unwrap();
    gets(&mut accept(&listener), b"new");
    gets(&mut server, b"old");
    assert!(began.elapsed() >= SILENCE);
    assert_eq!(server.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_slow_link_is_slow_one_way() {
    const BYTES: usize = 8_000;
    let (network, listener) = pair();
    let mut dialler = dial(&network);
    let mut server = accept(&listener);
    network.set_one_way(1, 2, Flow::Slow { latency: SILENCE, bytes_per_second: 40_000 });
    let began = Instant::now();
    dialler.write_all(&[7; BYTES]).unwrap();
    gets(&mut server, &[7; BYTES]);
    assert!(began.elapsed() >= SILENCE + Duration::from_millis(200), "{:?}", began.elapsed());
    let began = Instant::now();
    server.write_all(b"back").unwrap();
    gets(&mut dialler, b"back");
    assert!(began.elapsed() < SILENCE + Duration::from_secs(1));
}
