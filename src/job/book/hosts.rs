//! Node files: the hosts of a job, one name in each line, as PBS_NODEFILE (qsub(1)) and `scontrol show hostnames` give them.
//!
//! PBS has a line for each rank, so a host may stand there many times; it counts once, where it stands first.

use std::path::Path;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::scan::hash_of_name;
use super::{BookError, Kind, check_host, read_text};

/// The hosts of a node file in its order, each once (case is no matter). Blank lines and lines that begin with `#` are
/// passed over.
///
/// # Errors
/// [`BookError::NodeFile`], [`BookError::NodeLine`], [`BookError::NoNodes`].
pub fn read_nodefile(file: &Path) -> Result<Vec<String>, BookError> {
    let text = read_text(file, Kind::NodeFile)?;
    parse_nodefile(&text, file)
}

/// The hosts of a node file's text. `file` is for messages.
///
/// # Errors
/// As [`read_nodefile`].
pub fn parse_nodefile(text: &str, file: &Path) -> Result<Vec<String>, BookError> {
    let mut hosts: Vec<String> = Vec::new();
    let (state, mut seen) = (DefaultHashBuilder::default(), HashTable::<usize>::new());
    for (index, raw) in text.split('\n').enumerate() {
        let mut fields = raw.split_ascii_whitespace();
        let Some(host) = fields.next().filter(|first| !first.starts_with('#')) else { continue };
        let bad = |why| BookError::NodeLine { file: file.to_path_buf(), line: index + 1, why };
        check_host(host).map_err(bad)?;
        if fields.next().is_some() {
            return Err(bad("more than one word".to_owned()));
        }
        let hash = hash_of_name(&state, host);
        if seen.find(hash, |at| hosts[*at].eq_ignore_ascii_case(host)).is_none() {
            hosts.push(host.to_owned());
            seen.insert_unique(hash, hosts.len() - 1, |at| hash_of_name(&state, &hosts[*at]));
        }
    }
    if hosts.is_empty() {
        return Err(BookError::NoNodes { file: file.to_path_buf() });
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, BookError> {
        parse_nodefile(text, Path::new("nodes"))
    }

    #[test]
    fn hosts_count_once_in_their_order() {
        assert_eq!(parse("# job\r\nb.site\r\nb.site\r\n\r\na\nB.SITE\na").unwrap(), ["b.site", "a"]);
    }

    #[test]
    fn what_is_no_node_file_is_named_by_its_line() {
        assert_eq!(
            parse("a\nb c\n").unwrap_err().to_string(),
            "node file nodes, line 2: more than one word; a line is the name of a host"
        );
        assert!(parse("a\nb:4\n").unwrap_err().to_string().contains("line 2: character ':'"));
        assert_eq!(
            parse("\n#\n").unwrap_err().to_string(),
            "node file nodes names no host; in a PBS job it is $PBS_NODEFILE, in a Slurm job the output of `scontrol show hostnames`"
        );
        let missing = read_nodefile(Path::new("/none/nodes")).unwrap_err().to_string();
        assert!(missing.starts_with("node file /none/nodes: ") && missing.contains("--nodefile"), "{missing}");
    }
}
