//! Reply tokens of the kernel that tell a recorder of their answers.
//!
//! Used by [`kernel`](super::kernel) for all requests. Where nothing is recorded a token carries an empty option, which is
//! all that this costs. Where it is, the kernel may keep no name: it then asks for every step of every path.

use std::time::Duration;

use bornite_fuse::{Attr, AttrReply, DataReply, DirectoryReply, EntryReply, Errno, Statfs, StatfsReply};

use super::replies::{Attributes, Data, Directory, Entry, Refuse, Sizes};
use crate::observe::trace::{Answer, ENOENT, Span};

/// A token, and who is to be told of its answer.
#[derive(Debug)]
pub(super) struct Told<T> {
    reply: T,
    span: Option<Box<Span>>,
}

impl<T> Told<T> {
    pub(super) fn new(reply: T, span: Option<Box<Span>>) -> Told<T> {
        Told { reply, span }
    }

    /// Gives the token back; the recorder is told before the client is.
    fn tell(self, answer: Answer) -> T {
        if let Some(span) = self.span {
            span.end(answer);
        }
        self.reply
    }
}

/// Each token's own `error` is its answer.
macro_rules! refuse {
    ($($token:ty),*) => {$(
        impl Refuse for Told<$token> {
            fn error(self, errno: Errno) {
                self.tell(Answer::Failed(errno.raw())).error(errno);
            }
        }
    )*};
}

refuse!(EntryReply, AttrReply, DataReply, DirectoryReply, StatfsReply);

fn found(attr: &Attr) -> Answer {
    Answer::Found { kind: ((attr.mode >> 12) & 0xf) as u8, size: attr.size }
}

impl Entry for Told<EntryReply> {
    fn entry(self, attr: &Attr, ttl: Duration) {
        let name_ttl = if self.span.is_some() { Duration::ZERO } else { ttl };
        self.tell(found(attr)).entry(attr, name_ttl, ttl);
    }

    fn absent(self, ttl: Duration) {
        let ttl = if self.span.is_some() { Duration::ZERO } else { ttl };
        self.tell(Answer::Failed(ENOENT)).absent(ttl);
    }
}

impl Attributes for Told<AttrReply> {
    fn attr(self, attr: &Attr, ttl: Duration) {
        self.tell(found(attr)).attr(attr, ttl);
    }
}

impl Data for Told<DataReply> {
    fn data(self, bytes: &[u8]) {
        self.tell(Answer::Bytes(bytes.len() as u64)).data(bytes);
    }

    fn data_of_two(self, head: &[u8], tail: &[u8]) {
        self.tell(Answer::Bytes((head.len() + tail.len()) as u64)).data_of_two(head, tail);
    }
}

impl Directory for Told<DirectoryReply> {
    fn add(&mut self, ino: u64, next_cookie: u64, d_type: u8, name: &[u8]) -> bool {
        self.reply.add(ino, next_cookie, d_type, name)
    }

    fn finish(self) {
        self.tell(Answer::Done).finish();
    }
}

impl Sizes for Told<StatfsReply> {
    fn statfs(self, sizes: &Statfs) {
        self.tell(Answer::Done).statfs(sizes);
    }
}
