//! What a sandbox sees of the network.

pub(crate) mod count;

/// The network of a sandbox.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// A network namespace of its own with nothing but a loopback device, which
    /// is up: servers on 127.0.0.1 and ::1 work, nothing else is in reach.
    #[default]
    None,
    /// The host's own network, with everything that listens on it, abstract Unix
    /// sockets included. Not isolated: for workloads that are trusted that far.
    Host,
}
