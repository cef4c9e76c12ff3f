//! BM25 over the synthesis side of a corpus (tantivy), built locally and opened from a folder.
//!
//! The ranking is a function of the documents and the query: one indexing thread, no merges in
//! the background, scores rounded before they are compared, ties by document number.

use std::path::Path;

use tantivy::collector::TopDocs;
use tantivy::merge_policy::NoMergePolicy;
use tantivy::query::{BooleanQuery, Occur, Query, TermQuery};
use tantivy::schema::{FAST, Field, IndexRecordOption, Schema, TextFieldIndexing, TextOptions};
use tantivy::tokenizer::{LowerCaser, RemoveLongFilter, SimpleTokenizer, TextAnalyzer, TokenStream};
use tantivy::{Index, IndexReader, ReloadPolicy, TantivyDocument, Term};

use crate::error::{CorpusError, Result};
use crate::shelf::Shelf;

const ANALYZER: &str = "words";
/// Memory of the indexing thread; with one thread it also fixes where segments end.
const WRITER_BYTES: usize = 128 << 20;
/// Scores are compared and stored in units of 1e-4: far above float noise.
const SCORE_UNIT: f32 = 1e-4;

/// One document found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Hit {
    /// Number of the document on the shelf.
    pub number: usize,
    /// BM25 score (k1 = 1.2, b = 0.75), rounded to 1e-4.
    pub score: f64,
}

/// An open index.
pub struct Bm25 {
    reader: IndexReader,
    body: Field,
    analyzer: TextAnalyzer,
}

impl std::fmt::Debug for Bm25 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bm25({} documents)", self.reader.searcher().num_docs())
    }
}

fn analyzer() -> TextAnalyzer {
    TextAnalyzer::builder(SimpleTokenizer::default())
        .filter(RemoveLongFilter::limit(64))
        .filter(LowerCaser)
        .build()
}

fn schema() -> (Schema, Field, Field) {
    let mut schema = Schema::builder();
    let number = schema.add_u64_field("number", FAST);
    let indexing =
        TextFieldIndexing::default().set_tokenizer(ANALYZER).set_index_option(IndexRecordOption::WithFreqs);
    let body = schema.add_text_field("body", TextOptions::default().set_indexing_options(indexing));
    (schema.build(), number, body)
}

impl Bm25 {
    /// Builds the index of a shelf in the empty folder `dir`.
    ///
    /// # Errors
    /// The index's, the file system's, and those of `progress`, which is told the documents done.
    pub fn build(dir: &Path, documents: &Shelf, progress: &mut dyn FnMut(usize) -> Result<()>) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(CorpusError::scratch(dir))?;
        let (schema, number, body) = schema();
        let index = Index::create_in_dir(dir, schema)?;
        index.tokenizers().register(ANALYZER, analyzer());
        let mut writer = index.writer_with_num_threads(1, WRITER_BYTES)?;
        writer.set_merge_policy(Box::new(NoMergePolicy));
        for n in 0..documents.len() {
            let document = documents.get(n)?;
            let mut entry = TantivyDocument::default();
            entry.add_u64(number, n as u64);
            entry.add_text(body, &document.title);
            entry.add_text(body, &document.text);
            writer.add_document(entry)?;
            progress(n + 1)?;
        }
        writer.commit()?;
        Ok(())
    }

    /// Opens an index from its folder.
    ///
    /// # Errors
    /// A folder that holds no index of ours.
    pub fn open(dir: &Path) -> Result<Bm25> {
        let index = Index::open_in_dir(dir)?;
        index.tokenizers().register(ANALYZER, analyzer());
        let body = index.schema().get_field("body")?;
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into()?;
        Ok(Bm25 { reader, body, analyzer: analyzer() })
    }

    /// The best `limit` documents for a query text: any of its words, best first.
    ///
    /// # Errors
    /// A damaged index.
    pub fn search(&self, query: &str, limit: usize) -> Result<Vec<Hit>> {
        let mut analyzer = self.analyzer.clone();
        let mut stream = analyzer.token_stream(query);
        let mut terms: Vec<String> = Vec::new();
        while let Some(token) = stream.next() {
            if !terms.contains(&token.text) {
                terms.push(token.text.clone());
            }
        }
        if terms.is_empty() || limit == 0 {
            return Ok(Vec::new());
        }
        let clauses: Vec<(Occur, Box<dyn Query>)> = terms
            .iter()
            .map(|word| {
                let term = Term::from_field_text(self.body, word);
                let query: Box<dyn Query> = Box::new(TermQuery::new(term, IndexRecordOption::WithFreqs));
                (Occur::Should, query)
            })
            .collect();
        let collector = TopDocs::with_limit(limit).tweak_score(|segment: &tantivy::SegmentReader| {
            let numbers = segment.fast_fields().u64("number");
            move |doc: tantivy::DocId, score: tantivy::Score| {
                let number = numbers.as_ref().ok().and_then(|column| column.first(doc)).unwrap_or(u64::MAX);
                ((score / SCORE_UNIT).round() as i64, u64::MAX - number)
            }
        });
        let found = self.reader.searcher().search(&BooleanQuery::new(clauses), &collector)?;
        Ok(found
            .into_iter()
            .filter(|((_, rest), _)| *rest != 0)
            .map(|((units, rest), _)| Hit { number: (u64::MAX - rest) as usize, score: units as f64 / 1e4 })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;
    use crate::shelf::ShelfWriter;

    #[test]
    fn ranks_by_score_then_number_the_same_in_every_build() {
        let tmp = tempfile::tempdir().unwrap();
        let mut shelf = ShelfWriter::create(&tmp.path().join("shelf")).unwrap();
        let texts = [
            "a runtime for asynchronous applications",
            "colours and colours of the rainbow",
            "an asynchronous runtime, a runtime that runs",
            "an asynchronous runtime, a runtime that runs",
            "nothing of the kind",
        ];
        for (i, text) in texts.iter().enumerate() {
            let document = Document {
                id: i.to_string(),
                group: i.to_string(),
                source: "s".into(),
                title: format!("t{i}"),
                text: (*text).into(),
                tokens: 5,
            };
            shelf.push(&document).unwrap();
        }
        let shelf = shelf.finish().unwrap();
        let mut answers = Vec::new();
        for build in ["one", "two"] {
            let dir = tmp.path().join(build);
            Bm25::build(&dir, &shelf, &mut |_| Ok(())).unwrap();
            let moved = tmp.path().join(format!("{build}-moved"));
            let archive = tmp.path().join("x.arc");
            crate::pack_dir(&dir, &archive).unwrap();
            crate::unpack("x", &archive, &moved).unwrap();
            let index = Bm25::open(&moved).unwrap();
            answers.push(index.search("RUNTIME asynchronous runtime?", 10).unwrap());
            assert_eq!(index.search("rainbow", 10).unwrap()[0].number, 1);
            assert!(index.search("  ?! ", 10).unwrap().is_empty());
            assert_eq!(index.search("runtime", 1).unwrap()[0].number, 2);
        }
        let numbers: Vec<usize> = answers[0].iter().map(|hit| hit.number).collect();
        assert_eq!(numbers, [2, 3, 0], "equal scores go by number");
        assert!(answers[0][0].score == answers[0][1].score);
        assert_eq!(answers[0], answers[1]);
    }
}
