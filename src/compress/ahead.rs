//! Reading on another thread, a bounded stretch ahead.
//!
//! Decompressing keeps one core busy, and writing files another: together they take as
//! long as the slower one.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread;

use crate::error::{Error, Result};

/// Bytes handed over at once; several fit a core's cache.
const PIECE: usize = 128 << 10;
/// Pieces on their way.
const PIECES: usize = 8;

/// Runs `consume` with what `source` holds, which is read on a thread of its own
/// that has ended when this returns. Memory is a megabyte.
pub(crate) fn ahead<T>(source: impl Read + Send, consume: impl FnOnce(&mut dyn BufRead) -> T) -> Result<T> {
    let (full, pieces) = sync_channel(PIECES);
    let (empty, used) = channel();
    thread::scope(|scope| {
        let read = move || read(source, &full, &used);
        // The thread notices the end of `pieces` and ends: by an error or a panic of
        // `consume` as well as by its success.
        let mut reader = Ahead { pieces, empty, piece: Vec::new(), at: 0 };
        thread::Builder::new()
            .name("cofferdam-unpack".into())
            .spawn_scoped(scope, read)
            .map_err(|error| Error::io("start", "a thread that decompresses", error))?;
        let result = consume(&mut reader);
        drop(reader);
        Ok(result)
    })
}

fn read(mut source: impl Read, full: &SyncSender<io::Result<Vec<u8>>>, used: &Receiver<Vec<u8>>) {
    loop {
        let mut piece: Vec<u8> = used.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let (count, error) = fill(&mut source, &mut piece);
        piece.truncate(count);
        // Nobody listens any more: the consumer has what it wanted, or has failed.
        if count > 0 && full.send(Ok(piece)).is_err() {
            return;
        }
        match error {
            Some(error) => {
                let _ = full.send(Err(error));
                return;
            }
            None if count < PIECE => return,
            None => {}
        }
    }
}

/// Fills the piece; less only at the end or before an error.
fn fill(source: &mut impl Read, piece: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut have = 0;
    while have < piece.len() {
        match source.read(&mut piece[have..]) {
            Ok(0) => break,
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (have, Some(error)),
        }
    }
    (have, None)
}

/// The consumer's end.
struct Ahead {
    pieces: Receiver<io::Result<Vec<u8>>>,
    empty: Sender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl BufRead for Ahead {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at == self.piece.len() {
            // The thread's end is the stream's, but for a panic of the source, which the
            // scope hands on.
            if let Ok(piece) = self.pieces.recv() {
                let used = std::mem::replace(&mut self.piece, piece?);
                self.at = 0;
                let _ = self.empty.send(used);
            }
        }
        Ok(&self.piece[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Ahead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?;
        let count = bytes.len().min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        self.consume(count);
        Ok(count)
    }
}
