//! The figures as pictures.

use std::path::PathBuf;

use super::candidates::CANDIDATES;
use super::steady::{OPERATIONS, PERCENTILES, SIZES};
use super::{burst, steady};
use bornite_bench::plot::{Bars, save};

pub(crate) fn all(steady: &[steady::Figures], burst: &[burst::Figures]) -> anyhow::Result<Vec<PathBuf>> {
    let names: Vec<String> = CANDIDATES.iter().map(|candidate| candidate.name.to_owned()).collect();
    let mut files = Vec::new();
    for operation in OPERATIONS {
        let mean = |candidate: &str, entries: u64| {
            let is = |f: &&steady::Figures| {
                (f.candidate, f.operation, f.entries, f.threads) == (candidate, operation, entries, 1)
            };
            steady.iter().find(is).map_or(f64::NAN, |f| f.cpu.median())
        };
        let series = SIZES.map(|entries| {
            let values = CANDIDATES.iter().map(|candidate| mean(candidate.name, entries)).collect();
            (format!("{entries} names"), values)
        });
        let title = format!("{operation}, one thread");
        let bars = Bars { title: &title, unit: "ns of CPU time", groups: &names, series: &series };
        files.push(save(&format!("lookup-{operation}"), &bars.svg())?);
    }
    let reads = |f: &burst::Figures| f.read.clone();
    let inserts = |f: &burst::Figures| f.insert.clone();
    for (what, pick) in [("read", &reads as &dyn Fn(&burst::Figures) -> Vec<u64>), ("insert", &inserts)] {
        let series: Vec<(String, Vec<f64>)> = PERCENTILES
            .iter()
            .enumerate()
            .map(|(at, percentile)| {
                (
                    format!("p{percentile}"),
                    burst.iter().map(|f| pick(f).get(at).map_or(f64::NAN, |ns| *ns as f64)).collect(),
                )
            })
            .collect();
        let title = format!("{what}, burst of 50,000 new names a second");
        let bars = Bars { title: &title, unit: "ns", groups: &names, series: &series };
        files.push(save(&format!("lookup-burst-{what}"), &bars.svg())?);
    }
    Ok(files)
}
