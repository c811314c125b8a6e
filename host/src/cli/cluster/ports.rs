//! Which ports a local cluster uses, and whether they are free. Opens nothing that stays open.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{anyhow, bail};

use crate::config::ConfigError;

/// Peer ports are this much above client ports.
pub const PEER_OFFSET: u16 = 1000;
/// More nodes on one machine only slow each other down.
pub const NODES_MAX: u64 = 99;

/// The two listeners of one node, both on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub client: u16,
    pub peer: u16,
}

/// Client ports count up from `port`, peer ports from `port` + 1000; node 1 is first.
pub fn plan(port: u16, nodes: u64) -> Result<Vec<Ports>, ConfigError> {
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(ConfigError(format!("nodes: {nodes} is not from 1 to {NODES_MAX}")));
    }
    if port == 0 {
        return Err(ConfigError("port: 0 is no port; give the first of the client ports, as in 8080".into()));
    }
    let ports = (0..nodes as u16).map(|n| {
        let client = port.checked_add(n)?;
        Some(Ports { client, peer: client.checked_add(PEER_OFFSET)? })
    });
    ports.collect::<Option<Vec<_>>>().ok_or_else(|| {
        let highest = u64::from(u16::MAX) - u64::from(PEER_OFFSET) - (nodes - 1);
        ConfigError(format!(
            "port: {port} is too high: with {nodes} nodes the peer ports end beyond 65535; {highest} is the highest"
        ))
    })
}

/// An error that names the first port that can't be listened on, and what to do.
pub fn check_free(ports: &[Ports]) -> anyhow::Result<()> {
    for (id, Ports { client, peer }) in (1..).zip(ports) {
        for (port, whose) in [(*client, "clients"), (*peer, "peers")] {
            let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
            let needed = format!("needed for the {whose} of node {id}");
            if error.kind() == std::io::ErrorKind::AddrInUse {
                bail!("port {port} is in use ({needed}); stop what uses it, or choose other ports with --port");
            }
            bail!("port {port} can't be used ({needed}): {error}; choose other ports with --port");
        }
    }
    Ok(())
}

/// Ports that are free now, for a temporary cluster. Below the range from which systems take the ports of outgoing
/// connections, so that a node that starts a moment later still finds them free.
pub fn find_free(nodes: u64) -> anyhow::Result<Vec<Ports>> {
    const RANGE: std::ops::Range<u64> = 20_000..31_000;
    let start = u64::from(std::process::id()).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    (0..500)
        .map(|attempt| RANGE.start + (start + attempt * 13) % (RANGE.end - RANGE.start))
        .filter_map(|port| plan(port as u16, nodes).ok())
        .find(|ports| check_free(ports).is_ok())
        .ok_or_else(|| anyhow!("no free ports from {} to {}; stop something and try again", RANGE.start, RANGE.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_count_up_from_the_first() {
        let ports = plan(8080, 3).unwrap();
        assert_eq!(ports[0], Ports { client: 8080, peer: 9080 });
        assert_eq!(ports[2], Ports { client: 8082, peer: 9082 });
    }

    #[test]
    fn ports_never_wrap_around() {
        assert_eq!(plan(64_533, 3).unwrap()[2], Ports { client: 64_535, peer: 65_535 });
        let error = plan(64_534, 3).unwrap_err().0;
        assert!(error.contains("64534 is too high") && error.contains("64533 is the highest"), "{error}");
        assert!(plan(65_535, 3).is_err());
        assert!(plan(0, 3).unwrap_err().0.contains("0 is no port"));
    }

    #[test]
    fn the_number_of_nodes_has_limits() {
        assert_eq!(plan(8080, 1).unwrap().len(), 1);
        assert_eq!(plan(8080, NODES_MAX).unwrap().len(), 99);
        for nodes in [0, NODES_MAX + 1, u64::MAX] {
            assert!(plan(8080, nodes).unwrap_err().0.contains("is not from 1 to 99"));
        }
    }

    #[test]
    fn a_port_in_use_is_named_with_its_purpose() {
        let holder = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let taken = holder.local_addr().unwrap().port();
        let free = find_free(2).unwrap();
        check_free(&free).unwrap();
        let error = check_free(&[free[0], Ports { peer: taken, ..free[1] }]).unwrap_err().to_string();
        assert!(error.contains(&format!("port {taken} is in use (needed for the peers of node 2)")), "{error}");
    }
}
