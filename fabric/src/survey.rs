//! What the libfabric of this machine offers, and what a port would choose: for `bornite doctor --fabric`.
//!
//! Opens nothing but the library; it asks fi_getinfo(3) twice, once without hints and once with ours.

use libfabric_sys as sys;

use crate::error::Error;
use crate::info::{Facts, Info, Query};
use crate::net::Net;
use crate::port;
use crate::provider::{Row, mr_mode_text};
use crate::signals;

/// The library and its offers.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Its version, as fi_version(3) says.
    pub version: String,
    /// The file that was loaded.
    pub path: Option<String>,
    /// By provider, in the library's order of preference.
    pub offers: Vec<Offer>,
}

/// What one provider offers.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Its name.
    pub provider: String,
    /// What we know of it.
    pub row: Option<&'static Row>,
    /// Whether it answers our hints, so that a port can be opened on it.
    pub fits: bool,
    /// Its domains; where it answers our hints, those that it answers with.
    pub domains: Vec<Domain>,
}

/// A device or network of a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Its name (`cxi0`, `eth0`, `lo`, …).
    pub name: String,
    /// The local address there.
    pub address: Option<String>,
    /// What it demands of registered memory, in words.
    pub mr_mode: String,
    /// The longest message that it injects, in bytes.
    pub inject_bytes: usize,
    /// The longest message, in bytes.
    pub message_bytes: usize,
}

/// What a port would be opened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The provider.
    pub provider: String,
    /// Its domain.
    pub domain: String,
    /// Why this one.
    pub reason: String,
}

impl Survey {
    /// Asks the library, which the first call of the process loads (200 ms on Debian).
    ///
    /// # Errors
    /// No libfabric, or it fails.
    pub fn take() -> Result<Survey, Error> {
        let _handlers = signals::Handlers::remember();
        let library = sys::load()?;
        let mut offers: Vec<Offer> = Vec::new();
        let mut note = |facts: Facts, fits: bool| {
            let offer = match offers.iter_mut().find(|offer| offer.provider == facts.provider) {
                Some(offer) => offer,
                None => {
                    let row = Row::all().iter().find(|row| row.provider() == facts.provider);
                    let provider = facts.provider.clone();
                    offers.push(Offer { provider, row, fits: false, domains: Vec::new() });
                    offers.last_mut().expect("pushed just now")
                }
            };
            if fits && !offer.fits {
                offer.fits = true;
                offer.domains.clear();
            }
            let domain = domain(&facts);
            if offer.fits == fits && !offer.domains.contains(&domain) {
                offer.domains.push(domain);
            }
        };
        for facts in Info::offers(library, None)? {
            note(facts, false);
        }
        for row in Row::all() {
            let query = Query::plain(row.provider(), row.automatic_progress.value);
            for facts in Info::offers(library, Some(&query))? {
                if facts.provider == row.provider() {
                    note(facts, true);
                }
            }
        }
        Ok(Survey { version: library.version(), path: loaded_file(), offers })
    }

    /// What a port on `net` would be opened on, without a bound address.
    ///
    /// # Errors
    /// Nothing fits; the text says why and what to do.
    pub fn choose(net: &Net) -> Result<Choice, Error> {
        let (names, facts) = port::preview(net)?;
        let reason = match names.iter().position(|name| *name == facts.provider) {
            _ if names.len() == 1 => format!("the only provider of --net {net}"),
            Some(0) => format!("the first of {} that answers", names.join(", ")),
            _ => format!("{} does not answer", names[0]),
        };
        Ok(Choice { provider: facts.provider, domain: facts.domain, reason })
    }
}

fn domain(facts: &Facts) -> Domain {
    Domain {
        name: facts.domain.clone(),
        address: port::address_text(facts),
        mr_mode: mr_mode_text(facts.mr_mode),
        inject_bytes: facts.inject_bytes_max,
        message_bytes: facts.message_bytes_max,
    }
}

/// The file that is mapped as libfabric (proc_pid_maps(5)).
fn loaded_file() -> Option<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let is_ours = |path: &&str| path.rsplit('/').next().is_some_and(|file| file.starts_with("libfabric.so"));
    paths.filter(is_ours).map(str::to_owned).next().or_else(|| std::env::var(sys::PATH_VARIABLE).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_survey_has_what_a_port_can_be_opened_on() {
        let survey = match Survey::take() {
            Ok(survey) => survey,
            Err(error @ Error::Load(_)) => return println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        };
        assert!(survey.version.contains('.') && survey.path.is_some_and(|path| path.contains("libfabric")));
        let choice = match Survey::choose(&Net::Tcp) {
            Ok(choice) => choice,
            Err(error @ Error::NoProvider { .. }) => return println!("skipped: {error}"),
            Err(error) => panic!("{error}"),
        };
        let offer = survey.offers.iter().find(|offer| offer.provider == choice.provider).expect("the one chosen");
        assert!(offer.fits && offer.row.is_some_and(Row::usable));
        assert!(offer.domains.iter().any(|domain| domain.name == choice.domain), "{offer:?} {choice:?}");
        assert!(offer.domains.iter().all(|domain| domain.address.is_some()), "{offer:?}");
        let error = Survey::choose(&Net::Provider("no-such".into())).expect_err("no such provider").to_string();
        assert!(error.contains("no-such"), "{error}");
    }
}
