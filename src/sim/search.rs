//! How long nodes take to find somebody else to ask when the one that they ask is gone.

use hashbrown::HashMap;

use crate::cache::types::Micros;

/// A node that has asked another one, in one tree, which is dead or stopped since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Search {
    pub(super) by: usize,
    pub(super) dead: usize,
    pub(super) tree: u32,
}

/// What was asked of whom, and who looks for somebody else since when.
#[derive(Default)]
pub(super) struct Searches {
    /// By who asked and who was asked: the requests that are not answered, with their trees.
    asked: HashMap<(usize, usize), HashMap<u64, u32>>,
    open: HashMap<Search, Micros>,
    /// When each node died or was stopped last.
    gone: HashMap<usize, Micros>,
}

impl Searches {
    /// A request goes out to a node that is there, or is not. How long the node was looked for, if it was.
    pub(super) fn asked(&mut self, now: Micros, search: Search, id: u64, is_there: bool) -> Option<u64> {
        let Search { by, dead: of, tree } = search;
        self.asked.entry((by, of)).or_default().insert(id, tree);
        if is_there {
            return self.found(now, by, tree);
        }
        if !self.open.contains_key(&search) {
            // While it looked it had taken this one, which nothing was asked of, for alive: it has another go.
            let gone = self.gone.get(&of).copied().unwrap_or_default();
            for (other, since) in &mut self.open {
                if other.by == by && other.tree == tree && *since <= gone {
                    *since = now;
                }
            }
            self.open.insert(search, now);
        }
        None
    }

    /// A node has found somebody to ask in a tree, for all that it waited for there: how long it looked for one, if it did.
    pub(super) fn found(&mut self, now: Micros, by: usize, tree: u32) -> Option<u64> {
        let mut longest = None;
        let asked = &mut self.asked;
        self.open.retain(|search, since| {
            let is_over = search.by == by && search.tree == tree;
            if is_over {
                longest = longest.max(Some(now.0 - since.0));
                // It waits for nothing of the dead one any more.
                if let Some(requests) = asked.get_mut(&(by, search.dead)) {
                    requests.retain(|_, of| *of != tree);
                }
            }
            !is_over
        });
        longest
    }

    /// An answer arrives. It may have been on its way when who gave it died: who waits for nothing else of it looks for nobody.
    pub(super) fn answered(&mut self, by: usize, of: usize, id: u64) {
        let Some(asked) = self.asked.get_mut(&(by, of)) else { return };
        if let Some(tree) = asked.remove(&id).filter(|tree| asked.values().all(|other| other != tree)) {
            self.open.remove(&Search { by, dead: of, tree });
        }
    }

    /// A request reached another life than the one that it was meant for: it is never answered, and asked anew.
    pub(super) fn refused(&mut self, by: usize, of: usize, id: u64) {
        if let Some(asked) = self.asked.get_mut(&(by, of)) {
            asked.remove(&id);
        }
    }

    /// A node died or was stopped: who waits for it, and is not stopped, looks for another one. Who looks already may
    /// have been about to ask it, and has another go, where `may_ask` says so of the node and the tree.
    pub(super) fn left(
        &mut self,
        now: Micros,
        node: usize,
        is_there: impl Fn(usize) -> bool,
        may_ask: impl Fn(usize, u32) -> bool,
    ) {
        self.gone.insert(node, now);
        self.open.retain(|search, _| search.by != node);
        for (_, since) in self.open.iter_mut().filter(|(search, _)| may_ask(search.by, search.tree)) {
            *since = now;
        }
        self.begin(now, |by, of| of == node && is_there(by));
    }

    /// A node that was stopped goes on, and looks for others than those who died or were stopped meanwhile.
    pub(super) fn resumed(&mut self, now: Micros, node: usize, is_there: impl Fn(usize) -> bool) {
        self.begin(now, |by, of| by == node && !is_there(of));
    }

    fn begin(&mut self, now: Micros, does: impl Fn(usize, usize) -> bool) {
        for ((by, of), asked) in self.asked.iter().filter(|((by, of), _)| does(*by, *of)) {
            for tree in asked.values() {
                self.open.entry(Search { by: *by, dead: *of, tree: *tree }).or_insert(now);
            }
        }
    }

    /// A node is there again; in another life it does not know what it was asked, or asked.
    pub(super) fn returned(&mut self, node: usize, is_new: bool) {
        self.open.retain(|search, _| search.dead != node);
        if is_new {
            self.asked.retain(|(by, of), _| *by != node && *of != node);
        }
    }

    /// A node died.
    pub(super) fn ended(&mut self, node: usize) {
        self.asked.retain(|(by, _), _| *by != node);
    }

    /// A search that takes longer than it may.
    pub(super) fn overdue(&self, now: Micros, most_us: u64, counts: impl Fn(&Search) -> bool) -> Option<Search> {
        let over = self.open.iter().filter(|(_, since)| since.after_us(most_us) < now);
        over.map(|(search, _)| *search).filter(counts).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_goes_on_looks_for_nobody_in_place_of_those_whom_it_had_given_up() {
        let mut searches = Searches::default();
        let search = Search { by: 5, dead: 2, tree: 1 };
        searches.asked(Micros(10), search, 1, true);
        searches.asked(Micros(10), Search { tree: 3, ..search }, 2, true);
        searches.left(Micros(20), 2, |_| true, |_, _| false);
        assert_eq!(searches.asked(Micros(60), Search { dead: 0, ..search }, 3, true), Some(40));
        // It is stopped and goes on: what it has asked elsewhere is not with the dead node any more.
        searches.left(Micros(70), 5, |_| false, |_, _| false);
        searches.resumed(Micros(200), 5, |_| false);
        let begun = |search: &Search| search.dead == 2;
        assert_eq!(searches.overdue(Micros(900), 100, begun), Some(Search { tree: 3, ..search }));
        assert_eq!(searches.overdue(Micros(900), 100, |search| begun(search) && search.tree == 1), None);
    }

    #[test]
    fn an_answer_that_was_on_its_way_at_a_death_ends_the_search() {
        let mut searches = Searches::default();
        let search = Search { by: 5, dead: 2, tree: 1 };
        searches.asked(Micros(10), search, 1, true);
        searches.asked(Micros(10), search, 2, true);
        searches.left(Micros(20), 2, |_| true, |_, _| false);
        searches.answered(5, 2, 1);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), Some(search), "the other one is still waited for");
        searches.answered(5, 2, 2);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), None);
        // What is asked of it later is another search.
        searches.asked(Micros(900), search, 3, false);
        assert_eq!(searches.asked(Micros(990), Search { dead: 0, ..search }, 4, true), Some(90));
    }

    #[test]
    fn nobody_waits_for_an_answer_to_what_another_life_refused() {
        let mut searches = Searches::default();
        let search = Search { by: 5, dead: 2, tree: 1 };
        searches.asked(Micros(10), search, 1, true);
        searches.asked(Micros(11), search, 2, true);
        searches.refused(5, 2, 1);
        searches.left(Micros(20), 2, |_| true, |_, _| false);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), Some(search), "the other one is waited for");
        searches.answered(5, 2, 2);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), None);
    }

    #[test]
    fn who_asks_one_that_died_during_the_search_has_another_go_once() {
        let mut searches = Searches::default();
        let search = Search { by: 5, dead: 2, tree: 1 };
        let other = Search { dead: 3, ..search };
        searches.left(Micros(10), 2, |_| true, |_, _| false);
        searches.asked(Micros(20), search, 1, false);
        searches.left(Micros(30), 3, |_| true, |_, _| true);
        searches.asked(Micros(90), other, 2, false);
        searches.asked(Micros(120), other, 2, false);
        assert_eq!(searches.overdue(Micros(190), 100, |_| true), None);
        assert_eq!(searches.overdue(Micros(191), 100, |_| true), Some(search), "again is no other go");
        assert_eq!(searches.asked(Micros(200), Search { dead: 0, ..search }, 3, true), Some(110));
        // One that was dead before has been found out before.
        searches.asked(Micros(300), search, 4, false);
        searches.asked(Micros(350), other, 5, false);
        assert_eq!(searches.asked(Micros(380), Search { dead: 0, ..search }, 6, true), Some(80));
    }

    #[test]
    fn a_search_lasts_from_the_death_or_the_first_request_until_somebody_else_is_asked() {
        let mut searches = Searches::default();
        let search = Search { by: 5, dead: 2, tree: 1 };
        assert_eq!(searches.asked(Micros(10), search, 1, true), None);
        searches.left(Micros(20), 2, |_| true, |_, _| false);
        assert_eq!(searches.overdue(Micros(120), 100, |_| true), None);
        assert_eq!(searches.overdue(Micros(121), 100, |_| true), Some(search));
        assert_eq!(searches.asked(Micros(130), search, 2, false), None, "it is still asked");
        let other = Search { dead: 0, ..search };
        assert_eq!(searches.asked(Micros(135), Search { tree: 0, ..other }, 3, true), None, "of another tree");
        assert_eq!(searches.asked(Micros(140), other, 4, true), Some(120));
        searches.answered(5, 0, 4);
        searches.left(Micros(150), 0, |_| true, |_, _| false);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), Some(Search { tree: 0, ..other }), "request 3 waits");
        searches.returned(0, true);
        assert_eq!(searches.overdue(Micros(900), 100, |_| true), None);
    }
}
