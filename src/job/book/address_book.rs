//! The book of a job, as its nodes use it: the text of its file, and where each entry stands in it.
//!
//! Used by every daemon, which reads all of it and needs a dozen lines: its own and those of the nodes that it may ask. So a
//! line costs its check and twenty bytes, and must never cost an allocation.

use std::path::{Path, PathBuf};

use super::facility::pick;
use super::scan::{index, lines_about, scan};
use super::{BookEntry, BookError, Kind, Names, is_same_host, read_text};

/// The nodes of a job in the order of the book: no host and no address twice, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressBook {
    file: PathBuf,
    text: String,
    entries: Vec<Place>,
}

/// Where an entry stands. The texts of a book end below 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    host: u32,
    address: u32,
    address_bytes: u32,
    line: u32,
    host_bytes: u8,
}

impl AddressBook {
    /// Reads and parses a book.
    ///
    /// # Errors
    /// As [`BookError`] says.
    pub fn read(file: &Path) -> Result<AddressBook, BookError> {
        AddressBook::of_text(read_text(file, Kind::Book)?, file)
    }

    /// Parses the text of a book. `file` is for messages.
    ///
    /// # Errors
    /// As [`BookError`] says; the first fault from the top.
    pub fn parse(text: &str, file: &Path) -> Result<AddressBook, BookError> {
        AddressBook::of_text(text.to_owned(), file)
    }

    fn of_text(text: String, file: &Path) -> Result<AddressBook, BookError> {
        let mut entries = Vec::with_capacity(lines_about(&text));
        let begin = text.as_ptr().addr();
        let place = |part: &str| index(part.as_ptr().addr() - begin);
        scan(&text, file, |line| {
            entries.push(Place {
                host: place(line.host),
                address: place(line.address),
                address_bytes: index(line.address.len()),
                line: index(line.number),
                host_bytes: line.host.len() as u8,
            });
            Ok(())
        })?;
        if entries.is_empty() {
            return Err(BookError::Empty { file: file.to_path_buf() });
        }
        Ok(AddressBook { file: file.to_path_buf(), text, entries })
    }

    /// Reads a facility's book and keeps the entries of `hosts`, in the order of `hosts`, as [`super::facility`] does.
    ///
    /// # Errors
    /// As [`super::facility`].
    pub fn facility(file: &Path, hosts: &[String]) -> Result<AddressBook, BookError> {
        let (picked, _) = pick(&read_text(file, Kind::Book)?, file, hosts, false, &|_| Ok(()))?;
        let mut text = String::new();
        let mut entries = Vec::with_capacity(picked.len());
        for (entry, line) in picked {
            let host = index(text.len());
            text += entry.host();
            let address = index(text.len());
            text += entry.address();
            entries.push(Place {
                host,
                address,
                address_bytes: index(entry.address.len()),
                line: index(line),
                host_bytes: entry.host.len() as u8,
            });
        }
        Ok(AddressBook { file: file.to_path_buf(), text, entries })
    }

    /// How many nodes there are: one at least.
    pub fn nodes(&self) -> usize {
        self.entries.len()
    }

    /// The host name of the node at `at`, below [`AddressBook::nodes`], as the book spells it.
    pub fn host(&self, at: usize) -> &str {
        let place = self.entries[at];
        &self.text[place.host as usize..][..usize::from(place.host_bytes)]
    }

    /// The address of the node at `at`, `scheme://rest`.
    pub fn address(&self, at: usize) -> &str {
        let place = self.entries[at];
        &self.text[place.address as usize..][..place.address_bytes as usize]
    }

    /// Where the entry of the node at `at` stands, for messages.
    pub fn place(&self, at: usize) -> String {
        format!("address book {}, line {}", self.file.display(), self.entries[at].line)
    }

    /// Copies of all entries, in the order of the book.
    pub fn entries(&self) -> Vec<BookEntry> {
        let entry = |at| BookEntry { host: self.host(at).to_owned(), address: self.address(at).to_owned() };
        (0..self.nodes()).map(entry).collect()
    }

    /// The position of a host: its full name if the book has it, else the one entry that has the same short name (the
    /// part before the first dot) where one of the two has no domain. Case is no matter (RFC 4343).
    ///
    /// # Errors
    /// [`BookError::NoHost`], [`BookError::Ambiguous`].
    pub fn position(&self, host: &str) -> Result<usize, BookError> {
        let text = self.text.as_bytes();
        let is_exact = |at: &usize| {
            let place = self.entries[*at];
            // From the end, where the names of a machine differ.
            usize::from(place.host_bytes) == host.len()
                && text[place.host as usize..][..host.len()]
                    .iter()
                    .zip(host.as_bytes())
                    .rev()
                    .all(|(one, other)| one.eq_ignore_ascii_case(other))
        };
        if let Some(exact) = (0..self.nodes()).find(is_exact) {
            return Ok(exact);
        }
        let found: Vec<usize> = (0..self.nodes()).filter(|at| is_same_host(self.host(*at), host)).collect();
        match found[..] {
            [only] => Ok(only),
            [] => Err(BookError::NoHost { file: self.file.clone(), host: host.to_owned(), nodes: self.nodes() }),
            _ => {
                let entries = Names(found.iter().map(|&at| self.host(at).to_owned()).collect()).to_string();
                Err(BookError::Ambiguous { file: self.file.clone(), host: host.to_owned(), entries })
            }
        }
    }
}
