//! Who belongs to the job: a secret that all its nodes have, and a session with each that has shown it.
//!
//! Before the first other frame a node says hello. Its hello, with a number that only it can have chosen and an
//! HMAC-SHA256 (RFC 2104) over both ends, their job, the sender's life and the hello's number, is answered by a welcome of
//! the same make, and the session's number is an HMAC over all of that: who replays a hello learns nothing from the welcome,
//! and cannot go on. The session's number stands in every frame from then on. A hello without the job's secret, one that came
//! before, and any frame outside of a session get no answer, are counted, and are told once in a while. Grants are answers, so
//! that keys of memory are given within sessions only. Answers go to the address of the book, whoever sent the request.
//!
//! Who is heard no more although it was sent something may have begun another life, which knows of no session: it is greeted
//! anew with what is sent next. There is no timer: whatever matters is sent again by the parts that sent it.
//!
//! Used by the node only. Randomness comes from outside, with the secret.

use std::collections::VecDeque;
use std::fmt;

use hashbrown::HashMap;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::limits::{AUTH_COMPLAINT_US, AUTH_KEPT_MAX, AUTH_LIVES_MAX, AUTH_SESSIONS_MAX, GREET_AGAIN_US, GREET_US};
use super::node::Node;
use super::output::Output;
use super::topology::NodeId;
use super::wire::{self, Header, MAC_BYTES, Message, NONCE_BYTES};
use crate::cache::types::Micros;

type Nonce = [u8; NONCE_BYTES];
type Code = [u8; MAC_BYTES];

/// The job's secret, and what this life of the node draws its numbers from.
pub struct Secret {
    key: Box<[u8]>,
    seed: [u8; 32],
}

impl Secret {
    /// `key` is the job's; `seed` is random, and of this life alone.
    #[must_use]
    pub fn new(key: &[u8], seed: [u8; 32]) -> Secret {
        Secret { key: key.into(), seed }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    // RFC 2104 allows keys of any length.
    Hmac::new_from_slice(key).expect("any length will do")
}

#[derive(Clone, Copy, Debug)]
struct Session {
    number: u64,
    /// Of the peer.
    life: u64,
    /// Later ones have larger ones.
    order: u64,
}

/// What a node has with another one.
#[derive(Debug, Default)]
struct Link {
    /// Those that count, all with one life of the peer; the last one is used.
    sessions: VecDeque<Session>,
    /// Begun by the peer, of which no frame was seen.
    offered: VecDeque<Session>,
    /// The hello that was not answered yet.
    hello: Option<(u64, Nonce)>,
    /// When the last one went out.
    greeted: Option<Micros>,
    /// Since when it was sent something and not heard.
    waits: Option<Micros>,
    /// Frames that wait for a session.
    kept: VecDeque<Vec<u8>>,
    /// The last hello's number of some lives of the peer.
    hellos: VecDeque<(u64, u64)>,
}

impl Link {
    fn begin(&mut self, session: Session) {
        self.sessions.retain(|other| other.life == session.life);
        push(&mut self.sessions, session, AUTH_SESSIONS_MAX);
        // Both may have said hello at the same time.
        self.offered.retain(|other| other.life == session.life || other.order > session.order);
        self.waits = None;
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T, most: usize) {
    if queue.len() >= most {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// Who has shown the secret to this node.
#[derive(Debug)]
pub(super) struct Auth {
    secret: Secret,
    links: HashMap<NodeId, Link>,
    complaints: HashMap<NodeId, Micros>,
    now: Micros,
    hellos: u64,
    nonces: u64,
    sessions: u64,
}

/// Both ends of a hello, and what they say.
struct Ends<'a> {
    job: u64,
    from: NodeId,
    to: NodeId,
    life: u64,
    id: u64,
    nonce: &'a Nonce,
}

impl Auth {
    fn nonce(&mut self) -> Nonce {
        self.nonces += 1;
        let drawn = mac(&self.secret.seed).chain_update(self.nonces.to_le_bytes()).finalize().into_bytes();
        drawn.as_slice().first_chunk().copied().unwrap_or_default()
    }

    fn code(&self, label: &[u8], ends: &Ends<'_>, answer: &[u8]) -> Hmac<Sha256> {
        let words = [ends.job, u64::from(ends.from.0), u64::from(ends.to.0), ends.life, ends.id];
        let code = mac(&self.secret.key).chain_update(label).chain_update(ends.nonce);
        words.iter().fold(code, |code, word| code.chain_update(word.to_le_bytes())).chain_update(answer)
    }

    /// What a welcome answers with: the other life and its number, together.
    fn answer(life: u64, nonce: &Nonce) -> [u8; 8 + NONCE_BYTES] {
        let mut answer = [0; 8 + NONCE_BYTES];
        answer[..8].copy_from_slice(&life.to_le_bytes());
        answer[8..].copy_from_slice(nonce);
        answer
    }

    fn session(&mut self, ends: &Ends<'_>, answer: &[u8], life: u64) -> Session {
        let code = self.code(b"session", ends, answer).finalize().into_bytes();
        let number = u64::from_le_bytes(code.as_slice().first_chunk().copied().unwrap_or_default());
        self.sessions += 1;
        // 0 is what frames outside of a session have.
        Session { number: number.max(1), life, order: self.sessions }
    }

    /// The session for a frame to `to`, if there is one, and whether it is to be greeted first.
    fn way(&mut self, to: NodeId) -> (Option<u64>, bool) {
        let now = self.now;
        let link = self.links.entry(to).or_default();
        let waits_us = now.0.saturating_sub(link.waits.get_or_insert(now).0);
        let session = link.sessions.back().map(|session| session.number);
        let pause_us = if session.is_some() { GREET_AGAIN_US } else { GREET_US };
        let is_long_ago = link.greeted.is_none_or(|at| now.0.saturating_sub(at.0) >= pause_us);
        (session, is_long_ago && (session.is_none() || waits_us >= GREET_AGAIN_US))
    }
}

impl Node {
    /// From now on only nodes that have the same secret are taken for nodes of the job. To be called before anything else.
    pub fn authenticate(&mut self, secret: Secret) {
        let (links, complaints, now) = (HashMap::new(), HashMap::new(), Micros(0));
        self.auth = Some(Auth { secret, links, complaints, now, hellos: 0, nonces: 0, sessions: 0 });
    }

    /// Takes note of the time.
    pub(super) fn note_time(&mut self, now: Micros) {
        if let Some(auth) = &mut self.auth {
            auth.now = now;
        }
    }

    fn header(&self, id: u64) -> Header {
        let (job, incarnation) = (self.config.job, self.config.incarnation);
        Header { from: self.topology().me(), job, incarnation, id, session: 0 }
    }

    /// Sends a message, or has it wait until there is a session.
    pub(super) fn send(&mut self, to: NodeId, id: u64, message: &Message<'_>) {
        let mut frame = message.encode(&self.header(id));
        if let Some(auth) = &mut self.auth {
            let (session, greets) = auth.way(to);
            if greets {
                self.greet(to);
            }
            let Some(session) = session else {
                if let Some(link) = self.auth.as_mut().and_then(|auth| auth.links.get_mut(&to)) {
                    push(&mut link.kept, frame, AUTH_KEPT_MAX);
                }
                return;
            };
            wire::set_session(&mut frame, session);
        }
        self.out.push_back(Output::Send { to, frame });
    }

    fn greet(&mut self, to: NodeId) {
        let (from, job, life) = (self.topology().me(), self.config.job, self.config.incarnation);
        let Some(auth) = &mut self.auth else { return };
        let nonce = auth.nonce();
        auth.hellos += 1;
        let id = auth.hellos;
        let code: Code =
            auth.code(b"hello", &Ends { job, from, to, life, id, nonce: &nonce }, b"").finalize().into_bytes().into();
        let link = auth.links.entry(to).or_default();
        (link.hello, link.greeted) = (Some((id, nonce)), Some(auth.now));
        let frame = Message::Hello { nonce: &nonce, mac: &code }.encode(&self.header(id));
        self.out.push_back(Output::Send { to, frame });
    }

    /// Whether a frame is to be looked at: its sender has shown the secret. Hellos and welcomes end here.
    pub(super) fn is_member(&mut self, now: Micros, header: &Header, message: &Message<'_>) -> bool {
        let Some(auth) = &mut self.auth else {
            let is_plain = header.session == 0 && !matches!(message, Message::Hello { .. } | Message::Welcome { .. });
            if !is_plain {
                self.counters.auth_refused += 1;
                self.note_foreign_secret(header.from);
            }
            return is_plain;
        };
        match message {
            Message::Hello { nonce, mac } => {
                self.greeted(header, nonce, mac);
                return false;
            }
            Message::Welcome { nonce, mac } => {
                self.welcomed(now, header, nonce, mac);
                return false;
            }
            _ => {}
        }
        let is_it = |session: &Session| (session.number, session.life) == (header.session, header.incarnation);
        let link = auth.links.get_mut(&header.from);
        let Some(link) = link.filter(|link| link.sessions.iter().chain(&link.offered).any(is_it)) else {
            self.refuse(now, header, header.session == 0);
            return false;
        };
        link.waits = None;
        if let Some(at) = link.offered.iter().position(is_it)
            && let Some(session) = link.offered.remove(at)
        {
            link.begin(session);
            self.send_kept(header.from);
        }
        true
    }

    /// A node says hello: it is welcomed if it has the secret, and has not said this before.
    fn greeted(&mut self, header: &Header, nonce: &Nonce, mac: &Code) {
        let (me, own_life) = (self.topology().me(), self.config.incarnation);
        let Some(auth) = &mut self.auth else { return };
        let (from, life, id) = (header.from, header.incarnation, header.id);
        let ends = Ends { job: header.job, from, to: me, life, id, nonce };
        if auth.code(b"hello", &ends, b"").verify_slice(mac).is_err() {
            let now = auth.now;
            return self.refuse(now, header, true);
        }
        let link = auth.links.entry(from).or_default();
        match link.hellos.iter_mut().find(|(known, _)| *known == life) {
            Some((_, last)) if *last >= id => {
                self.counters.auth_replayed += 1;
                return log::debug!("node {from} said hello {id} before");
            }
            Some((_, last)) => *last = id,
            None => push(&mut link.hellos, (life, id), AUTH_LIVES_MAX),
        }
        let own = auth.nonce();
        let answer = Auth::answer(own_life, &own);
        let session = auth.session(&ends, &answer, life);
        let code: Code = auth.code(b"welcome", &ends, &answer).finalize().into_bytes().into();
        let link = auth.links.entry(from).or_default();
        push(&mut link.offered, session, AUTH_SESSIONS_MAX);
        let frame = Message::Welcome { nonce: &own, mac: &code }.encode(&self.header(id));
        self.out.push_back(Output::Send { to: from, frame });
    }

    /// A node answers a hello.
    fn welcomed(&mut self, now: Micros, header: &Header, nonce: &Nonce, mac: &Code) {
        let (me, own_life, job) = (self.topology().me(), self.config.incarnation, self.config.job);
        let Some(auth) = &mut self.auth else { return };
        let to = header.from;
        let hello = auth.links.get(&to).and_then(|link| link.hello).filter(|(id, _)| *id == header.id);
        let Some((id, own)) = hello else {
            // The second copy of one, or the answer to an older one.
            self.counters.dropped += 1;
            return;
        };
        let ends = Ends { job, from: me, to, life: own_life, id, nonce: &own };
        let answer = Auth::answer(header.incarnation, nonce);
        if auth.code(b"welcome", &ends, &answer).verify_slice(mac).is_err() {
            return self.refuse(now, header, true);
        }
        let session = auth.session(&ends, &answer, header.incarnation);
        let link = auth.links.entry(to).or_default();
        link.hello = None;
        link.begin(session);
        self.note_life(now, header);
        self.send_kept(to);
    }

    /// Sends what has waited for a session.
    fn send_kept(&mut self, to: NodeId) {
        let Some(auth) = &mut self.auth else { return };
        let Some(link) = auth.links.get_mut(&to) else { return };
        let Some(session) = link.sessions.back().map(|session| session.number) else { return };
        let kept = std::mem::take(&mut link.kept);
        if !kept.is_empty() {
            link.waits.get_or_insert(auth.now);
        }
        for mut frame in kept {
            wire::set_session(&mut frame, session);
            self.out.push_back(Output::Send { to, frame });
        }
    }

    /// Nothing is done for who sent this. `is_strange`: it cannot be from a node of this job that was started again.
    fn refuse(&mut self, now: Micros, header: &Header, is_strange: bool) {
        self.counters.auth_refused += 1;
        let Some(auth) = &mut self.auth else { return };
        let node = header.from;
        let last = auth.complaints.get(&node);
        if last.is_some_and(|last| now.0.saturating_sub(last.0) < AUTH_COMPLAINT_US) || !is_strange {
            return log::debug!("node {node} sends what belongs to no session of this life");
        }
        auth.complaints.insert(node, now);
        log::warn!(
            "node {node}, or who says that it is, has not this job's secret: nothing of it is taken, and it gets no answer; \
             start all nodes of a job with the same --secret-file"
        );
    }
}
