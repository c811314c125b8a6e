//! Which ports a local cluster uses, and whether they are free. Opens nothing that stays open.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{anyhow, bail};

use crate::config::ConfigError;

/// Peer ports are this much above client ports.
pub const PEER_OFFSET: u16 = 1000;
/// Admin ports are this much below client ports, if nothing else is said.
pub const ADMIN_OFFSET: u16 = 1000;
/// More nodes on one machine only slow each other down.
pub const NODES_MAX: u64 = 99;

/// The listeners of one node, all on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub client: u16,
    pub peer: u16,
    /// None: no admin listener.
    pub admin: Option<u16>,
}

/// Client ports count up from `port`, peer ports from `port` + 1000, admin ports from `admin`, else from `port` − 1000;
/// node 1 is first. Where there is no port 1000 below, and none is given, there are no admin listeners.
pub fn plan(port: u16, admin: Option<u16>, nodes: u64) -> Result<Vec<Ports>, ConfigError> {
    if !(1..=NODES_MAX).contains(&nodes) {
        return Err(ConfigError(format!("nodes: {nodes} is not from 1 to {NODES_MAX}")));
    }
    if port == 0 {
        return Err(ConfigError("port: 0 is no port; give the first of the client ports, as in 8080".into()));
    }
    let first_admin = match admin {
        Some(0) => return Err(ConfigError("admin-port: 0 is no port; give the first one, as in 7080".into())),
        Some(given) if u64::from(given) + nodes > u64::from(u16::MAX) + 1 => {
            return Err(ConfigError(format!(
                "admin-port: {given} is too high: with {nodes} nodes they end beyond 65535"
            )));
        }
        Some(given) => Some(given),
        None => port.checked_sub(ADMIN_OFFSET).filter(|admin| *admin > 0),
    };
    let ports = (0..nodes as u16).map(|n| {
        let client = port.checked_add(n)?;
        Some(Ports { client, peer: client.checked_add(PEER_OFFSET)?, admin: first_admin.map(|a| a + n) })
    });
    let ports = ports.collect::<Option<Vec<_>>>().ok_or_else(|| {
        let highest = u64::from(u16::MAX) - u64::from(PEER_OFFSET) - (nodes - 1);
        ConfigError(format!(
            "port: {port} is too high: with {nodes} nodes the peer ports end beyond 65535; {highest} is the highest"
        ))
    })?;
    let taken: Vec<u16> = ports.iter().flat_map(|p| [p.client, p.peer]).collect();
    if let Some(admin) = ports.iter().filter_map(|p| p.admin).find(|admin| taken.contains(admin)) {
        return Err(ConfigError(format!(
            "admin-port: {admin} would be a port of clients or peers too; choose another"
        )));
    }
    Ok(ports)
}

/// An error that names the first port that can't be listened on, and what to do.
pub fn check_free(ports: &[Ports]) -> anyhow::Result<()> {
    for (id, Ports { client, peer, admin }) in (1..).zip(ports) {
        let all = [(Some(*client), "clients"), (Some(*peer), "peers"), (*admin, "operators")];
        for (port, whose) in all.into_iter().filter_map(|(port, whose)| Some((port?, whose))) {
            let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
            let needed = format!("needed for the {whose} of node {id}");
            if error.kind() == std::io::ErrorKind::AddrInUse {
                let flag = if whose == "operators" { "--admin-port" } else { "--port" };
                bail!("port {port} is in use ({needed}); stop what uses it, or choose other ports with {flag}");
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
        .filter_map(|port| plan(port as u16, None, nodes).ok())
        .find(|ports| check_free(ports).is_ok())
        .ok_or_else(|| anyhow!("no free ports from {} to {}; stop something and try again", RANGE.start, RANGE.end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_count_up_from_the_first() {
        let ports = plan(8080, None, 3).unwrap();
        assert_eq!(ports[0], Ports { client: 8080, peer: 9080, admin: Some(7080) });
        assert_eq!(ports[2], Ports { client: 8082, peer: 9082, admin: Some(7082) });
        assert_eq!(plan(8080, Some(5000), 3).unwrap()[2].admin, Some(5002));
    }

    #[test]
    fn admin_ports_never_meet_others() {
        assert_eq!(plan(1000, None, 1).unwrap()[0].admin, None);
        for (admin, why) in
            [(0, "0 is no port"), (8079, "8080 would be"), (9082, "9082 would be"), (65_534, "too high")]
        {
            let error = plan(8080, Some(admin), 3).unwrap_err().0;
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn ports_never_wrap_around() {
        assert_eq!(plan(64_533, None, 3).unwrap()[2], Ports { client: 64_535, peer: 65_535, admin: Some(63_535) });
        let error = plan(64_534, None, 3).unwrap_err().0;
        assert!(error.contains("64534 is too high") && error.contains("64533 is the highest"), "{error}");
        assert!(plan(65_535, None, 3).is_err());
        assert!(plan(0, None, 3).unwrap_err().0.contains("0 is no port"));
    }

    #[test]
    fn the_number_of_nodes_has_limits() {
        assert_eq!(plan(8080, None, 1).unwrap().len(), 1);
        assert_eq!(plan(8080, None, NODES_MAX).unwrap().len(), 99);
        for nodes in [0, NODES_MAX + 1, u64::MAX] {
            assert!(plan(8080, None, nodes).unwrap_err().0.contains("is not from 1 to 99"));
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
