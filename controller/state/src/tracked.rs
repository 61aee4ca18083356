//! Persistent maps that can take back what was done to them since the last command.
//!
//! DECISION: a command changes the state in place and is undone when it is refused. To change a copy instead, and drop
//! it, would copy the path to every entry touched, for every command: most of what a write cost. Now a path is copied
//! once for all the commands between two views.

use std::ops::{Deref, DerefMut};

use imbl::{OrdMap, OrdSet};

/// A map and what to put back. Reads like the map itself.
#[derive(Clone, Debug)]
pub(crate) struct Tracked<K: Ord, V> {
    map: OrdMap<K, V>,
    /// What stood under each key before it was touched, the last touch last. Empty between commands.
    undo: Vec<(K, Option<V>)>,
    tracking: bool,
}

impl<K: Ord, V> Default for Tracked<K, V> {
    fn default() -> Self {
        Self { map: OrdMap::new(), undo: Vec::new(), tracking: false }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for Tracked<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.map == other.map
    }
}

impl<K: Ord, V> Deref for Tracked<K, V> {
    type Target = OrdMap<K, V>;
    fn deref(&self) -> &OrdMap<K, V> {
        &self.map
    }
}

impl<K: Ord + Clone, V: Clone> Tracked<K, V> {
    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.tracking {
            let before = self.map.insert(key.clone(), value);
            self.undo.push((key, before));
        } else {
            self.map.insert(key, value);
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let before = self.map.remove(key);
        if self.tracking && before.is_some() {
            self.undo.push((key.clone(), before.clone()));
        }
        before
    }
}

/// The same for a set.
#[derive(Clone, Debug)]
pub(crate) struct TrackedSet<K: Ord> {
    set: OrdSet<K>,
    /// Which element was added (true) or removed, in order.
    undo: Vec<(K, bool)>,
    tracking: bool,
}

impl<K: Ord> Default for TrackedSet<K> {
    fn default() -> Self {
        Self { set: OrdSet::new(), undo: Vec::new(), tracking: false }
    }
}

impl<K: Ord> PartialEq for TrackedSet<K> {
    fn eq(&self, other: &Self) -> bool {
        self.set == other.set
    }
}

impl<K: Ord> Deref for TrackedSet<K> {
    type Target = OrdSet<K>;
    fn deref(&self) -> &OrdSet<K> {
        &self.set
    }
}

impl<K: Ord + Clone> TrackedSet<K> {
    pub(crate) fn insert(&mut self, key: K) {
        if self.set.contains(&key) {
            return;
        }
        if self.tracking {
            self.undo.push((key.clone(), true));
        }
        self.set.insert(key);
    }

    pub(crate) fn remove(&mut self, key: &K) {
        if self.set.remove(key).is_some() && self.tracking {
            self.undo.push((key.clone(), false));
        }
    }
}

/// Something small that is put back as a whole. Reads like the thing itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct TrackedWhole<T> {
    now: T,
    /// As it was before the command touched it.
    before: Option<T>,
    tracking: bool,
}

impl<T: PartialEq> PartialEq for TrackedWhole<T> {
    fn eq(&self, other: &Self) -> bool {
        self.now == other.now
    }
}

impl<T> Deref for TrackedWhole<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.now
    }
}

impl<T: Clone> DerefMut for TrackedWhole<T> {
    fn deref_mut(&mut self) -> &mut T {
        if self.tracking && self.before.is_none() {
            self.before = Some(self.now.clone());
        }
        &mut self.now
    }
}

impl<T: Clone> Undo for TrackedWhole<T> {
    fn begin(&mut self) {
        self.tracking = true;
    }

    fn keep(&mut self) {
        self.tracking = false;
        self.before = None;
    }

    fn take_back(&mut self) {
        self.tracking = false;
        if let Some(before) = self.before.take() {
            self.now = before;
        }
    }
}

/// What a command may have to take back.
pub(crate) trait Undo {
    /// From here on changes are noted.
    fn begin(&mut self);
    /// They stand.
    fn keep(&mut self);
    /// They are undone.
    fn take_back(&mut self);
}

impl<K: Ord + Clone, V: Clone> Undo for Tracked<K, V> {
    fn begin(&mut self) {
        self.tracking = true;
    }

    fn keep(&mut self) {
        self.tracking = false;
        self.undo.clear();
    }

    fn take_back(&mut self) {
        self.tracking = false;
        while let Some((key, before)) = self.undo.pop() {
            match before {
                Some(value) => drop(self.map.insert(key, value)),
                None => drop(self.map.remove(&key)),
            }
        }
    }
}

impl<K: Ord + Clone> Undo for TrackedSet<K> {
    fn begin(&mut self) {
        self.tracking = true;
    }

    fn keep(&mut self) {
        self.tracking = false;
        self.undo.clear();
    }

    fn take_back(&mut self) {
        self.tracking = false;
        while let Some((key, added)) = self.undo.pop() {
            if added {
                self.set.remove(&key);
            } else {
                self.set.insert(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same for something whole.
    #[test]
    fn a_whole_is_taken_back_or_kept() {
        let mut whole = TrackedWhole { now: 1, ..TrackedWhole::default() };
        for (keep, left) in [(false, 1), (true, 3)] {
            whole.begin();
            *whole = 2;
            *whole = 3;
            if keep {
                whole.keep();
            } else {
                whole.take_back();
            }
            assert_eq!(*whole, left);
        }
    }

    /// What is taken back leaves everything as it was, however often a key was touched; what is kept stands.
    #[test]
    fn changes_are_taken_back_or_kept() {
        let (mut map, mut set) = (Tracked::default(), TrackedSet::default());
        map.insert(1, "one");
        set.insert(1);
        let (old_map, old_set) = (map.clone(), set.clone());
        for keep in [false, true] {
            map.begin();
            set.begin();
            map.insert(1, "uno");
            map.insert(1, "eins");
            map.insert(2, "two");
            map.remove(&1);
            map.remove(&3);
            set.insert(2);
            set.insert(1);
            set.remove(&1);
            set.remove(&2);
            set.insert(3);
            if keep {
                map.keep();
                set.keep();
                assert_eq!(map.iter().collect::<Vec<_>>(), [(&2, &"two")]);
                assert_eq!(set.iter().collect::<Vec<_>>(), [&3]);
            } else {
                map.take_back();
                set.take_back();
                assert!(map == old_map && set == old_set);
            }
        }
        map.take_back();
        assert_eq!(map.len(), 1, "what was kept cannot be taken back");
    }
}
