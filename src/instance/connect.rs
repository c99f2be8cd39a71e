//! Connections to servers inside, which no network leads to.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Instance;
use crate::error::{Error, Result};
use crate::plan::wire::Stage;
use crate::plan::{Area, Arg, Draft, Mark};

/// Between two attempts.
pub(crate) const PAUSE: Duration = Duration::from_millis(2);
/// What the last attempt gets at least, so that it can say why it failed.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(100);

impl Instance {
    /// Connects to a TCP server inside, on 127.0.0.1 or ::1, without a network: the
    /// connection is made in the sandbox, and its end is passed out. As long as nobody
    /// listens it tries again, up to `limit`; what came of the last attempt is the error
    /// then.
    ///
    /// ```
    /// use cofferdam::{Command, Sandbox};
    /// use std::io::{Read, Write};
    /// use std::time::Duration;
    ///
    /// let instance = Sandbox::new().start()?;
    /// let echo = "import socket; s = socket.create_server(('127.0.0.1', 7777)); c = s.accept()[0]; c.sendall(c.recv(9).upper())";
    /// # if std::path::Path::new("/usr/bin/python3").exists() {
    /// let server = instance.spawn(["/usr/bin/python3", "-c", echo])?;
    /// let mut stream = instance.connect("127.0.0.1:7777".parse().unwrap(), Duration::from_secs(20))?;
    /// stream.write_all(b"hello").unwrap();
    /// let mut answer = String::new();
    /// stream.read_to_string(&mut answer).unwrap();
    /// assert_eq!(answer, "HELLO");
    /// # }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn connect(&self, address: SocketAddr, limit: Duration) -> Result<TcpStream> {
        self.connect_to(&Address::tcp(address), limit).map(TcpStream::from)
    }

    /// Connects to a Unix stream socket inside, as [`connect`](Self::connect) does.
    pub fn connect_unix(&self, path: impl AsRef<Path>, limit: Duration) -> Result<UnixStream> {
        self.connect_to(&Address::unix(path.as_ref())?, limit).map(UnixStream::from)
    }

    fn connect_to(&self, address: &Address, limit: Duration) -> Result<OwnedFd> {
        let draft = address.steps();
        let deadline = Instant::now().checked_add(limit);
        loop {
            let left = deadline.map_or(limit, |d| d.saturating_duration_since(Instant::now()));
            match self.session.perform(&draft, &[], left.max(ATTEMPT)) {
                Ok(fds) => return Address::socket(fds),
                Err(error) if !not_yet(&error) || left <= PAUSE => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }
}

/// Where a server inside listens.
pub(crate) struct Address {
    family: i32,
    /// As the kernel wants it.
    bytes: Vec<u8>,
    name: String,
}

impl Address {
    pub(crate) fn tcp(address: SocketAddr) -> Address {
        let (family, bytes) = match address {
            SocketAddr::V4(v4) => {
                let mut bytes = (libc::AF_INET as u16).to_ne_bytes().to_vec();
                bytes.extend(v4.port().to_be_bytes());
                bytes.extend(v4.ip().octets());
                bytes.extend([0; 8]);
                (libc::AF_INET, bytes)
            }
            SocketAddr::V6(v6) => {
                let mut bytes = (libc::AF_INET6 as u16).to_ne_bytes().to_vec();
                bytes.extend(v6.port().to_be_bytes());
                bytes.extend([0; 4]);
                bytes.extend(v6.ip().octets());
                bytes.extend(v6.scope_id().to_ne_bytes());
                (libc::AF_INET6, bytes)
            }
        };
        Address { family, bytes, name: address.to_string() }
    }

    pub(crate) fn unix(path: &Path) -> Result<Address> {
        let name = path.as_os_str().as_bytes();
        // struct sockaddr_un has room for 108 bytes, the NUL among them.
        if !path.is_absolute() || name.len() > 107 || name.contains(&0) {
            return Err(Error::invalid(format!("{} can't be a socket: an absolute path of at most 107 bytes", path.display())));
        }
        let mut bytes = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        bytes.extend(name);
        bytes.push(0);
        Ok(Address { family: libc::AF_UNIX, bytes, name: path.display().to_string() })
    }

    /// What makes a connection, inside.
    pub(crate) fn steps(&self) -> Draft {
        let mut draft = Draft::new();
        draft.stage(Stage::Inner);
        draft.area(Area::Inside);
        let socket = draft.slot();
        let args = [self.family.into(), (libc::SOCK_STREAM | libc::SOCK_CLOEXEC).into(), 0.into()];
        draft.step(libc::SYS_socket, &args, "make", "a socket").keep_in(socket);
        let at = draft.data(&self.bytes);
        draft.step(libc::SYS_connect, &[Arg::Slot(socket), at, self.bytes.len().into()], "connect to", self.name.clone());
        draft
    }

    /// What these steps have kept.
    pub(crate) fn socket(mut fds: Vec<Option<OwnedFd>>) -> Result<OwnedFd> {
        fds.pop().flatten().ok_or_else(|| Error::invalid("the sandbox passed no socket"))
    }
}

/// A server that isn't up yet looks like this.
pub(crate) fn not_yet(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<std::io::Error>());
    matches!(source.and_then(std::io::Error::raw_os_error), Some(libc::ECONNREFUSED | libc::ENOENT | libc::EAGAIN))
}
