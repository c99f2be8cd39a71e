//! gzip, one member after the other (RFC 1952).

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;

/// The data of all members. pigz, estargz and `cat a.gz b.gz` write several; each has
/// its CRC and length, which the decoder checks. Zeros after the last one are
/// padding of tapes and block devices; anything else is an error, where flate2's own
/// reader of several members would take zeros for a broken one.
pub(super) struct Members<R> {
    state: State<R>,
}

enum State<R> {
    Member(Box<GzDecoder<R>>),
    Between(R),
    Ended,
}

impl<R: BufRead> Members<R> {
    pub(super) fn new(stream: R) -> Members<R> {
        Members { state: State::Between(stream) }
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            self.state = match std::mem::replace(&mut self.state, State::Ended) {
                State::Ended => return Ok(0),
                State::Member(mut member) => match member.read(into) {
                    Ok(0) => State::Between(member.into_inner()),
                    result => {
                        self.state = State::Member(member);
                        return result;
                    }
                },
                State::Between(mut stream) => match stream.fill_buf() {
                    Ok([]) => State::Ended,
                    Ok([0, ..]) => {
                        only_zeros(&mut stream)?;
                        State::Ended
                    }
                    Ok([0x1f, ..]) => State::Member(Box::new(GzDecoder::new(stream))),
                    Ok(_) => return Err(io::Error::new(io::ErrorKind::InvalidData, "something else follows its data")),
                    Err(error) => {
                        self.state = State::Between(stream);
                        return Err(error);
                    }
                },
            }
        }
    }
}

fn only_zeros(stream: &mut impl BufRead) -> io::Result<()> {
    loop {
        let bytes = stream.fill_buf()?;
        if bytes.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something else follows its data"));
        }
        let count = bytes.len();
        if count == 0 {
            return Ok(());
        }
        stream.consume(count);
    }
}
