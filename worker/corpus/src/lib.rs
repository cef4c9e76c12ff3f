//! Corpora: readers, hygiene, near-duplicates, held-out groups, shards and the BM25 index.
