//! What is simulated: sizes, times and faults, all drawn from a seed.

use std::time::Duration;

use serde::Serialize;

use super::rng::{Rng, mix};
use super::tree::TreeConfig;
use crate::cache::chunks::CHUNK_BYTES;

/// How much goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FaultLevel {
    /// Nothing: every message arrives in order, the backend answers, the tree stays as it is.
    None,
    /// What the network does: messages are lost, doubled, late, reads fail, links are cut. The tree changes.
    Net,
    /// What happens to nodes: they start late, die, come back or not, are stopped. The tree changes.
    Nodes,
    /// What the backend does: it hangs or fails, for single paths and as a whole. The tree changes.
    Backend,
    /// A choice of the kinds of faults that the seed makes.
    Some,
    /// All kinds at once.
    All,
}

impl FaultLevel {
    /// The word for it on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            FaultLevel::None => "none",
            FaultLevel::Net => "net",
            FaultLevel::Nodes => "nodes",
            FaultLevel::Backend => "backend",
            FaultLevel::Some => "some",
            FaultLevel::All => "all",
        }
    }
}

/// A breach of the rules, to see that it is found out and told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The code panics.
    Crash,
    /// The backend gives other bytes than the file has.
    Safety,
    /// Every message is lost.
    Liveness,
}

impl Sabotage {
    /// The word for it on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Sabotage::Crash => "crash",
            Sabotage::Safety => "safety",
            Sabotage::Liveness => "liveness",
        }
    }
}

/// What goes wrong, and how often. Times are microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Of a thousand messages, so many are lost.
    pub lost_per_mille: u64,
    /// Of a thousand messages, so many arrive twice.
    pub doubled_per_mille: u64,
    /// The longest time after which the second copy comes, whatever was sent meanwhile; 0: right behind the first.
    pub echo_us_max: u64,
    /// Of a thousand messages, so many take up to [`Faults::late_us_max`] longer; what follows on their link waits.
    pub late_per_mille: u64,
    /// The longest time that a late message takes beyond the usual.
    pub late_us_max: u64,
    /// Messages of one pair of nodes overtake each other too (libfabric's RDM endpoints do not allow that).
    pub reorders_pairs: bool,
    /// Of a thousand operations of the backend, so many hang for up to [`Faults::hang_us_max`].
    pub hangs_per_mille: u64,
    /// The longest time that the backend hangs.
    pub hang_us_max: u64,
    /// Of a thousand paths, so many fail with an errno at any time; after 2 s it is others.
    pub failing_per_mille: u64,
    /// Of a thousand remote reads, so many fail.
    pub failed_reads_per_mille: u64,
    /// Of a thousand remote reads, so many return other bytes than those that were granted.
    pub stale_reads_per_mille: u64,
    /// Of a thousand nodes, so many start late, and answer "not serving yet" for a while.
    pub late_nodes_per_mille: u64,
    /// The longest time that a node starts late.
    pub late_start_us_max: u64,
    /// Nodes that end during the run and start again with empty memory.
    pub restarts: u64,
    /// Nodes that die, and come back after up to [`Faults::down_us_max`], or never.
    pub kills: u64,
    /// Roots that do, of any tree.
    pub root_kills: u64,
    /// Nodes that do at one moment with their parent.
    pub pair_kills: u64,
    /// The longest time until a dead node starts again.
    pub down_us_max: u64,
    /// Of a thousand nodes that die, so many never come back.
    pub forever_per_mille: u64,
    /// Nodes that are stopped (`SIGSTOP`): what is sent to them waits, and so do their timers.
    pub freezes: u64,
    /// The longest time that they are.
    pub freeze_us_max: u64,
    /// Cuts of all links between two sets of nodes, one after the other.
    pub cuts: u64,
    /// The longest time that they last.
    pub cut_us_max: u64,
    /// Times in which the backend as a whole hangs, or fails with one errno.
    pub outages: u64,
    /// The longest time that they last.
    pub outage_us_max: u64,
    /// Changes of the served tree during the run.
    pub changes: u64,
    /// Invalidations of a path during the run, from any node.
    pub sweeps: u64,
    /// Files are also rewritten with their modification time set back. A root that started again cannot know of it.
    pub silent: bool,
}

impl Faults {
    fn draw(level: FaultLevel, rng: &mut Rng) -> Faults {
        // Everything is drawn at every level, so that a seed's tree and clients are the same at all of them.
        let all = Faults {
            lost_per_mille: rng.within(1..50),
            doubled_per_mille: rng.within(1..50),
            late_per_mille: rng.within(1..100),
            late_us_max: rng.within(1_000..400_000),
            reorders_pairs: rng.one_in(3),
            hangs_per_mille: rng.within(1..60),
            hang_us_max: rng.within(100_000..4_000_000),
            failing_per_mille: rng.within(1..80),
            failed_reads_per_mille: rng.within(1..80),
            stale_reads_per_mille: rng.within(1..80),
            late_nodes_per_mille: rng.within(50..400),
            late_start_us_max: rng.within(100_000..6_000_000),
            restarts: rng.within(1..6),
            changes: rng.within(20..400),
            silent: rng.one_in(3),
            echo_us_max: if rng.one_in(2) { rng.within(1_000..5_000_000) } else { 0 },
            sweeps: rng.within(1..20),
            kills: rng.within(1..8),
            root_kills: rng.within(1..3),
            pair_kills: rng.within(1..3),
            down_us_max: rng.within(1_000_000..40_000_000),
            forever_per_mille: [0, 200, 500][rng.below(3)],
            freezes: rng.within(1..6),
            freeze_us_max: rng.within(500_000..20_000_000),
            cuts: rng.within(1..3),
            cut_us_max: rng.within(1_000_000..30_000_000),
            outages: rng.within(1..4),
            outage_us_max: rng.within(1_000_000..20_000_000),
        };
        let choice = rng.next_u64();
        let mut bits = 0;
        let mut if_chosen = |of: FaultLevel, value: u64| {
            bits += 1;
            let is_chosen = match level {
                FaultLevel::None => false,
                FaultLevel::Some => choice >> bits & 1 == 1,
                FaultLevel::All => true,
                // The tree changes whatever goes wrong.
                _ => of == level || of == FaultLevel::All,
            };
            if is_chosen { value } else { 0 }
        };
        use FaultLevel::{All, Backend, Net, Nodes};
        Faults {
            lost_per_mille: if_chosen(Net, all.lost_per_mille),
            doubled_per_mille: if_chosen(Net, all.doubled_per_mille),
            late_per_mille: if_chosen(Net, all.late_per_mille),
            reorders_pairs: if_chosen(Net, u64::from(all.reorders_pairs)) > 0,
            failed_reads_per_mille: if_chosen(Net, all.failed_reads_per_mille),
            stale_reads_per_mille: if_chosen(Net, all.stale_reads_per_mille),
            cuts: if_chosen(Net, all.cuts),
            hangs_per_mille: if_chosen(Backend, all.hangs_per_mille),
            failing_per_mille: if_chosen(Backend, all.failing_per_mille),
            outages: if_chosen(Backend, all.outages),
            late_nodes_per_mille: if_chosen(Nodes, all.late_nodes_per_mille),
            restarts: if_chosen(Nodes, all.restarts),
            kills: if_chosen(Nodes, all.kills),
            root_kills: if_chosen(Nodes, all.root_kills),
            pair_kills: if_chosen(Nodes, all.pair_kills),
            freezes: if_chosen(Nodes, all.freezes),
            changes: if_chosen(All, all.changes),
            sweeps: if_chosen(All, all.sweeps),
            ..all
        }
        .consistent()
    }

    /// Another node that asks the backend, as after a root's death, cannot know what was read before a silent rewrite.
    fn consistent(self) -> Faults {
        let has_one_root = self.lost_per_mille == 0 && self.cuts == 0 && !self.moves();
        Faults { silent: self.silent && has_one_root, ..self }
    }

    /// Whether a message that was sent may never arrive.
    #[must_use]
    pub fn loses(&self) -> bool {
        self.lost_per_mille > 0 || self.cuts > 0 || self.late_nodes_per_mille > 0 || self.moves()
    }

    /// Whether a node may be taken for dead that lives, or the other way round: then it is not told who is to ask whom.
    #[must_use]
    pub fn misleads(&self) -> bool {
        let echoes = self.doubled_per_mille > 0 && self.echo_us_max > 0;
        self.lost_per_mille > 0 || self.cuts > 0 || echoes || self.late_per_mille > 0
    }

    /// Whether nodes die or are stopped.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.restarts + self.kills + self.root_kills + self.pair_kills + self.freezes > 0
    }
}

/// What is simulated. Times are virtual.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Everything follows from it.
    pub seed: u64,
    /// Nodes in the book.
    pub nodes: u32,
    /// Separate trees.
    pub trees: u32,
    /// Trees that each node takes part in.
    pub stripes: u32,
    /// Children per parent, if not by rule.
    pub fanout: Option<u32>,
    /// How much goes wrong.
    pub level: FaultLevel,
    /// What goes wrong.
    pub faults: Faults,
    /// What is broken on purpose.
    pub sabotage: Option<Sabotage>,
    /// The served tree.
    pub tree: TreeConfig,
    /// Clients of each node: each asks for one object after the other.
    pub clients_per_node: u32,
    /// Objects that a client looks up.
    pub lookups_per_client: u64,
    /// The clients' lookups are spread over so many microseconds, a third of them over the first 10 ms.
    pub span_us: u64,
    /// Shortest and longest time a message takes, microseconds.
    pub delay_us: (u64, u64),
    /// Shortest and longest time an operation of the backend takes, microseconds.
    pub backend_us: (u64, u64),
    /// How long the root's ENOENT may be repeated.
    pub enoent_ttl: Duration,
    /// Whether listings answer the names that they lack.
    pub complete_dirs: bool,
    /// How long attributes of directories, and listings, may be used.
    pub dir_ttl: Duration,
    /// How long attributes of all else may be used.
    pub attr_ttl: Option<Duration>,
    /// Bound of each node's memory for file data, bytes.
    pub cache_bytes: usize,
    /// Names that do not exist which each node remembers at most.
    pub enoent_entries: usize,
    /// Whether the nodes have a secret.
    pub has_secret: bool,
}

/// Objects that the clients of a run look up together, at most.
const LOOKUPS_MAX: u64 = 30_000;

impl SimConfig {
    /// The run of a seed: [`SimConfig::command`] names it completely.
    #[must_use]
    pub fn draw(seed: u64, nodes: u32, level: FaultLevel) -> SimConfig {
        let mut rng = Rng::new(mix(seed) ^ 0x5eed);
        let faults = Faults::draw(level, &mut rng);
        let clients_per_node = if nodes > 200 { 1 } else { 2 };
        let clients = u64::from(nodes) * u64::from(clients_per_node);
        // Memory that is too small on every eighth seed. Grants whose release is lost, or whose child died, pin it for
        // their lease, which is longer than requests wait.
        let is_tight = rng.one_in(8) && faults.lost_per_mille == 0 && !faults.moves();
        SimConfig {
            seed,
            nodes,
            trees: 1,
            stripes: 1,
            fanout: None,
            level,
            faults,
            sabotage: None,
            tree: TreeConfig {
                dirs: rng.within(3..10),
                files: rng.within(20..50),
                small_bytes: 3_000,
                medium_bytes: 40_000,
                large_bytes: if nodes <= 200 && rng.one_in(4) { 1_300_000 } else { 150_000 },
                long_names: if rng.one_in(4) { 180 } else { 0 },
                coarse_us: if faults.changes > 0 && rng.one_in(4) { rng.within(50_000..2_000_000) } else { 0 },
            },
            clients_per_node,
            lookups_per_client: (LOOKUPS_MAX / clients.max(1)).clamp(12, 30),
            span_us: rng.within(2_000_000..20_000_000),
            delay_us: (2, rng.within(20..2_000)),
            backend_us: (20, rng.within(100..20_000)),
            enoent_ttl: Duration::from_millis([0, 50, 500, 2_000, 2_000][rng.below(5)]),
            dir_ttl: Duration::from_millis([0, 300, 2_000, 60_000][rng.below(4)]),
            attr_ttl: [None, None, Some(Duration::from_millis(700)), Some(Duration::ZERO)][rng.below(4)],
            complete_dirs: !rng.one_in(8),
            cache_bytes: if is_tight { CHUNK_BYTES } else { 8 * CHUNK_BYTES },
            enoent_entries: if rng.one_in(8) { 16 } else { 512 },
            has_secret: rng.one_in(4),
        }
    }

    /// Whether each node has room for all that it may see: no chunk is evicted for want of memory.
    #[must_use]
    pub fn has_ample_memory(&self) -> bool {
        self.cache_bytes >= 8 * CHUNK_BYTES
    }

    /// The command that repeats the run of [`SimConfig::draw`].
    #[must_use]
    pub fn command(&self) -> String {
        let mut command = format!("bornite sim --seed {} --nodes {}", self.seed, self.nodes);
        if self.trees != 1 {
            command += &format!(" --trees {}", self.trees);
        }
        if self.stripes != 1 {
            command += &format!(" --stripes {}", self.stripes);
        }
        if let Some(fanout) = self.fanout {
            command += &format!(" --fanout {fanout}");
        }
        if let Some(sabotage) = self.sabotage {
            command += &format!(" --sabotage {}", sabotage.as_str());
        }
        command + " --faults " + self.level.as_str()
    }
}
