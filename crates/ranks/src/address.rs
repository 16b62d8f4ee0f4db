//! By which address other hosts reach this one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};

/// The address that this host has on its way to `host`. Nothing is sent.
pub fn towards(host: &str, port: u16) -> io::Result<IpAddr> {
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for target in (host, port).to_socket_addrs()? {
        match route(target) {
            Ok(address) => return Ok(address),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn route(target: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    Ok(socket.local_addr()?.ip())
}

/// The address to listen at. A host may know itself by a loopback address, which other hosts cannot reach: then it is the one that it has on
/// its way to another host. `others`: what the other ranks found.
pub fn reachable(own: IpAddr, others: &[IpAddr]) -> io::Result<IpAddr> {
    match others.iter().find(|other| !other.is_loopback()) {
        Some(other) if own.is_loopback() => route(SocketAddr::new(*other, 9)),
        _ => Ok(own),
    }
}

/// This host's name.
pub fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn the_way_to_this_host_is_loopback() {
        assert_eq!(towards("127.0.0.1", 29500).unwrap(), LOOPBACK);
        assert!(towards("no-such-host.invalid", 29500).is_err());
    }

    #[test]
    fn a_loopback_address_is_for_ranks_of_one_host() {
        let far: IpAddr = [10, 7, 0, 2].into();
        assert_eq!(reachable(LOOPBACK, &[LOOPBACK, LOOPBACK]).unwrap(), LOOPBACK);
        assert_eq!(reachable(far, &[LOOPBACK, far]).unwrap(), far);
        // The way to this host's own address is that address, or an error where there is no network.
        if let Ok(address) = reachable(LOOPBACK, &[LOOPBACK, far]) {
            assert!(!address.is_loopback());
        }
    }
}
