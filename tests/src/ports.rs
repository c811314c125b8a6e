//! Loopback ports that nobody else gets while they are held, so that a killed node finds its port again and two test
//! runs never meet.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port held by a bound socket that never listens. A server that sets `SO_REUSEADDR` can bind the port; port 0 and
/// outgoing connections never get it, nor does another reservation.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _socket: Socket,
}

impl Reserved {
    /// Any free port.
    pub fn any() -> io::Result<Reserved> {
        Self::exactly(0)
    }

    /// This port, or an error if anybody has it.
    pub fn exactly(port: u16) -> io::Result<Reserved> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into())?;
        // After the bind, which so was exclusive: from here on the node may bind the port too.
        socket.set_reuse_address(true)?;
        let address = socket.local_addr()?.as_socket().expect("an IPv4 socket has an IPv4 address");
        Ok(Reserved { address, _socket: socket })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Reserves `count` ports from some base on and as many from base + 1000 and base - 1000 on, as `cluster start --port BASE` uses them.
pub fn for_launcher(count: u16) -> (u16, Vec<Reserved>) {
    const TRIES: usize = 1_000;
    for _ in 0..TRIES {
        // Below the range that Linux gives to outgoing connections.
        let base = fastrand::u16(11_000..31_000);
        let wanted = [base, base + 1_000, base - 1_000].into_iter().flat_map(|first| first..first + count);
        if let Ok(held) = wanted.map(Reserved::exactly).collect() {
            return (base, held);
        }
    }
    panic!("no {count} free ports in a row after {TRIES} tries");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_reserved_port_is_for_one_server_and_no_other_reservation() {
        let held = Reserved::any().unwrap();
        assert!(Reserved::exactly(held.address().port()).is_err());
        assert!(TcpStream::connect(held.address()).is_err(), "nobody listens yet");
        for _ in 0..2 {
            let server = TcpListener::bind(held.address()).expect("the server may bind it, again and again");
            assert!(TcpListener::bind(held.address()).is_err(), "but only one at a time");
            TcpStream::connect(server.local_addr().unwrap()).unwrap();
        }
    }

    #[test]
    fn two_launchers_get_different_ports() {
        let (a, _held) = for_launcher(3);
        let (b, _also) = for_launcher(3);
        assert!(a.abs_diff(b) >= 3);
        assert!(Reserved::exactly(a + 1_002).is_err());
    }
}
