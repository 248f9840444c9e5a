//! What is promised of blobs and manifests, whatever happens.

use super::{
    BLOBS, Blobs, MOST, State,
    state::{Data, Set, each, has},
};

impl Blobs {
    fn has_bytes_of(&self, state: &State, link: usize) -> bool {
        self.data_of(state, link).is_some_and(|data| has(state.data, data))
    }

    /// Every link that is a fact has its bytes, every manifest that is a fact its object and its links, and every
    /// manifest that is owed can be read, with the blobs that were there when it was pushed.
    pub(super) fn is_whole(&self, state: &State) -> bool {
        (0..2).all(|repository| {
            let shard = &state.facts.shards[repository];
            let has_bytes = shard.links.into_iter().flatten().all(|link| self.has_bytes_of(state, link));
            let is_manifest_whole = shard
                .manifest
                .is_none_or(|object| has(state.manifests, object) && self.needs & !Self::linked(shard) == 0);
            let is_readable = state.owed[repository].is_none_or(|blobs| self.can_be_read(state, repository, blobs));
            has_bytes && is_manifest_whole && is_readable
        })
    }

    /// Whether a repository's manifest, and these blobs, can be read: by the index if it knows the repository, where
    /// an open intent sends the reader to the bucket; else from the bucket.
    fn can_be_read(&self, state: &State, repository: usize, blobs: Set) -> bool {
        let shard = &state.facts.shards[repository];
        let is_in_bucket = each(state.manifests).any(|object| self.repository(object) == repository);
        if shard.is_known() {
            let is_pushed = shard.intents != 0 && is_in_bucket;
            return (shard.manifest.is_some() || is_pushed) && blobs & !Self::linked(shard) == 0;
        }
        let of = |link: &usize, blob: usize| self.repository(*link) == repository && self.blob(*link) == blob;
        let is_linked = |blob| each(state.links).any(|link| of(&link, blob) && self.has_bytes_of(state, link));
        is_in_bucket && (0..BLOBS).filter(|&blob| has(blobs, blob)).all(is_linked)
    }

    /// A manifest whose delete was acknowledged is not there again, unless a push that was never acknowledged has
    /// happened after all.
    pub(super) fn stays_away(&self, state: &State) -> bool {
        let was_answered = |object: usize| state.pushes.get(object).is_none_or(|push| push.is_answered);
        let shard = &state.facts.shards[0];
        let visible = match shard.is_known() {
            true => shard.manifest.map_or(0, |object| 1 << object),
            false => {
                each(state.manifests).filter(|&object| self.repository(object) == 0).fold(0, |set, at| set | 1 << at)
            }
        };
        !state.is_gone || !each(visible).any(was_answered)
    }

    /// Once nothing more is to be done, nothing is left that nothing needs.
    pub(super) fn is_tidy(&self, state: &State) -> bool {
        let shards = &state.facts.shards;
        let linked = shards.iter().flat_map(|shard| shard.links).flatten();
        let (links, data) = linked.fold((0, 0), |(links, data), link| {
            (links | 1 << link, data | self.data_of(state, link).map_or(0, |data| 1 << data))
        });
        let manifests = shards.iter().filter_map(|shard| shard.manifest).fold(0, |set, object| set | 1 << object);
        let is_known = |number: usize| state.facts.data[number] == Data::Absent || has(data, number);
        if (state.links, state.data, state.manifests) == (links, data, manifests) && (0..MOST).all(is_known) {
            return true;
        }
        let mut actions = Vec::new();
        self.work(state, &mut actions);
        !actions.is_empty()
    }
}
